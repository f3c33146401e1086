"""The latest judged answers, kept in memory and brought up to date from the learner's store. Only reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from plaudit.console.satisfaction import Rewarded
from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceStore

KEPT: Final = 5_000
"""Experiences shown, at most."""
_READ_AGAIN: Final = 200
"""Of the latest experiences: users may change their minds."""
_INTERVAL_S: Final = 1.0


class Judged:
    """Safe to use from several threads.

    Args:
        open_store: gives the learner's store, or None while there is none; asked until there is one.
        clock: seconds, monotonic.
    """

    def __init__(
        self, open_store: Callable[[], ExperienceStore | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_store = open_store
        self._store: ExperienceStore | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._by_number: dict[int, Experience] = {}
        self._read_s = -_INTERVAL_S

    def latest(self) -> Sequence[Rewarded]:
        """The latest :data:`KEPT` in the order of time, as of at most a second ago. Raises StoreUnavailable."""
        with self._lock:
            now_s = self._clock()
            self._store = self._store or self._open_store()
            if self._store is not None and now_s - self._read_s >= _INTERVAL_S:
                self._read(self._store)
                self._read_s = now_s
            rewarded = [
                Rewarded(experience.decision.version, experience.decision.time_s, experience.reward)
                for experience in self._by_number.values()
                if experience.reward is not None
            ]
        return sorted(rewarded, key=lambda one: one.time_s)

    def close(self) -> None:
        """Lets go of the store."""
        with self._lock:
            if self._store is not None:
                self._store.close()

    def _read(self, store: ExperienceStore) -> None:
        known = max(self._by_number, default=0)
        after = max(0, known - _READ_AGAIN) if known else max(0, last_number(store) - KEPT)
        for experience in store.experiences(after=after):
            self._by_number[experience.number] = experience
        for number in sorted(self._by_number)[:-KEPT]:
            del self._by_number[number]


def last_number(store: ExperienceStore) -> int:
    """The number of the last experience, 0 if there is none; found by halving, as numbers have no gaps."""

    def beyond(number: int) -> bool:
        return bool(store.experiences(after=number, limit=1))

    if not beyond(0):
        return 0
    low, high = 0, 1  # low is surpassed, high may be
    while beyond(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if beyond(middle) else (low, middle)
    return high
