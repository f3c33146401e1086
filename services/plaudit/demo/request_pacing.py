"""Pacing of the requests: even, unless the machine is too slow for that.

On a busy machine the learner falls behind the users, and a fine-tuning job ends after the last request. So requests
wait for both, and the demo's results depend on the number of thumbs, not on the speed of the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

JOB_THUMBS: Final = 1_600
"""Largest number of thumbs given while a fine-tuning job trains. A job alone on two cores takes fewer."""
BEHIND_THUMBS: Final = 1_000
"""Largest number of thumbs that the learner has not read; a few dozen on an idle machine."""

SILENT_S: Final = 120.0
"""A learner whose status is older is not waited for: it may have ended for good."""


class RequestPacing:
    """One request every ``interval_s``, from the first :meth:`wait_turn` on.

    Args:
        clock: in seconds.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._started_s: float | None = None
        self._paused_since_s: float | None = None
        self._running = asyncio.Event()
        self._running.set()

    async def wait_turn(self, number: int) -> None:
        """Wait until request ``number``, counted from 0, is due."""
        if self._started_s is None:
            self._started_s = self._clock()
        while True:
            await self._running.wait()
            early_s = self._started_s + number * self._interval_s - self._clock()
            await asyncio.sleep(max(0.0, early_s))
            if early_s <= 0.0:
                return

    def set_paused(self, paused: bool) -> None:
        """While paused no request is due; afterwards they go on at the same interval."""
        if paused and self._paused_since_s is None:
            self._paused_since_s = self._clock()
            self._running.clear()
        elif not paused and self._paused_since_s is not None:
            if self._started_s is not None:
                self._started_s += self._clock() - self._paused_since_s
            self._paused_since_s = None
            self._running.set()


def reason_to_pause(status: Mapping[str, Any], thumbs: int, now_s: float) -> str:
    """Reason for requests to pause, in a few words; empty if they should go on.

    Args:
        status: the learner's status file; empty if there is none yet.
        thumbs: number given so far.
        now_s: UTC seconds since the epoch.
    """
    if not status or now_s - status["time_s"] > SILENT_S:
        return ""
    finetune = status["finetune"] or {}
    if finetune.get("phase") == "training" and thumbs - finetune["snapshot"] >= JOB_THUMBS:
        return "the fine-tuning job, which other programs slow down"
    if thumbs - status["feedback"] >= BEHIND_THUMBS:
        return "the learner, which other programs slow down"
    return ""
