"""EventLog in one SQLite file: the embedded default, shared by the processes of one machine.

One table holds all topics in one total order: one partition, whose cursor is one integer. SQLite has one writer at a
time and gives ids in commit order: a reader of ``id > cursor`` misses nothing. Knows nothing about what events
mean.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from plaudit.adapters import sqlite_errors
from plaudit.adapters.log.encoding import payload_of
from plaudit.adapters.wal import use_wal
from plaudit.core.errors import InvalidInput, LogDamaged, LogUnavailable
from plaudit.core.events import Event, Feedback, Topic, event_id_of, key_of, time_of, topic_of
from plaudit.core.limits import MAX_POLL_BYTES, MAX_SHOWN_CHARACTERS
from plaudit.core.ports.log import Appended, AppendOutcome, Cursor, Positions, Record, UnreadableRecord
from plaudit.core.wire import UnreadableEvent, decode_event

PARTITION: Final = "0"
"""Name of the only partition."""

_BUSY_TIMEOUT_S: Final = 10.0
_POLL_INTERVAL_S: Final = 0.01
_MEND: Final = "put it back from a backup, or move it away and begin with an empty log"

_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    event_id TEXT NOT NULL,
    key TEXT NOT NULL,
    time_s REAL NOT NULL,
    payload BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS events_once ON events (topic, event_id);
CREATE INDEX IF NOT EXISTS events_seldom ON events (id) WHERE topic NOT IN ('plaudit.decisions', 'plaudit.feedback');
CREATE TABLE IF NOT EXISTS cursors (reader TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
COMMIT;
"""
_NAMES: Final = ("events", "events_once", "events_seldom", "cursors")
_INSERT: Final = """
INSERT INTO events (topic, event_id, key, time_s, payload) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (topic, event_id) DO NOTHING
"""

_PAYLOAD: Final = "SELECT payload FROM events WHERE topic = ? AND event_id = ?"
_INSERT_AGAIN: Final = "INSERT OR REPLACE INTO events (topic, event_id, key, time_s, payload) VALUES (?, ?, ?, ?, ?)"

_Row = tuple[str, str, str, float, bytes]

_TOPIC: Final = {topic.value: topic for topic in Topic}
_TOPICS: Final = ", ".join(f"'{topic}'" for topic in Topic)
_OFTEN: Final = (Topic.DECISIONS, Topic.FEEDBACK)
_BY_ID: Final = ("NOT INDEXED", "")
"""Query parts for other readers: SQLite would look the topics up in the index by event id, and sort the whole log."""
_SELDOM: Final = ("INDEXED BY events_seldom", "AND topic NOT IN ('plaudit.decisions', 'plaudit.feedback')")
"""Query parts for readers of none of these topics: their few records are found by the partial index."""


