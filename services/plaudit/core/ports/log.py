"""Ports of the event log: appending and reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Event, Topic

Cursor = str
"""Position in one partition of a log. Opaque: only the adapter that made it can read it."""


Positions = Mapping[str, Cursor]
"""Cursors at which reading continues, by partition; a partition without one is read from its beginning."""


@dataclass(frozen=True, slots=True)
class Appended:
    """Result of appending one event.

    Attributes:
        duplicate: True: the log already holds an event of this topic and id; nothing was added. A log without look-up
            by id (Kafka) only knows those it appended itself not long ago; others are added again, for readers to drop.
        other: True: what the log holds under that id has other contents. Kafka, without look-up, does not say.
        without_content: True: the event is a decision that was too large, and was added without its content.
    """

    duplicate: bool
    without_content: bool = False
    other: bool = False


AppendOutcome = Appended | InvalidInput
"""Outcome of one event; InvalidInput where the log does not take it: it is too large, or cannot be written."""


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """A record whose payload is not an event."""

    payload: bytes
    problem: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log.

    Attributes:
        position: position for people and dead letters; it names the same record for ever.
        partition: partition of the log, over all topics; all records of one key are in one.
        cursor: cursor at which reading the partition continues after this record.
    """

    topic: Topic
    position: str
    partition: str
    cursor: Cursor
    event: Event | UnreadableRecord


class EventReader(Protocol):
    """Reads in order per partition and topic, each record at least once.

    Records that the log lost before they were read are reported once, by an UnreadableRecord without payload.

    Readers of one group share the partitions where the log has several; the assignment may change with every poll.
    """

    def poll(self, limit: int, timeout_s: float) -> Sequence[Record]:
        """The next records, at most ``limit``; waits up to ``timeout_s`` for the first one."""
        ...

    def commit(self, positions: Positions) -> None:
        """Commit positions up to which the effects of reading are saved; never before they are."""
        ...

    def lag(self) -> int:
        """Number of records after the last one polled, in the partitions of this reader."""
        ...

    def close(self) -> None: ...


class EventLog(Protocol):
    """An append-only log with one topic per kind of event. Safe to use from several threads."""

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        """Make events durable; when this returns they survive kill -9, but for those that the log does not take.

        Raises:
            LogUnavailable: they are not known to be durable. A log without transactions (Kafka) may hold some of them;
                appending them again is safe.
        """
        ...

    def replay(self, events: Sequence[Event]) -> None:
        """Append events that the log may hold already, so that readers read them again.

        Raises:
            LogUnavailable: not all were appended.
        """
        ...

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> EventReader:
        """A reader of ``topics``.

        Args:
            start: returns the positions of newly assigned partitions, called within ``poll`` too; None: those of the
                group's last commit. ``dict`` reads everything.
        """
        ...

    def feedback_recorded(self, feedback_id: str) -> float | None:
        """Time (UTC seconds) at which this feedback was recorded; None if it was not, or if the log cannot tell."""
        ...

    def close(self) -> None: ...
