"""Served models: loaded, followed, swapped."""
