"""Satisfaction of users with each version: means with intervals, as long as there is feedback on the version.

Knows nothing about where experiences come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from plaudit.core.experience import Experience
from plaudit.learner.metrics import LearnerMetrics
from plaudit_models.evaluation.intervals import wilson

SHOWN_AT_MOST: Final = 20
"""Largest number of versions shown: those with the latest feedback."""
SHOWN_AFTER_S: Final = 3600.0
"""Time that a version is shown after its latest feedback."""


@dataclass(slots=True)
class _Tally:
    n: int = 0
    total: float = 0.0
    last_s: float = 0.0


class SatisfactionByVersion:
    """Mean reward of each version's answers; each experience counts once, with its first label.

    What is not learned from is left out: a flood of one user is not what users think.
    """

    def __init__(self, metrics: LearnerMetrics) -> None:
        self._metrics = metrics
        self._tallies: dict[int, _Tally] = {}
        """In the order of their latest feedback."""

    def add(self, experiences: Iterable[Experience], now_s: float) -> None:
        """Count these and set the metrics; ``now_s`` is UTC seconds."""
        for experience in experiences:
            label = None if experience.excluded else experience.heard_label
            reward = None if label is None else label.rewards.get(experience.decision.action)
            if reward is not None:
                version = experience.decision.version
                tally = self._tallies[version] = self._tallies.pop(version, _Tally())
                tally.n += 1
                tally.total += reward
                tally.last_s = now_s
        beyond = len(self._tallies) - SHOWN_AT_MOST
        for place, (version, tally) in enumerate(list(self._tallies.items())):
            if place < beyond or now_s - tally.last_s >= SHOWN_AFTER_S:
                del self._tallies[version]
                for metric in self._metrics.by_version:
                    metric.remove(str(version))
            else:
                mean = min(1.0, tally.total / tally.n)
                values = (mean, *wilson(mean, tally.n), tally.n)
                for metric, value in zip(self._metrics.by_version, values, strict=True):
                    metric.labels(str(version)).set(value)
