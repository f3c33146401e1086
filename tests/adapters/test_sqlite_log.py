"""The embedded log: what a reader asks of it costs the same however long it is."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from plaudit.adapters.log.sqlite import SqliteLog, SqliteReader
from plaudit.core.events import Topic
from support.builders import a_decision, some_feedback


def plans(reader: SqliteReader, statements: Sequence[str]) -> list[str]:
    """How SQLite finds the rows of each statement."""
    return [
        " ".join(row[3] for row in reader._connection.execute(f"EXPLAIN QUERY PLAN {statement}"))
        for statement in statements
    ]


@pytest.mark.parametrize(
    ("topics", "index"),
    [
        ((Topic.DECISIONS, Topic.FEEDBACK), "INTEGER PRIMARY KEY (rowid>"),
        ((Topic.FEEDBACK,), "INTEGER PRIMARY KEY (rowid>"),
        (tuple(Topic), "INTEGER PRIMARY KEY (rowid>"),
        ((Topic.EXPERIMENTS,), "events_seldom"),
        ((Topic.DEAD_LETTER,), "events_seldom"),
    ],
)
def test_a_reader_begins_where_it_stopped_and_looks_at_nothing_before(
    tmp_path: Path, topics: Sequence[Topic], index: str
) -> None:
    """Found by the index of event ids, and sorted, the whole log was read for every batch."""
    with contextlib.closing(SqliteLog(tmp_path / "log.sqlite")) as log:
        log.append([event for n in range(50) for event in (a_decision(f"p{n}"), some_feedback(f"p{n}"))])
        with contextlib.closing(log.reader("g", topics)) as reader:
            asked: list[str] = []
            reader._connection.set_trace_callback(asked.append)
            reader.poll(10, 0.0)
            reader.lag()
            reader._connection.set_trace_callback(None)
            of_records = [plan for plan, query in zip(plans(reader, asked), asked, strict=True) if "topic IN" in query]
            assert len(of_records) == 2
            for plan in of_records:
                assert index in plan
                assert "TEMP B-TREE" not in plan