class SqliteLog:
    """See :class:`plaudit.core.ports.log.EventLog`.

    Appends that arrive while another is being committed share the next transaction, so one disk flush serves them all.
    Every caller waits for its own commit.

    Args:
        path: the file; made if it is not there, in a folder that is.
        synchronous: FULL survives power loss, NORMAL only the death of a process.
        limit_bytes: an append that would make what the file holds larger fails; None: the disk is the limit.

    Raises:
        LogUnavailable: the file cannot be opened, written, or is no SQLite file.
    """

    def __init__(
        self, path: Path, synchronous: Literal["FULL", "NORMAL"] = "FULL", limit_bytes: int | None = None
    ) -> None:
        self._path = path
        self._synchronous = synchronous
        self._waiting: deque[_Append] = deque()
        self._write_lock = threading.Lock()
        with _log_errors(path):
            self._connection = _connect(path, synchronous)
            _make_tables(self._connection)
            if limit_bytes is not None:
                page_bytes = self._connection.execute("PRAGMA page_size").fetchone()[0]
                self._connection.execute(f"PRAGMA max_page_count = {limit_bytes // page_bytes}")

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        mine = _Append([_row(event) for event in events])
        self._waiting.append(mine)
        with self._write_lock:
            # The thread that held the lock before may have committed these rows with its own.
            if not mine.done:
                self._commit([self._waiting.popleft() for _ in range(len(self._waiting))])
        if mine.problem is not None:
            raise LogUnavailable(mine.problem)
        return mine.appended

    def replay(self, events: Sequence[Event]) -> None:
        """Events that are there already move to the end."""
        with _log_errors(self._path), self._write_lock, _transaction(self._connection):
            rows = [row for event in events if not isinstance(row := _row(event), InvalidInput)]
            self._connection.executemany(_INSERT_AGAIN, rows)

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> SqliteReader:
        return SqliteReader(self._path, self._synchronous, group, topics, None if start is None else start())

    def feedback_recorded(self, feedback_id: str) -> float | None:
        with _log_errors(self._path), self._write_lock:
            row = self._connection.execute(
                "SELECT time_s FROM events WHERE topic = ? AND event_id = ?", (Topic.FEEDBACK, feedback_id)
            ).fetchone()
        return None if row is None else float(row[0])

    def remove(self, through: Cursor) -> None:
        """Remove the record of this cursor and all before it."""
        with _log_errors(self._path), self._write_lock:
            self._connection.execute("DELETE FROM events WHERE id <= ?", (_position({PARTITION: through}),))

    def count(self) -> int:
        """Number of events in the file, without those of topics that only other releases know."""
        return int(self._one(f"SELECT count(*) FROM events WHERE topic IN ({_TOPICS})"))

    def oldest_s(self) -> float | None:
        """Time of the first of these events, UTC seconds; None if there are none."""
        query = f"SELECT (SELECT time_s FROM events WHERE topic IN ({_TOPICS}) ORDER BY id LIMIT 1)"
        return self._one(query)  # type: ignore[no-any-return]

    def close(self) -> None:
        with self._write_lock:
            self._connection.close()

    def _one(self, query: str) -> Any:
        with _log_errors(self._path), self._write_lock:
            return self._connection.execute(query).fetchone()[0]

    def _commit(self, group: Sequence[_Append]) -> None:
        """One transaction for the whole group; all of it succeeds or none does.

        Where it is too large for what is left of the file, each caller gets a transaction of its own.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            appended = [[self._insert(row) for row in each.rows] for each in group]
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if len(group) > 1 and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                for each in group:
                    self._commit([each])
                return
            for each in group:
                each.fail(sqlite_errors.explain(self._path, error, _MEND))
            if not isinstance(error, sqlite3.Error):
                raise
        else:
            for each, outcome in zip(group, appended, strict=True):
                each.succeed(outcome)

    def _insert(self, row: _Row | InvalidInput) -> AppendOutcome:
        if isinstance(row, InvalidInput):
            return row
        try:
            if self._connection.execute(_INSERT, row).rowcount == 0:
                return Appended(duplicate=True, other=self._holds_other(row))
            return Appended(duplicate=False)
        except (sqlite3.DataError, OverflowError) as error:  # too large for any file: the transaction goes on
            return InvalidInput(f"{row[0]} {row[1][:MAX_SHOWN_CHARACTERS]!r}", f"cannot be written: {error}")

    def _holds_other(self, row: _Row) -> bool:
        """True if the feedback of the row's id is other feedback; when it came is no part of it."""
        topic, event_id, _, _, payload = row
        if topic != Topic.FEEDBACK:
            return False
        found = self._connection.execute(_PAYLOAD, (topic, event_id)).fetchone()
        if found is None or found[0] == payload:
            return False
        try:
            present, given = (decode_event(Topic.FEEDBACK, each) for each in (found[0], payload))
        except UnreadableEvent:
            return True
        assert isinstance(present, Feedback)
        assert isinstance(given, Feedback)
        return replace(present, time_s=given.time_s, traceparent=given.traceparent) != given


