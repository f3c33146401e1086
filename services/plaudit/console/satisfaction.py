"""Satisfaction of users: rewards → means with intervals, per version and over time. Pure functions.

Knows nothing about stores, versions or pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from plaudit_models.evaluation.intervals import wilson


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """One answer with feedback: its version, its time (UTC seconds) and its reward in [0, 1]."""

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
        place: mean index among all rewards by time, from 0. Curves are drawn over it, as traffic varies with the hour.
        time_s: mean time, UTC seconds.
    """

    place: float
    time_s: float
    mean: Mean


def mean_of(rewards: Sequence[float]) -> Mean | None:
    """Mean with Wilson's score interval; None if there are no rewards."""
    n = len(rewards)
    if n == 0:
        return None
    mean = sum(rewards) / n
    return Mean(n, mean, *wilson(mean, n))


def by_version(answers: Iterable[LabelledAnswer]) -> dict[int, Mean]:
    """Mean of every version with labelled answers, by version."""
    rewards: dict[int, list[float]] = {}
    for answer in answers:
        rewards.setdefault(answer.version, []).append(answer.reward)
    return {version: mean for version, of_it in rewards.items() if (mean := mean_of(of_it)) is not None}


def over_time(
    answers: Sequence[LabelledAnswer], family_of: Mapping[int, int], *, points: int
) -> dict[int, list[Point]]:
    """Satisfaction over time for each family of versions.

    Args:
        answers: by time.
        family_of: version → the version that its family is named after; a version that is missing is its own family.
        points: approximate number of points over all families. Each is the mean of equally many rewards, so that quiet
            hours give no points without meaning.
    """
    size = max(_FEWEST, math.ceil(len(answers) / points))
    families: dict[int, list[tuple[int, LabelledAnswer]]] = {}
    for placed in enumerate(answers):
        version = placed[1].version
        families.setdefault(family_of.get(version, version), []).append(placed)
    return {family: [_point(part) for part in _parts(members, size)] for family, members in families.items()}


_FEWEST: Final = 10
"""Smallest number of rewards of a point."""


def _parts(members: Sequence[tuple[int, LabelledAnswer]], size: int) -> list[Sequence[tuple[int, LabelledAnswer]]]:
    """Equal parts with ``size`` members or more; a single part if there are fewer members."""
    count = max(1, len(members) // size)
    return [members[len(members) * i // count : len(members) * (i + 1) // count] for i in range(count)]


def _point(members: Sequence[tuple[int, LabelledAnswer]]) -> Point:
    n = len(members)
    mean = mean_of([answer.reward for _, answer in members])
    assert mean is not None
    return Point(sum(place for place, _ in members) / n, sum(answer.time_s for _, answer in members) / n, mean)
