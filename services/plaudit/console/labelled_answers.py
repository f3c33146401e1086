"""The latest labelled answers, cached in memory and updated from the learner's store. Only reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from plaudit.console.satisfaction import LabelledAnswer
from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceStore

CACHED: Final = 5_000
"""Largest number of experiences shown."""
_READ_AGAIN: Final = 200
"""Number of the latest experiences that are read again: their labels may change."""
_INTERVAL_S: Final = 1.0


@dataclass(eq=False)
class LabelledAnswers:
    """Cache that several threads may use.

    Attributes:
        open_store: opens the learner's store; None while there is none; called until there is one.
        clock: seconds, monotonic.
    """

    open_store: Callable[[], ExperienceStore | None]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._store: ExperienceStore | None = None
        self._lock = threading.Lock()
        self._by_number: dict[int, Experience] = {}
        self._read_s = -_INTERVAL_S

    def latest(self) -> Sequence[LabelledAnswer]:
        """The latest :data:`CACHED` by time, as of at most a second ago. Raises StoreUnavailable."""
        with self._lock:
            now_s = self.clock()
            self._store = self._store or self.open_store()
            if self._store is not None and now_s - self._read_s >= _INTERVAL_S:
                self._read(self._store)
                self._read_s = now_s
            answers = [
                LabelledAnswer(experience.decision.version, experience.decision.time_s, experience.reward)
                for experience in self._by_number.values()
                if experience.reward is not None
            ]
        return sorted(answers, key=lambda answer: answer.time_s)

    def close(self) -> None:
        """Close the store."""
        with self._lock:
            if self._store is not None:
                self._store.close()

    def _read(self, store: ExperienceStore) -> None:
        known = max(self._by_number, default=0)
        after = known - _READ_AGAIN if known else store.intake_stats().last_number - CACHED
        for experience in store.experiences(after=max(0, after)):
            self._by_number[experience.number] = experience
        for number in sorted(self._by_number)[:-CACHED]:
            del self._by_number[number]
