"""The part of every learner, leader or not: poll → join → save → commit, for the partitions that are its own.

The effects of a batch and the positions of its partitions are saved in one transaction, before they are committed to
the log; after a kill in between, reading continues from what was saved, and nothing counts twice. Knows nothing about
learning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from plaudit.core.errors import Conflict, StoreMoved, Unavailable, WrongLog
from plaudit.core.events import Topic
from plaudit.core.ports.log import Cursor, EventLog, EventReader, Positions, Record
from plaudit.core.ports.store import IngestStore
from plaudit.learner.ingest.batch import decode_batch, ingest_batch, unjoinable
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.tracing import LearnerTrace

_GROUP: Final = "plaudit-learner"
TOPICS: Final = (Topic.DECISIONS, Topic.FEEDBACK)

_ATTEMPTS: Final = 3
_MAX_PROBLEM: Final = 200
_log = structlog.get_logger("plaudit.learner")
_LAG_INTERVAL_S: Final = 1.0


@dataclass(kw_only=True, eq=False)
class LogConsumer:
    """Reads the records of one model and saves their effects.

    Attributes:
        log: decisions and feedback come from here; dead letters go there.
        model: name of the model; records of others are passed over.
        limit: largest number of records of one batch.
        clock: UTC seconds since the epoch.
        trace: records a span per batch.
    """

    log: EventLog
    store: IngestStore
    model: str
    limit: int
    metrics: LearnerMetrics
    clock: Callable[[], float]
    trace: LearnerTrace
    _reader: EventReader | None = field(default=None, init=False)
    _positions: dict[str, Cursor] = field(default_factory=dict, init=False)
    _lag_checked_s: float = field(default=-_LAG_INTERVAL_S, init=False)

    def load(self) -> None:
        """Start, or start again, at the saved positions.

        Raises:
            WrongLog: they are of another log.
        """
        self.close()
        try:
            self._reader = self.log.reader(f"{_GROUP}-{self.model}", TOPICS, start=self._saved_positions)
        except ValueError as error:
            raise WrongLog(str(error)) from error

    def close(self) -> None:
        """Close the reader of the log."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def step(self, actions: Sequence[str], wait_s: float) -> int:
        """Wait for records and save their effects; returns the number of records.

        Args:
            wait_s: longest time to wait for the first record.

        Raises:
            StoreMoved: another learner has saved records of a partition that this one read.
        """
        assert self._reader is not None
        records = self._reader.poll(self.limit, wait_s)
        if records:
            self._save_each(records, actions)
        self._measure_lag()
        return len(records)

    def _save_each(self, records: Sequence[Record], actions: Sequence[str]) -> None:
        """Save the records together; where one of them fails, it is found by halves and becomes a dead letter."""
        try:
            self._save(records, actions)
        except (Conflict, Unavailable, OSError):
            raise  # of no record
        except Exception as error:
            if len(records) > 1:
                middle = len(records) // 2
                self._save_each(records[:middle], actions)
                self._save_each(records[middle:], actions)
                return
            (record,) = records
            # Without a traceback: those of many such records would cost more than the records.
            problem = f"{type(error).__name__}: {str(error)[:_MAX_PROBLEM]}"
            _log.error("record cannot be joined", topic=record.topic, position=record.position, problem=problem)
            self._save([unjoinable(record, error)], actions)

    def _save(self, records: Sequence[Record], actions: Sequence[str]) -> None:
        began_ns = time.time_ns()
        positions = {record.partition: record.cursor for record in records}
        since = {name: self._positions[name] for name in positions if name in self._positions}
        for attempt in range(_ATTEMPTS):
            clock_s = self.clock()
            batch = decode_batch(records, self.store, self.model, clock_s)
            if batch.dead_letters and attempt == 0:
                self.log.append(batch.dead_letters)
            try:
                self.store.save_batch(ingest_batch(batch, actions, since, positions, clock_s))
                break
            except StoreMoved:
                # The leader may have labelled one of these as silent meanwhile; then the store is read again.
                if attempt == _ATTEMPTS - 1 or self._have_moved(since, positions):
                    raise
        self._positions |= positions
        assert self._reader is not None
        self._reader.commit(positions)
        self.trace.joined(batch.feedback.values(), batch.decisions.values(), began_ns)
        if batch.feedback:
            oldest_s = min(feedback.time_s for feedback in batch.feedback.values())
            self.metrics.join_seconds.observe(max(0.0, self.clock() - oldest_s))
        for outcome, count in batch.outcomes.items():
            self.metrics.events.labels(outcome).inc(count)

    def _saved_positions(self) -> Positions:
        self._positions = dict(self.store.positions())
        return self._positions

    def _have_moved(self, since: Positions, positions: Positions) -> bool:
        saved = self.store.positions()
        return any(saved.get(name) != since.get(name) for name in positions)

    def _measure_lag(self) -> None:
        assert self._reader is not None
        now_s = time.monotonic()
        if now_s - self._lag_checked_s >= _LAG_INTERVAL_S:
            self._lag_checked_s = now_s
            self.metrics.lag.set(self._reader.lag())
