"""Generated from proto/plaudit/v1 by `make proto`; never edited by hand."""
