"""How satisfied users were: rewards → means with intervals, per version and over time. Pure functions.

Knows nothing about stores, versions or pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from plaudit_models.evaluation.intervals import wilson


@dataclass(frozen=True, slots=True)
class Rewarded:
    """One answer that users judged: the version that gave it, when (UTC seconds), and its reward in [0, 1]."""

    version: int
    time_s: float
    reward: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of n rewards with its 95 % Wilson interval."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """The mean of consecutive rewards.

    Attributes:
        place: their mean place among all rewards, counted from 0 in the order of time. Curves are drawn over it: so
            that nights take no room, and busy minutes get theirs.
        time_s: their mean time, UTC seconds.
    """

    place: float
    time_s: float
    mean: Mean


def mean_of(rewards: Sequence[float]) -> Mean | None:
    """The mean with Wilson's score interval; None of nothing."""
    n = len(rewards)
    if n == 0:
        return None
    mean = sum(rewards) / n
    return Mean(n, mean, *wilson(mean, n))


def by_version(rewarded: Iterable[Rewarded]) -> dict[int, Mean]:
    """The mean of every version that was judged."""
    rewards: dict[int, list[float]] = {}
    for one in rewarded:
        rewards.setdefault(one.version, []).append(one.reward)
    return {version: mean for version, of_it in rewards.items() if (mean := mean_of(of_it)) is not None}


def over_time(rewarded: Sequence[Rewarded], family_of: Mapping[int, int], *, points: int) -> dict[int, list[Point]]:
    """Satisfaction over time for each family of versions.

    Args:
        rewarded: in the order of time.
        family_of: version → the version that its family is named after; a version that is missing is its own family.
        points: about how many there may be, over all families. Each stands for as many rewards as the others, so that
            quiet hours do not give points that mean nothing.
    """
    size = max(_FEWEST, math.ceil(len(rewarded) / points))
    families: dict[int, list[tuple[int, Rewarded]]] = {}
    for placed in enumerate(rewarded):
        version = placed[1].version
        families.setdefault(family_of.get(version, version), []).append(placed)
    return {family: [_point(part) for part in _parts(members, size)] for family, members in families.items()}


_FEWEST: Final = 10
"""Rewards that a point stands for, at least."""


def _parts(members: Sequence[tuple[int, Rewarded]], size: int) -> list[Sequence[tuple[int, Rewarded]]]:
    """As many equal parts as there are with ``size`` members or more; one if there is none."""
    count = max(1, len(members) // size)
    return [members[len(members) * i // count : len(members) * (i + 1) // count] for i in range(count)]


def _point(members: Sequence[tuple[int, Rewarded]]) -> Point:
    n = len(members)
    mean = mean_of([one.reward for _, one in members])
    assert mean is not None
    return Point(sum(place for place, _ in members) / n, sum(one.time_s for _, one in members) / n, mean)
