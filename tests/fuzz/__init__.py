"""Fuzzing of every parser that sees foreign bytes, with oracles; see __main__.py."""
