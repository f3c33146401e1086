"""Limits of the contract that several rooms check."""

from typing import Final

MAX_ID_CHARACTERS: Final = 128
"""Longest feedback id, action id and correction that is taken."""
