"""EventLog that goes on taking events while another one is away: into a bounded file, and on from there.

While the inner log answers, appends go straight to it. Once one fails, or takes too long, events are made durable in a
spool, and a thread appends what is spooled to the inner log, in order, as soon as it is back. What comes meanwhile goes
behind it. Events of the spool may reach the inner log twice, if this process or the inner log dies between append and
removal; whoever reads drops them by their ids. Knows nothing about what events mean.
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

from plaudit.adapters.log.process_slot import ProcessSlot, locked
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.errors import InvalidInput, LogUnavailable
from plaudit.core.events import DeadLetter, Event, Topic
from plaudit.core.ports.log import Appended, EventLog, EventReader, Positions, Record, UnreadableRecord
from plaudit.core.wire import encode_event

_BATCH: Final = 256
_APPENDS: Final = 32
"""To the inner log at once; one more waits, and goes into the spool if it waits too long."""

logger = structlog.get_logger(__name__)


class SpooledLog:
    """See :class:`plaudit.core.ports.log.EventLog`.

    Args:
        inner: the log that is meant; closed with this one.
        folder: where the spool is; made if it is not there. Several processes may share it: each has a file of its own,
            and what one left behind that is gone goes on with whoever starts next.
        limit_bytes: the most that the spool may hold.
        after_s: how long an append to the inner log may take before it goes into the spool, and all others after it.
        pause_s: between attempts to hand on what is spooled.
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
        self._problem = "what was spooled before the start is not handed on yet"
        self._seat = ProcessSlot(folder)
        own = folder / f"{self._seat.number}.sqlite"
        try:
            self._spool = SqliteLog(own, synchronous, limit_bytes)
            _adopt(folder, own, self._spool)
            self._spooled = self._spool.count()
        except LogUnavailable:
            self._seat.leave()
            raise
        self._reader = self._spool.reader("spool", tuple(Topic), start=dict)
        self._changed = threading.Condition()
        self._direct = self._spooled == 0
        self._prompt = True
        self._closing = False
        self._appends = ThreadPoolExecutor(_APPENDS, thread_name_prefix="append")
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()

    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        """Raises LogUnavailable where the spool is full, too."""
        if self._direct:
            appending = self._appends.submit(self._inner.append, events)
            try:
                return appending.result(self._after_s)
            except LogUnavailable as error:
                self._begin_to_spool(error.problem)
            except TimeoutError:
                appending.cancel()
                self._begin_to_spool(f"no answer within {self._after_s:g} s (log.spool_after_s)")
        return self._append_to_spool(events)

    def replay(self, events: Sequence[Event]) -> None:
        """Never spooled: whoever replays is told whether it was done."""
        self._inner.replay(events)

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> EventReader:
        return self._inner.reader(group, topics, start)

    def feedback_recorded(self, feedback_id: str) -> float | None:
        recorded_s = self._spool.feedback_recorded(feedback_id)
        return self._inner.feedback_recorded(feedback_id) if recorded_s is None else recorded_s

    def spooled(self) -> int:
        """Events that the inner log does not have yet."""
        return self._spooled

    def age_s(self) -> float:
        """How long ago the oldest of them was; 0 if there are none."""
        oldest_s = self._spool.oldest_s()
        return 0.0 if oldest_s is None else max(0.0, time.time() - oldest_s)

    def drained(self, timeout_s: float) -> bool:
        """Waits until nothing is spooled; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._spooled == 0, timeout_s)

    def close(self) -> None:
        """What is spooled stays, for the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._appends.shutdown()
        self._thread.join()
        self._inner.close()
        self._reader.close()
        self._spool.close()
        self._seat.leave()

    # --- into the spool ----------------------------------------------------------------------------------------------

    def _begin_to_spool(self, problem: str) -> None:
        with self._changed:
            self._problem = problem
            if self._direct:
                self._direct = False
                logger.warning("log_away", problem=problem)
            self._changed.notify_all()

    def _append_to_spool(self, events: Sequence[Event]) -> Sequence[Appended]:
        with self._changed:
            # Counted before they are there: the way to the inner log opens only when nobody is on the way here.
            self._direct = False
            self._spooled += len(events)
        added = 0
        try:
            appended = self._spool.append(events)
            added = sum(not each.duplicate for each in appended)
        except LogUnavailable as error:
            raise LogUnavailable(
                f"{self._problem}; nor can the spool take it, which holds {self._spooled - len(events)} events and may "
                f"have {self._limit_bytes} bytes (log.spool_limit_bytes): {error.problem}"
            ) from error
        finally:
            self._count_out(len(events) - added)
        return appended

    def _count_out(self, events: int) -> None:
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
                    self._hand_on(records)
            except LogUnavailable as error:  # of the spool's own file
                logger.warning("spool_unreadable", problem=error.problem)
                self._pause()

    def _hand_on(self, records: Sequence[Record]) -> None:
        """To the inner log, as often as it takes, and then out of the spool."""
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
            except Exception:  # nothing that is known to happen, but what was acknowledged must not wait for a restart
                logger.exception("spool_cannot_be_appended")
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
                self._count_out(len(records))
                return

    def _append_to_inner(self, records: Sequence[Record]) -> None:
        events = [_event(record) for record in records]
        try:
            self._inner.append(events)
        except InvalidInput:
            for record, event in zip(records, events, strict=True):
                try:
                    self._inner.append([event])
                except InvalidInput as error:
                    self._inner.append([_dead(record, encode_event(event), str(error))])

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._pause_s)


def _event(record: Record) -> Event:
    if isinstance(record.event, UnreadableRecord):
        return _dead(record, record.event.payload, record.event.problem)
    return record.event


def _dead(record: Record, payload: bytes, reason: str) -> DeadLetter:
    return DeadLetter(record.topic, f"spool {record.position}", reason, payload, time.time())


def _adopt(folder: Path, own: Path, spool: SqliteLog) -> None:
    """Move into ``spool`` what processes left behind that are gone."""
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
