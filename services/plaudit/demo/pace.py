"""When users ask: evenly, unless the machine is too slow for that.

A learner that other programs keep from its work falls behind the users, and a fine-tuning job ends when all have asked.
So the users wait for both, and what they see depends on how many thumbs were given, not on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

JOB_THUMBS: Final = 1_600
"""Thumbs given while a fine-tuning job trains, at most. A job that has two cores to itself takes fewer."""
BEHIND_THUMBS: Final = 1_000
"""Thumbs that the learner has not taken in, at most; a few dozen otherwise."""


class Pace:
    """One request every ``interval_s``, from the first turn that is asked for.

    Args:
        clock: in seconds.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._started_s: float | None = None
        self._held_since_s: float | None = None
        self._free = asyncio.Event()
        self._free.set()

    async def turn(self, number: int) -> None:
        """Return when request ``number``, from 0, is due."""
        if self._started_s is None:
            self._started_s = self._clock()
        while True:
            await self._free.wait()
            early_s = self._started_s + number * self._interval_s - self._clock()
            await asyncio.sleep(max(0.0, early_s))
            if early_s <= 0.0:
                return

    def hold(self, held: bool) -> None:
        """While held no request is due; afterwards they go on as evenly as before."""
        if held and self._held_since_s is None:
            self._held_since_s = self._clock()
            self._free.clear()
        elif not held and self._held_since_s is not None:
            if self._started_s is not None:
                self._started_s += self._clock() - self._held_since_s
            self._held_since_s = None
            self._free.set()


def what_to_wait_for(status: Mapping[str, Any], thumbs: int) -> str:
    """In a few words why users should not go on yet; empty if they should.

    Args:
        status: what the learner says of itself; empty if it has said nothing yet.
        thumbs: given so far.
    """
    if not status:
        return ""
    finetune = status["finetune"] or {}
    if finetune.get("phase") == "training" and thumbs - finetune["snapshot"] >= JOB_THUMBS:
        return "the fine-tuning job, which other programs slow down"
    if thumbs - status["feedback"] >= BEHIND_THUMBS:
        return "the learner, which other programs slow down"
    return ""
