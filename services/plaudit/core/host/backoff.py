"""Pauses between attempts at what may succeed later: each twice as long as the one before, up to a bound."""

from __future__ import annotations

from typing import Final

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
_MAX_DOUBLINGS: Final = 60


def pause_s(failures: int, longest_s: float = LONGEST_PAUSE_S) -> float:
    """Pause after the ``failures``-th failure in a row, in seconds: 1, 2, 4, … ``longest_s``."""
    return float(min(longest_s, FIRST_PAUSE_S * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)))
