"""What the services need from the outside, as Protocols. Each docstring is a contract; tests/contracts holds one suite
per port that every adapter passes. Only composition roots know which adapter is behind a port.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plaudit.core.events import Event, Topic
from plaudit.core.rollout import Rollout
from plaudit_models.bundle import Manifest

Cursor = str
"""A position in a log as a reader sees it. Opaque: only the adapter that made it can read it. "" is the beginning."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one event handed to :meth:`EventLog.append`.

    Attributes:
        duplicate: the log already holds an event of this topic and id; nothing was added.
    """

    duplicate: bool


@dataclass(frozen=True, slots=True)
class Poison:
    """A record whose payload is not an event."""

    payload: bytes
    problem: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log.

    Attributes:
        position: where it stands, for people and dead letters.
        cursor: reading from here continues after this record.
    """

    topic: Topic
    position: str
    cursor: Cursor
    event: Event | Poison


class EventReader(Protocol):
    """Reads in order per key, each record at least once."""

    def poll(self, limit: int, timeout_s: float) -> Sequence[Record]:
        """Up to ``limit`` next records; waits up to ``timeout_s`` for the first one, then returns what is there."""
        ...

    def commit(self, cursor: Cursor) -> None:
        """Tell the log how far the effects of reading are saved. Call it after saving them, never before."""
        ...

    def lag(self) -> int:
        """How many records stand after the last one polled."""
        ...

    def close(self) -> None: ...


class EventLog(Protocol):
    """An append-only log with one topic per kind of event. Safe to use from several threads."""

    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        """Make events durable; when this returns they survive kill -9. All or none are added.

        Raises:
            LogUnavailable: nothing was recorded.
        """
        ...

    def reader(self, group: str, topics: Sequence[Topic], start: Cursor | None = None) -> EventReader:
        """A reader of ``topics`` that begins at ``start``, or at the group's committed cursor if ``start`` is None."""
        ...

    def feedback_recorded(self, feedback_id: str) -> float | None:
        """When (UTC seconds) this feedback was recorded; None if it was not."""
        ...

    def close(self) -> None: ...


class ModelRegistry(Protocol):
    """Immutable versions of one model and the rollout that says which of them serves.

    Safe to use from several threads and processes.
    """

    @property
    def model(self) -> str: ...

    def publish(self, folder: Path) -> Manifest:
        """Take a sealed version folder in under the next version number; what others see is all of it or nothing.

        The folder is moved or copied; the manifest returned carries the number.

        Raises:
            CorruptBundle: the folder does not match its manifest.
        """
        ...

    def versions(self) -> Sequence[int]:
        """Every version, oldest first."""
        ...

    def manifest(self, version: int) -> Manifest:
        """Raises UnknownVersion."""
        ...

    def folder(self, version: int) -> Path:
        """A local folder with the version's files, to be read only. Raises UnknownVersion."""
        ...

    def rollout(self) -> Rollout:
        """The present rollout; generation 0 with nothing live if there is none yet."""
        ...

    def set_rollout(self, rollout: Rollout) -> None:
        """Compare-and-set: ``rollout.generation`` must be the present one plus one. Appended to the ledger.

        Raises:
            RolloutMoved: somebody else changed it meanwhile.
            UnknownVersion: it names a version that does not exist.
        """
        ...

    def ledger(self) -> Sequence[Rollout]:
        """Every rollout there ever was, oldest first."""
        ...

    def prune(self, keep: int) -> Sequence[int]:
        """Remove dead head refreshes but the ``keep`` newest; returns the versions removed.

        Dead is what the rollout does not name. The newest version stays, so that no number is given twice, and so do
        versions of other kinds.
        """
        ...
