"""Attacks on a server, and what they cost; see __main__.py."""
