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
from plaudit.core.ports.log import Appended
from plaudit.core.rollout import Rollout
from plaudit.serving.engine.appending import append_each
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
    counted. An append that is repeated adds nothing, because events have ids. An event that the log does not take is
    dropped alone.

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
        while batch and time.monotonic() < self._give_up_s:
            with self._metrics.decision_append_seconds.time():
                outcomes = append_each(self._append, batch)
            outcome_of = list(zip(batch, outcomes, strict=True))
            self._count([(event, outcome) for event, outcome in outcome_of if not isinstance(outcome, LogUnavailable)])
            batch = [event for event, outcome in outcome_of if isinstance(outcome, LogUnavailable)]
            if batch:
                problem = next(str(outcome) for outcome in outcomes if isinstance(outcome, LogUnavailable))
                logger.warning("decisions_wait", problem=problem, waiting=self._queue.qsize() + len(batch))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if batch:
            logger.error("decisions_dropped", count=_decisions(batch))
            self._metrics.decisions_dropped.inc(_decisions(batch))

    def _count(self, outcomes: Sequence[tuple[Recorded, Appended | Exception]]) -> None:
        """Count what is durable and what never will be."""
        refused = [(event, outcome) for event, outcome in outcomes if isinstance(outcome, Exception)]
        if refused:
            logger.error("decisions_dropped", count=len(refused), problem=str(refused[0][1])[:500])
        self._metrics.decisions_dropped.inc(_decisions([event for event, _ in refused]))
        logged = [(event, outcome) for event, outcome in outcomes if isinstance(outcome, Appended)]
        self._metrics.decisions_logged.inc(_decisions([event for event, _ in logged]))
        self._metrics.decisions_without_content.inc(sum(outcome.without_content for _, outcome in logged))


def _decisions(events: Sequence[Recorded]) -> int:
    return sum(isinstance(event, Decision) for event in events)
