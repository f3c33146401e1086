"""Plaudit serves a multimodal model and lets its users' feedback make it better."""

__version__ = "0.1.0"
