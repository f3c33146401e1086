"""What every learner does, leader or not: poll → join → save → commit, for the partitions that are its own.

The effects of a batch and the positions of its partitions are saved in one transaction, before the log hears of it;
whatever is killed in between is done again from what was saved, and changes nothing twice. Knows nothing about
learning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from plaudit.core.errors import StoreMoved
from plaudit.core.events import Topic
from plaudit.core.ports.log import Cursor, EventLog, EventReader, Positions, Record
from plaudit.core.ports.store import ExperienceStore
from plaudit.learner.ingest.batch import arrivals, read
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.tracing import LearnerTrace

_GROUP: Final = "plaudit-learner"
TOPICS: Final = (Topic.DECISIONS, Topic.FEEDBACK)

_ATTEMPTS: Final = 3
_LAG_INTERVAL_S: Final = 1.0


class Reading:
    """Takes in what the log says about one model.

    Args:
        log: decisions and feedback come from here; dead letters go there.
        store: gets them.
        model: whose decisions are meant.
        limit: the most records read at once.
        metrics: where to count.
        clock: UTC seconds since the epoch.
        trace: where to say what was joined.
    """

    def __init__(
        self,
        log: EventLog,
        store: ExperienceStore,
        model: str,
        *,
        limit: int,
        metrics: LearnerMetrics,
        clock: Callable[[], float] = time.time,
        trace: LearnerTrace | None = None,
    ) -> None:
        self._log = log
        self._store = store
        self._model = model
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._trace = trace or LearnerTrace()
        self._reader: EventReader | None = None
        self._positions: dict[str, Cursor] = {}
        self._lag_checked_s = -_LAG_INTERVAL_S

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self.close()
        self._reader = self._log.reader(f"{_GROUP}-{self._model}", TOPICS, start=self._saved_positions)

    def close(self) -> None:
        """Let go of the log."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def step(self, actions: Sequence[str], wait_s: float) -> int:
        """Wait for records and take them in; returns how many they were.

        Args:
            actions: the action set.
            wait_s: how long to wait for the first record.

        Raises:
            StoreMoved: another learner has taken in a partition that this one read.
        """
        assert self._reader is not None
        records = self._reader.poll(self._limit, wait_s)
        if records:
            self._take_in(records, actions)
        self._look_at_lag()
        return len(records)

    def _take_in(self, records: Sequence[Record], actions: Sequence[str]) -> None:
        began_ns = time.time_ns()
        positions = {record.partition: record.cursor for record in records}
        since = {name: self._positions[name] for name in positions if name in self._positions}
        for attempt in range(_ATTEMPTS):
            batch = read(records, self._store, self._model, self._clock())
            if batch.dead_letters and attempt == 0:
                self._log.append(batch.dead_letters)
            try:
                self._store.take_in(arrivals(batch, actions, since, positions))
                break
            except StoreMoved:
                # The leader may have judged the silence about one of these meanwhile; then look again.
                if attempt == _ATTEMPTS - 1 or self._have_moved(since, positions):
                    raise
        self._positions |= positions
        assert self._reader is not None
        self._reader.commit(positions)
        self._trace.joined(
            [feedback.traceparent for feedback in batch.feedback.values()],
            [decision.traceparent for decision in batch.decisions.values()],
            began_ns,
        )
        if batch.feedback:
            oldest_s = min(feedback.time_s for feedback in batch.feedback.values())
            self._metrics.join_seconds.observe(max(0.0, self._clock() - oldest_s))
        for outcome, count in batch.outcomes.items():
            self._metrics.events.labels(outcome).inc(count)

    def _saved_positions(self) -> Positions:
        self._positions = dict(self._store.positions())
        return self._positions

    def _have_moved(self, since: Positions, positions: Positions) -> bool:
        saved = self._store.positions()
        return any(saved.get(name) != since.get(name) for name in positions)

    def _look_at_lag(self) -> None:
        assert self._reader is not None
        now_s = time.monotonic()
        if now_s - self._lag_checked_s >= _LAG_INTERVAL_S:
            self._lag_checked_s = now_s
            self._metrics.lag.set(self._reader.lag())
