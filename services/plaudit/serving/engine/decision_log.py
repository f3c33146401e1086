"""Logs decisions off the request path: an answer never waits for the log.

Knows nothing about how decisions are made.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Final

import structlog

from plaudit.core.errors import LogUnavailable
from plaudit.core.events import Decision, ExperimentReport
from plaudit.core.rollout import Rollout
from plaudit.serving.telemetry.appends import Append
from plaudit.serving.telemetry.metrics import ServingMetrics

_BATCH: Final = 256
_LINGER_S: Final = 0.05
"""How long a decision may wait for others: a commit costs the same for one and for many."""
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0

Recorded = Decision | Rollout | ExperimentReport

logger = structlog.get_logger(__name__)


class DecisionLog:
    """A bounded queue and a thread that appends to the event log.

    While the log is away, it tries again, with growing pauses, and the queue fills; what does not fit is dropped and
    counted. An append that is repeated adds nothing, because events have ids.

    Args:
        append: of the event log.
        queue_limit: events that may wait.
    """

    def __init__(self, append: Append, metrics: ServingMetrics, *, queue_limit: int) -> None:
        self._append = append
        self._metrics = metrics
        self._queue_limit = queue_limit
        self._queue: SimpleQueue[Recorded | None] = SimpleQueue()
        self._closing = threading.Event()
        self._give_up_s = math.inf
        self._thread = threading.Thread(target=self._work, name="decision-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def record(self, event: Recorded) -> None:
        """Returns at once."""
        if self._queue.qsize() >= self._queue_limit:
            # Not written to the service's own log: that would fill as fast as requests come.
            self._metrics.decisions_dropped.inc(_decisions([event]))
        else:
            self._queue.put(event)

    def waiting(self) -> int:
        """Number of events that wait."""
        return self._queue.qsize()

    def close(self, timeout_s: float) -> None:
        """Log what waits, for up to ``timeout_s`` if the log is away; what is left is dropped and counted."""
        self._give_up_s = time.monotonic() + timeout_s
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            self._closing.wait(_LINGER_S)
            while len(batch) < _BATCH:
                try:
                    following = self._queue.get_nowait()
                except Empty:
                    break
                if following is None:
                    self._queue.put(None)
                    break
                batch.append(following)
            self._append_all(batch)

    def _append_all(self, batch: Sequence[Recorded]) -> None:
        pause_s = _FIRST_PAUSE_S
        while time.monotonic() < self._give_up_s:
            try:
                with self._metrics.decision_append_seconds.time():
                    self._append(batch)
            except LogUnavailable as error:
                logger.warning("decisions_wait", problem=str(error), waiting=self._queue.qsize() + len(batch))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception:
                logger.exception("decisions_cannot_be_logged")
                break
            else:
                self._metrics.decisions_logged.inc(_decisions(batch))
                return
        logger.error("decisions_dropped", count=_decisions(batch))
        self._metrics.decisions_dropped.inc(_decisions(batch))


def _decisions(events: Sequence[Recorded]) -> int:
    return sum(isinstance(event, Decision) for event in events)
