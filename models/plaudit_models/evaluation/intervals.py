"""Confidence intervals of a mean of rewards. Pure."""

from __future__ import annotations

import math
from typing import Final

_Z: Final = 1.959964
"""Normal quantile of a two-sided 95 % interval."""


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a mean of n rewards in [0, 1], n ≥ 1 (Wilson, Probable Inference, the Law of
    Succession, and Statistical Inference, 1927).

    It is that of a share. Rewards between 0 and 1 vary less than 0s and 1s of the same mean, so for ratings it is wider
    than need be, never narrower.

    Raises:
        ValueError: n is not positive, or the mean not in [0, 1].
    """
    if n < 1:
        raise ValueError(f"n {n} must be at least 1")
    if not 0.0 <= mean <= 1.0:
        raise ValueError(f"mean {mean} is not in [0, 1]")
    square = _Z**2
    centre = (mean + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(mean * (1 - mean) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
