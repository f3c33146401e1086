"""Launchers of fine-tuning jobs."""
