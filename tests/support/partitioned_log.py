"""An EventLog with several partitions, each a SQLite log, for tests with several learners.

The assignment of partitions stands in a file that the test writes, as a broker's group coordinator would decide it.
Every reader looks at it with every poll.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from plaudit.adapters.log.sqlite import PARTITION, SqliteLog, SqliteReader
from plaudit.core.events import Event, Topic, key_of
from plaudit.core.ports.log import AppendOutcome, Cursor, Positions, Record

_ASSIGNMENT: Final = "assignment.json"


class PartitionedLog:
    """Args:
    member: reads what the file assigns to it; "": reads everything.
    """

    def __init__(self, folder: Path, partitions: int, member: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._member = member
        self._logs = {str(n): SqliteLog(folder / f"partition-{n}.sqlite", "NORMAL") for n in range(partitions)}

    def assign(self, assignment: Mapping[str, Sequence[int]]) -> None:
        """Partitions by member."""
        fresh = self._folder / "fresh.json"
        fresh.write_text(json.dumps(assignment), encoding="ascii")
        fresh.replace(self._folder / _ASSIGNMENT)

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        return [self._logs[self.partition_of(event)].append([event])[0] for event in events]

    def replay(self, events: Sequence[Event]) -> None:
        for event in events:
            self._logs[self.partition_of(event)].replay([event])

    def writable(self) -> bool:
        """Whether no process holds the lock of a partition's file."""
        for number in self._logs:
            probe = sqlite3.connect(self._folder / f"partition-{number}.sqlite", timeout=0.2, isolation_level=None)
            with contextlib.closing(probe):
                try:
                    probe.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    return False
                probe.execute("ROLLBACK")
        return True

    def partition_of(self, event: Event) -> str:
        return str(zlib.crc32(key_of(event).encode()) % len(self._logs))

    def reader(
        self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None
    ) -> PartitionedReader:
        return PartitionedReader(self._logs, self._assigned, group, topics, start)

    def feedback_recorded(self, feedback_id: str) -> float | None:
        found = (log.feedback_recorded(feedback_id) for log in self._logs.values())
        return next((time_s for time_s in found if time_s is not None), None)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()

    def _assigned(self) -> set[str]:
        if not self._member:
            return set(self._logs)
        assignment = json.loads((self._folder / _ASSIGNMENT).read_text(encoding="ascii"))
        return {str(n) for n in assignment.get(self._member, ())}


class PartitionedReader:
    def __init__(
        self,
        logs: Mapping[str, SqliteLog],
        assigned: Callable[[], set[str]],
        group: str,
        topics: Sequence[Topic],
        start: Callable[[], Positions] | None,
    ) -> None:
        self._logs = logs
        self._assigned = assigned
        self._group = group
        self._topics = topics
        self._start = start
        self._readers: dict[str, SqliteReader] = {}

    def poll(self, limit: int, timeout_s: float) -> Sequence[Record]:
        self._rebalance()
        records: list[Record] = []
        for name, reader in self._readers.items():
            polled = reader.poll(limit - len(records), 0.0) if len(records) < limit else ()
            records += [replace(r, partition=name, position=f"{name}:{r.position}") for r in polled]
        return records

    def commit(self, positions: Mapping[str, Cursor]) -> None:
        for name, cursor in positions.items():
            if name in self._readers:
                self._readers[name].commit({PARTITION: cursor})

    def lag(self) -> int:
        self._rebalance()
        return sum(reader.lag() for reader in self._readers.values())

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers = {}

    def _rebalance(self) -> None:
        mine = self._assigned()
        for lost in set(self._readers) - mine:
            self._readers.pop(lost).close()
        gained = mine - set(self._readers)
        if not gained:
            return
        positions = None if self._start is None else self._start()
        for name in sorted(gained):
            start = None
            if positions is not None:
                start = dict[str, Cursor]({PARTITION: positions[name]} if name in positions else {}).copy
            self._readers[name] = self._logs[name].reader(self._group, self._topics, start)
