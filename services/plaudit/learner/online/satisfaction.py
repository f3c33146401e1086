"""Satisfaction of users: lately, beside what was predicted, and with each version, as long as there is feedback on it.

Knows nothing about where experiences come from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from plaudit.core.experience import Experience
from plaudit.learner.metrics import LearnerMetrics
from plaudit_models.evaluation.calibration import reliability
from plaudit_models.evaluation.intervals import wilson

RECENT_REWARDS: Final = 200
"""Number of the latest rewards that are recent."""
SHOWN_FROM: Final = 20
"""Number of rewards from which on a mean of them is shown."""

SHOWN_AT_MOST: Final = 20
"""Largest number of versions shown: those with the latest feedback."""
SHOWN_AFTER_S: Final = 3600.0
"""Time that a version is shown after its latest feedback."""


class RecentSatisfaction:
    """Mean reward of the latest experiences, and of what was predicted for them.

    With few rewards nothing is shown, least of all 0: that nobody has spoken since a restart is no dissatisfaction.

    Args:
        model: name of the model.
    """

    def __init__(self, metrics: LearnerMetrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._rewards: deque[float] = deque(maxlen=RECENT_REWARDS)
        self._predicted: deque[tuple[float, float]] = deque(maxlen=RECENT_REWARDS)

    @property
    def mean(self) -> float | None:
        """Mean reward of the latest experiences; None if there are none."""
        return float(np.mean(self._rewards)) if self._rewards else None

    def add(self, experiences: Iterable[Experience], predicted: Sequence[tuple[float, float]] = ()) -> None:
        """Count experiences that are not excluded, and set the metrics.

        Args:
            predicted: expected reward and reward of those that have both.
        """
        self._rewards.extend(reward for e in experiences if (reward := e.heard_reward) is not None)
        self._predicted.extend(predicted)
        if len(self._rewards) >= SHOWN_FROM:
            self._metrics.satisfaction.labels(self._model).set(float(np.mean(self._rewards)))
        if len(self._predicted) >= SHOWN_FROM:
            expected, rewards = np.clip(np.array(self._predicted, np.float64).T, 0.0, 1.0)
            self._metrics.predicted.labels(self._model).set(float(expected.mean()))
            self._metrics.calibration_error.labels(self._model).set(reliability(expected, rewards).error)


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
            reward = experience.heard_reward
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