class SqliteReader:
    """See :class:`plaudit.core.ports.log.EventReader`. Has its own connection, so it never waits for a writer.

    Raises:
        LogUnavailable: the file cannot be read.
        ValueError: ``start`` holds a cursor that is not of this adapter.
    """

    def __init__(
        self,
        path: Path,
        synchronous: Literal["FULL", "NORMAL"],
        group: str,
        topics: Sequence[Topic],
        start: Positions | None,
    ) -> None:
        self._path = path
        self._group = group
        self._topics = list(topics)
        self._topics_marks = ", ".join("?" for _ in topics)
        self._by, self._but = _BY_ID if set(topics) & set(_OFTEN) else _SELDOM
        with _log_errors(path):
            self._connection = _connect(path, synchronous)
            self._position = self._committed() if start is None else _position(start)

    def poll(self, limit: int, timeout_s: float) -> Sequence[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            with _log_errors(self._path):
                records = self._next(limit)
            if records or time.monotonic() >= deadline:
                return records
            time.sleep(min(_POLL_INTERVAL_S, max(0.0, deadline - time.monotonic())))

    def commit(self, positions: Positions) -> None:
        with _log_errors(self._path):
            self._connection.execute(
                "INSERT INTO cursors (reader, position) VALUES (?, ?) "
                "ON CONFLICT (reader) DO UPDATE SET position = excluded.position",
                (self._group, _position(positions)),
            )

    def lag(self) -> int:
        with _log_errors(self._path):
            count = self._connection.execute(
                f"SELECT count(*) FROM events {self._by} WHERE id > ? {self._but} AND topic IN ({self._topics_marks})",
                (self._position, *self._topics),
            ).fetchone()
        return int(count[0])

    def close(self) -> None:
        self._connection.close()

    def _next(self, limit: int) -> list[Record]:
        last = self._connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
        if last <= self._position:
            return []
        found = self._connection.execute(
            f"SELECT id, topic, payload FROM events {self._by} WHERE id > ? AND id <= ? {self._but} "
            f"AND topic IN ({self._topics_marks}) ORDER BY id LIMIT ?",
            (self._position, last, *self._topics, limit),
        )
        rows, size, cut = [], 0, False
        for row in found:
            rows.append(row)
            size += len(row[2])
            if size >= MAX_POLL_BYTES:
                cut = True
                break
        found.close()
        # Records up to `last` that are not in `rows` are of other topics: they are never read again.
        self._position = rows[-1][0] if cut or len(rows) == limit else last
        return [_record(str(id_), _TOPIC[topic], payload) for id_, topic, payload in rows]

    def _committed(self) -> int:
        row = self._connection.execute("SELECT position FROM cursors WHERE reader = ?", (self._group,)).fetchone()
        return 0 if row is None else int(row[0])


class _Append:
    """Rows of one caller, until they are committed."""

    def __init__(self, rows: Sequence[_Row | InvalidInput]) -> None:
        self.rows = rows
        self.done = False
        self.appended: Sequence[AppendOutcome] = ()
        self.problem: str | None = None

    def succeed(self, appended: Sequence[AppendOutcome]) -> None:
        self.appended, self.done = appended, True

    def fail(self, problem: str) -> None:
        self.problem, self.done = problem, True


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """A connection in autocommit mode. Threads may share it: its users hold a lock, or are one thread."""
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        use_wal(connection, _BUSY_TIMEOUT_S)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    """Make what is not there. Where all is, nothing is written: a writer that is stopped must not keep others out."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if not names >= set(_NAMES):
        connection.executescript(_SCHEMA)


@contextmanager
def _log_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _problem(path, error) from error


def _problem(path: Path, error: sqlite3.Error) -> LogUnavailable:
    damage = LogDamaged if sqlite_errors.is_damaged(error) else LogUnavailable
    return damage(sqlite_errors.explain(path, error, _MEND))


def _row(event: Event) -> _Row | InvalidInput:
    payload = payload_of(event)
    if isinstance(payload, InvalidInput):
        return payload
    return topic_of(event), event_id_of(event), key_of(event), time_of(event), payload


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _record(cursor: Cursor, topic: Topic, payload: bytes) -> Record:
    return Record(topic, cursor, PARTITION, cursor, _event(topic, payload))


def _event(topic: Topic, payload: bytes) -> Event | UnreadableRecord:
    try:
        return decode_event(topic, payload)
    except UnreadableEvent as error:
        return UnreadableRecord(payload, str(error))


def _position(positions: Positions) -> int:
    cursor = positions.get(PARTITION, "0")
    if not cursor.isdecimal():
        raise ValueError(f"cursor {cursor!r} is not one of a SQLite log")
    return int(cursor)
