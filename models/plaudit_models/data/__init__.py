"""Data sets: a folder with a manifest → rows, splits, decoded items, batches in a fixed order."""
