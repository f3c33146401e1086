"""Rollout of versions and their monitoring; see __main__.py."""
