"""Port of the event log: what is appended, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from plaudit.core.events import Event, Topic

Cursor = str
"""A position in one partition of a log. Opaque: only the adapter that made it can read it."""


Positions = Mapping[str, Cursor]
"""Where reading continues, by partition; a partition that is not in it is read from its beginning."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one event handed to :meth:`EventLog.append`.

    Attributes:
        duplicate: the log already holds an event of this topic and id; nothing was added. A log that cannot look ids up
            (Kafka) only knows those it appended itself not long ago; others are added again, for readers to drop.
    """

    duplicate: bool


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """A record whose payload is not an event."""

    payload: bytes
    problem: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log.

    Attributes:
        position: where it stands, for people and dead letters; it names the same record for ever.
        partition: the part of the log that it stands in, whatever the topic; all records of one key are in one.
        cursor: reading the partition from here continues after this record.
    """

    topic: Topic
    position: str
    partition: str
    cursor: Cursor
    event: Event | UnreadableRecord


class EventReader(Protocol):
    """Reads in order per partition and topic, each record at least once.

    What the log lost before it was read comes as a Unreadable record without payload, once: nothing is passed
    over.

    Readers of one group share the partitions where the log has several; which are whose may change with every poll.
    """

    def poll(self, limit: int, timeout_s: float) -> Sequence[Record]:
        """Up to ``limit`` next records; waits up to ``timeout_s`` for the first one, then returns what is there."""
        ...

    def commit(self, positions: Positions) -> None:
        """Tell the log how far the effects of reading are saved. Call it after saving them, never before."""
        ...

    def lag(self) -> int:
        """How many records stand after the last one polled, in the partitions that are this reader's."""
        ...

    def close(self) -> None: ...


class EventLog(Protocol):
    """An append-only log with one topic per kind of event. Safe to use from several threads."""

    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        """Make events durable; when this returns they survive kill -9.

        Raises:
            LogUnavailable: they are not known to be durable. A log without transactions (Kafka) may hold some of them;
                appending them again is safe.
            InvalidInput: one of them is larger than the log takes.
        """
        ...

    def replay(self, events: Sequence[Event]) -> None:
        """Append events that the log may hold already, so that readers meet them again.

        Raises:
            LogUnavailable: not all were appended.
        """
        ...

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> EventReader:
        """A reader of ``topics``.

        Args:
            start: asked whenever partitions become this reader's, within ``poll`` too, where reading them continues;
                None: where the group's last commit says. ``dict`` reads everything.
        """
        ...

    def feedback_recorded(self, feedback_id: str) -> float | None:
        """When (UTC seconds) this feedback was recorded; None if it was not, or if the log cannot tell (Appended)."""
        ...

    def close(self) -> None: ...
