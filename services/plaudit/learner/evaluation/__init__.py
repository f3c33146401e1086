"""Comparison of versions on logged experiences."""
