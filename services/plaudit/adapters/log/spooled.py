"""EventLog that accepts events while another one is unavailable: in a bounded spool file, and from there later.

While the inner log answers, appends go straight to it. Once one fails, or takes too long, events are made durable in a
spool, and a thread appends what is spooled to the inner log, in order, as soon as it is back. Events that come
meanwhile queue behind them. Events of the spool may reach the inner log twice, if this process or the inner log dies
between append and removal; readers drop them by their ids. Knows nothing about what events mean.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

import structlog

from plaudit.adapters.file_lock import locked
from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.errors import InvalidInput, LogUnavailable
from plaudit.core.events import DeadLetter, Event, Topic
from plaudit.core.ports.log import Appended, AppendOutcome, EventLog, EventReader, Positions, Record, UnreadableRecord
from plaudit.core.wire import encode_event

_BATCH: Final = 256
_APPENDS: Final = 32
"""Concurrent appends to the inner log; one more waits, and goes into the spool if it waits too long."""

logger = structlog.get_logger(__name__)


class SpooledLog:
    """See :class:`plaudit.core.ports.log.EventLog`.

    Args:
        inner: the log that gets all events; closed with this one.
        folder: folder of the spool; made if it is not there. Several processes may share it: each has a file of its
            own, and the next process to start takes over the files of those that are gone.
        limit_bytes: largest size of the spool.
        after_s: longest time of an append to the inner log; after it, this one and all others go into the spool.
        pause_s: pause between attempts to append the spooled events to the inner log.
        synchronous: FULL survives power loss, NORMAL only the death of a process.

    Raises:
        LogUnavailable: the spool cannot be opened.
    """

    def __init__(
        self,
        inner: EventLog,
        folder: Path,
        *,
        limit_bytes: int,
        after_s: float,
        pause_s: float = 0.5,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
    ) -> None:
        self._inner = inner
        self._limit_bytes = limit_bytes
        self._after_s = after_s
        self._pause_s = pause_s
        self._problem = "events spooled before the start are not in the log yet"
        self._slot = ProcessSlot(folder)
        own = folder / f"{self._slot.number}.sqlite"
        try:
            self._spool = SqliteLog(own, synchronous, limit_bytes)
            _take_over(folder, own, self._spool)
            self._spooled = self._spool.count()
        except LogUnavailable:
            self._slot.release()
            raise
        self._reader = self._spool.reader("spool", tuple(Topic), start=dict)
        self._changed = threading.Condition()
        self._direct = self._spooled == 0
        self._prompt = True
        self._closing = False
        self._appends = ThreadPoolExecutor(_APPENDS, thread_name_prefix="append")
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        """Raises LogUnavailable where the spool is full, too."""
        if self._direct:
            appending = self._appends.submit(self._inner.append, events)
            try:
                return appending.result(self._after_s)
            except LogUnavailable as error:
                self._start_spooling(error.problem)
            except TimeoutError:
                appending.cancel()
                self._start_spooling(f"no answer within {self._after_s:g} s (log.spool_after_s)")
        return self._append_to_spool(events)

    def replay(self, events: Sequence[Event]) -> None:
        """Never spooled: the caller must know whether it was done."""
        self._inner.replay(events)

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> EventReader:
        return self._inner.reader(group, topics, start)

    def feedback_recorded(self, feedback_id: str) -> float | None:
        recorded_s = self._spool.feedback_recorded(feedback_id)
        return self._inner.feedback_recorded(feedback_id) if recorded_s is None else recorded_s

    def spooled(self) -> int:
        """Number of events that the inner log does not have yet."""
        return self._spooled

    def age_s(self) -> float:
        """Age of the oldest of them; 0 if there are none."""
        oldest_s = self._spool.oldest_s()
        return 0.0 if oldest_s is None else max(0.0, time.time() - oldest_s)

    def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is spooled; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._spooled == 0, timeout_s)

    def close(self) -> None:
        """Spooled events stay, for the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._appends.shutdown()
        self._thread.join()
        self._inner.close()
        self._reader.close()
        self._spool.close()
        self._slot.release()

    # --- into the spool ----------------------------------------------------------------------------------------------

    def _start_spooling(self, problem: str) -> None:
        with self._changed:
            self._problem = problem
            if self._direct:
                self._direct = False
                logger.warning("log_away", problem=problem)
            self._changed.notify_all()

    def _append_to_spool(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        with self._changed:
            # Counted before they are there, so that no append goes to the inner log before them.
            self._direct = False
            self._spooled += len(events)
        added = 0
        try:
            appended = self._spool.append(events)
            added = sum(isinstance(each, Appended) and not each.duplicate for each in appended)
        except LogUnavailable as error:
            raise LogUnavailable(
                f"{self._problem}; nor does it fit into the spool, which holds {self._spooled - len(events)} events "
                f"and may have {self._limit_bytes} bytes (log.spool_limit_bytes): {error.problem}"
            ) from error
        finally:
            self._uncount(len(events) - added)
        return appended

    def _uncount(self, events: int) -> None:
        with self._changed:
            self._spooled -= events
            if self._spooled == 0 and not self._direct and self._prompt:
                self._direct = True
                logger.info("log_back")
            self._changed.notify_all()

    # --- out of the spool --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._spooled or self._closing)
            if self._closing:
                return
            try:
                records = self._reader.poll(_BATCH, self._pause_s)
                if records:
                    self._forward(records)
            except LogUnavailable as error:  # the spool's own file
                logger.warning("spool_unreadable", problem=error.problem)
                self._pause()

    def _forward(self, records: Sequence[Record]) -> None:
        """Append to the inner log, retrying until it succeeds; then remove from the spool."""
        while not self._closing:
            began_s = time.monotonic()
            try:
                self._append_to_inner(records)
                # A log that has become slow would keep every other append waiting if it were tried again at once.
                self._prompt = time.monotonic() - began_s < self._after_s
                break
            except LogUnavailable as error:
                self._problem = error.problem
                self._pause()
            except Exception:  # unexpected, but acknowledged events must not wait for a restart
                logger.exception("spool_cannot_be_appended")
                if len(records) > 1:
                    for record in records:
                        self._forward([record])
                    return
                if self._bury(records[0]):
                    break
                self._pause()
        else:
            return
        self._remove(records)

    def _remove(self, records: Sequence[Record]) -> None:
        while True:
            try:
                self._spool.remove(records[-1].cursor)
            except LogUnavailable as error:
                logger.warning("spool_cannot_be_shortened", problem=error.problem)
                if self._closing:
                    return
                self._pause()
            else:
                self._uncount(len(records))
                return

    def _append_to_inner(self, records: Sequence[Record]) -> None:
        events = [_event(record) for record in records]
        outcomes = self._inner.append(events)
        refused = [
            _dead(record, encode_event(event), str(outcome))
            for record, event, outcome in zip(records, events, outcomes, strict=True)
            if isinstance(outcome, InvalidInput)
        ]
        if refused:
            self._inner.append(refused)

    def _bury(self, record: Record) -> bool:
        """Append a dead letter in place of an event that fails where others do not; True if that was done."""
        try:
            self._inner.append([_dead(record, encode_event(_event(record)), "the log failed on this event")])
        except Exception:  # it is the log that fails, not the event
            return False
        return True

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._pause_s)


def _event(record: Record) -> Event:
    if isinstance(record.event, UnreadableRecord):
        return _dead(record, record.event.payload, record.event.problem)
    return record.event


def _dead(record: Record, payload: bytes, reason: str) -> DeadLetter:
    return DeadLetter(record.topic, f"spool {record.position}", reason, payload, time.time())


def _take_over(folder: Path, own: Path, spool: SqliteLog) -> None:
    """Move the events of processes that are gone into ``spool``."""
    for path in sorted(folder.glob("*.sqlite")):
        if path == own or (lock := locked(path.with_suffix(".lock"))) is None:
            continue
        try:
            with contextlib.closing(SqliteLog(path)) as left:
                _move(left, spool)
        finally:
            os.close(lock)


def _move(left: SqliteLog, spool: SqliteLog) -> None:
    with contextlib.closing(left.reader("spool", tuple(Topic), start=dict)) as reader:
        while records := reader.poll(_BATCH, 0.0):
            spool.append([_event(record) for record in records])
            left.remove(records[-1].cursor)
