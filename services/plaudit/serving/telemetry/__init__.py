"""Metrics, statistics and the request log."""
