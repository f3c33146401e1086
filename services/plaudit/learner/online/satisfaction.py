"""How satisfied users are with each version: means with intervals, for as long as anybody speaks of the version.

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
"""Versions shown: those that were last spoken of."""
SHOWN_AFTER_S: Final = 3600.0
"""How long a version is shown after it was last spoken of."""


@dataclass(slots=True)
class _Heard:
    n: int = 0
    total: float = 0.0
    last_s: float = 0.0


class SatisfactionByVersion:
    """What the reward of each version's answers was, one experience counted once and as it was first judged.

    Experiences that were set aside are left out: one user's flood is not what users think.
    """

    def __init__(self, metrics: LearnerMetrics) -> None:
        self._metrics = metrics
        self._heard: dict[int, _Heard] = {}
        """In the order in which versions were last spoken of."""

    def hear(self, experiences: Iterable[Experience], now_s: float) -> None:
        """Count these, and show what is known now; ``now_s`` is UTC seconds."""
        for experience in experiences:
            if experience.reward is not None and not experience.excluded:
                version = experience.decision.version
                heard = self._heard[version] = self._heard.pop(version, _Heard())
                heard.n += 1
                heard.total += experience.reward
                heard.last_s = now_s
        beyond = len(self._heard) - SHOWN_AT_MOST
        for place, (version, heard) in enumerate(list(self._heard.items())):
            if place < beyond or now_s - heard.last_s >= SHOWN_AFTER_S:
                del self._heard[version]
                for metric in self._metrics.by_version:
                    metric.remove(str(version))
            else:
                self._show(str(version), heard)

    def _show(self, version: str, heard: _Heard) -> None:
        mean = min(1.0, heard.total / heard.n)
        low, high = wilson(mean, heard.n)
        metrics = self._metrics
        metrics.version_satisfaction.labels(version).set(mean)
        metrics.version_satisfaction_low.labels(version).set(low)
        metrics.version_satisfaction_high.labels(version).set(high)
        metrics.version_experiences.labels(version).set(heard.n)
