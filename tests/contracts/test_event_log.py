"""The contract of EventLog and EventReader, for every adapter. An adapter joins by joining ``ADAPTERS``."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from plaudit.adapters.log.spooled import SpooledLog
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.errors import LogUnavailable
from plaudit.core.events import DeadLetter, Decision, Event, Feedback, Thumb, Topic
from plaudit.core.ports.log import Appended, AppendOutcome, EventLog, EventReader, Record, UnreadableRecord
from plaudit.core.rollout import Rollout
from support.builders import NOW_S, a_decision, some_feedback
from support.kafka_broker import Kafka

ALL_TOPICS = tuple(Topic)
ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
"""For what is bound to come."""


@dataclass
class Adapter:
    """One kind of log in a place of its own.

    Attributes:
        open: another log on the same events, as another process would open it.
        open_source: the same as Python source, an expression for a child process.
        write_raw: puts a payload into a topic that is not an event.
        imports: what ``open_source`` needs.
        looks_up: it knows every id it holds, adds all events of an append or none, and holds all topics in one order.
    """

    open: Callable[[], EventLog]
    open_source: str
    imports: str
    write_raw: Callable[[Topic, bytes], None]
    looks_up: bool


def _sqlite(request: pytest.FixtureRequest) -> Adapter:
    return sqlite_adapter(request.getfixturevalue("tmp_path"))


def sqlite_adapter(folder: Path) -> Adapter:
    path = folder / "events.sqlite"

    def write_raw(topic: Topic, payload: bytes) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(
                "INSERT INTO events (topic, event_id, key, time_s, payload) VALUES (?, 'raw', 'raw', 0, ?)",
                (topic, payload),
            )
        connection.close()

    return Adapter(
        open=lambda: SqliteLog(path),
        open_source=f"SqliteLog(Path({str(path)!r}))",
        imports="from plaudit.adapters.log.sqlite import SqliteLog",
        write_raw=write_raw,
        looks_up=True,
    )


def _spooled(request: pytest.FixtureRequest) -> Adapter:
    """Over SQLite; each opening is another process's, with a spool of its own in one folder."""
    folder = request.getfixturevalue("tmp_path")
    inner, spool = sqlite_adapter(folder), folder / "spool"
    limits: dict[str, Any] = {"limit_bytes": 1_000_000, "after_s": WAIT_S}
    return replace(
        inner,
        open=lambda: SpooledLog(inner.open(), spool, **limits),
        open_source=f"SpooledLog({inner.open_source}, Path({str(spool)!r}), **{limits!r})",
        imports=f"{inner.imports}; from plaudit.adapters.log.spooled import SpooledLog",
    )


def _kafka(request: pytest.FixtureRequest) -> Adapter:
    kafka: Kafka = request.getfixturevalue("kafka")

    def write_raw(topic: Topic, payload: bytes) -> None:
        with KafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            producer.send(f"{kafka.prefix}{topic}", payload, key=b"raw").get(WAIT_S)

    return Adapter(
        open=kafka.log,
        open_source=f"Kafka({kafka.bootstrap!r}, {kafka.prefix!r}).log()",
        imports="from support.kafka_broker import Kafka",
        write_raw=write_raw,
        looks_up=False,
    )


ADAPTERS = {"sqlite": _sqlite, "spooled": _spooled, "kafka": _kafka}


@pytest.fixture(params=["sqlite", "spooled", pytest.param("kafka", marks=pytest.mark.kafka)])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return ADAPTERS[request.param](request)


@pytest.fixture
def log(adapter: Adapter) -> Iterator[EventLog]:
    log = adapter.open()
    yield log
    log.close()


def read_all(log: EventLog, topics: Sequence[Topic] = ALL_TOPICS, group: str = "everything") -> list[Record]:
    reader = log.reader(group, topics, start=dict)
    records: list[Record] = []
    while reader.lag():
        records += reader.poll(limit=1000, timeout_s=WAIT_S)
    reader.close()
    return records


def of(topic: Topic, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.topic == topic]


def ids(records: Sequence[Record]) -> list[str]:
    """Feedback ids of feedback records, prediction ids of decisions."""
    found = []
    for record in records:
        if isinstance(record.event, Feedback):
            found.append(record.event.feedback_id)
        elif not isinstance(record.event, UnreadableRecord):
            assert isinstance(record.event, Decision)
            found.append(record.event.prediction_id)
    return found


def repeated(outcomes: Sequence[AppendOutcome]) -> list[bool]:
    """Whether each event was there before; none was refused."""
    assert not [each for each in outcomes if not isinstance(each, Appended)]
    return [each.duplicate for each in outcomes if isinstance(each, Appended)]


def spawn(adapter: Adapter, body: str) -> subprocess.Popen[str]:
    """A child process with ``log`` open and ``builders`` at hand."""
    script = "\n".join(
        [
            "import sys, resource",
            "from pathlib import Path",
            "from support.builders import a_decision, some_feedback",
            "from plaudit.core.errors import LogUnavailable",
            adapter.imports,
            f"log = {adapter.open_source}",
            textwrap.dedent(body),
        ]
    )
    path = os.pathsep.join(str(ROOT / folder) for folder in ("services", "models", "tests"))
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_reads_what_was_appended_in_order(log: EventLog) -> None:
    events: list[Event] = [
        a_decision("p1"),
        some_feedback("p1", feedback_id="f1"),
        DeadLetter("plaudit.feedback", "17", "unreadable", b"\x00", NOW_S),
        Rollout("tiny", 3, live=2, previous=1, gated=1, changed_at_s=NOW_S, reason="better", actor="learner"),
        a_decision("p2"),
    ]
    assert repeated(log.append(events)) == [False] * 5
    records = read_all(log)
    assert [of(topic, records)[0].event for topic in (Topic.FEEDBACK, Topic.DEAD_LETTER, Topic.VERSIONS)] == events[1:4]
    first, second = (record.event for record in of(Topic.DECISIONS, records))
    assert isinstance(first, Decision)
    assert isinstance(second, Decision)
    assert (first.prediction_id, first.action, first.content) == ("p1", "cat", a_decision("p1").content)
    assert second.prediction_id == "p2"


def test_topics_are_in_one_order_where_the_log_can(adapter: Adapter, log: EventLog) -> None:
    log.append([a_decision("p1"), some_feedback("p1", feedback_id="f1"), a_decision("p2")])
    found = ids(read_all(log))
    assert (found if adapter.looks_up else sorted(found, reverse=True)) == (
        ["p1", "f1", "p2"] if adapter.looks_up else ["p2", "p1", "f1"]
    )


def test_reader_sees_only_its_topics(log: EventLog) -> None:
    log.append([a_decision("p1"), some_feedback("p1", feedback_id="f1"), a_decision("p2")])
    assert ids(read_all(log, [Topic.FEEDBACK])) == ["f1"]
    assert ids(read_all(log, [Topic.DECISIONS])) == ["p1", "p2"]


def test_what_is_replayed_is_read_again(log: EventLog) -> None:
    feedback = some_feedback("p1", feedback_id="f1")
    log.append([feedback])
    reader = log.reader("g", ALL_TOPICS, start=dict)
    assert ids(reader.poll(10, WAIT_S)) == ["f1"]
    log.replay([feedback])
    assert ids(reader.poll(10, WAIT_S)) == ["f1"]
    reader.close()


def test_nothing_to_append(log: EventLog) -> None:
    assert list(log.append([])) == []


def test_duplicates_are_reported_and_not_added(log: EventLog) -> None:
    first = some_feedback("p1", Thumb(up=True), feedback_id="f1")
    changed = some_feedback("p1", Thumb(up=False), feedback_id="f1")
    log.append([first])
    outcome = log.append([changed, some_feedback("p1", feedback_id="f2"), some_feedback("p1", feedback_id="f2")])
    assert repeated(outcome) == [True, False, True]
    records = read_all(log)
    assert ids(records) == ["f1", "f2"]
    assert records[0].event == first


def test_the_same_id_in_two_topics_is_two_events(log: EventLog) -> None:
    outcome = log.append([a_decision("x"), some_feedback("x", feedback_id="x")])
    assert repeated(outcome) == [False, False]


def test_duplicates_across_openings_are_seen_or_read_twice(adapter: Adapter, log: EventLog) -> None:
    feedback = some_feedback("p1")
    log.append([feedback])
    other = adapter.open()
    assert repeated(other.append([feedback])) == [adapter.looks_up]
    other.close()
    assert len(read_all(log)) == (1 if adapter.looks_up else 2)


def test_poll_gives_at_most_limit_and_goes_on(log: EventLog) -> None:
    log.append([a_decision(f"p{i}") for i in range(5)])
    reader = log.reader("g", ALL_TOPICS)
    assert ids(reader.poll(2, WAIT_S)) == ["p0", "p1"]
    assert reader.lag() == 3
    assert ids(reader.poll(2, WAIT_S)) == ["p2", "p3"]
    assert ids(reader.poll(2, WAIT_S)) == ["p4"]
    assert reader.lag() == 0
    assert list(reader.poll(2, 0)) == []
    reader.close()


def test_lag_counts_only_the_readers_topics(log: EventLog) -> None:
    log.append([a_decision("p1"), some_feedback("p1"), a_decision("p2")])
    reader = log.reader("g", [Topic.FEEDBACK])
    assert reader.lag() == 1
    reader.poll(10, WAIT_S)
    assert reader.lag() == 0
    reader.close()


def test_poll_wakes_for_what_another_opening_appends(adapter: Adapter, log: EventLog) -> None:
    reader = log.reader("g", ALL_TOPICS)
    assert list(reader.poll(10, 0)) == []
    found: list[Record] = []
    waiting = threading.Thread(target=lambda: found.extend(reader.poll(10, WAIT_S)))
    waiting.start()
    other = adapter.open()
    other.append([a_decision("p1")])
    waiting.join()
    assert ids(found) == ["p1"]
    other.close()
    reader.close()


def test_resumes_from_any_records_cursor(log: EventLog) -> None:
    log.append([a_decision(f"p{i}") for i in range(4)])
    for i, record in enumerate(read_all(log)):
        reader = log.reader("g", ALL_TOPICS, start=partial(dict, {record.partition: record.cursor}))
        assert reader.lag() == 3 - i
        assert ids(reader.poll(10, WAIT_S if i < 3 else 0)) == [f"p{j}" for j in range(i + 1, 4)]
        reader.close()


def test_a_group_resumes_where_it_committed(adapter: Adapter, log: EventLog) -> None:
    log.append([a_decision(f"p{i}") for i in range(4)])
    reader = log.reader("learner", ALL_TOPICS)
    records = reader.poll(3, WAIT_S)
    reader.commit({records[1].partition: records[1].cursor})
    reader.close()

    def resumed(group: str) -> list[str]:
        other = adapter.open()
        reader: EventReader = other.reader(group, ALL_TOPICS)
        found = ids(reader.poll(10, WAIT_S))
        reader.close()
        other.close()
        return found

    assert resumed("learner") == ["p2", "p3"]
    assert resumed("another group") == ["p0", "p1", "p2", "p3"]


def test_a_cursor_of_another_kind_is_refused(log: EventLog) -> None:
    log.append([a_decision("p1")])
    partition = read_all(log)[0].partition
    with (  # some adapters see it when they open, others when they first read
        pytest.raises(ValueError, match="'elsewhere'"),
        contextlib.closing(log.reader("g", ALL_TOPICS, start=lambda: {partition: "elsewhere"})) as reader,
    ):
        reader.poll(1, WAIT_S)


def test_an_unreadable_record_is_handed_on_and_does_not_stop_the_reader(adapter: Adapter, log: EventLog) -> None:
    log.append([a_decision("p1")])
    adapter.write_raw(Topic.FEEDBACK, b"\xff\xff not protobuf")
    log.append([a_decision("p2")])
    records = read_all(log)
    (unreadable,) = (record.event for record in of(Topic.FEEDBACK, records))
    assert isinstance(unreadable, UnreadableRecord)
    assert unreadable.payload == b"\xff\xff not protobuf"
    assert Topic.FEEDBACK in unreadable.problem
    assert ids(of(Topic.DECISIONS, records)) == ["p1", "p2"]


def test_feedback_recorded(log: EventLog) -> None:
    log.append([some_feedback("p1", feedback_id="f1", time_s=NOW_S + 2.5), a_decision("d1")])
    assert log.feedback_recorded("f1") == NOW_S + 2.5
    assert log.feedback_recorded("f2") is None
    assert log.feedback_recorded("d1") is None


def test_threads_append_together(log: EventLog) -> None:
    """8 threads append 25 events each, one of which all threads share: 8 × 24 + 1 events are there, each once."""
    duplicates: list[bool] = []

    def append(thread: int) -> None:
        for i in range(24):
            assert repeated(log.append([some_feedback("p", feedback_id=f"{thread}-{i}")])) == [False]
        duplicates.extend(repeated(log.append([some_feedback("p", feedback_id="shared")])))

    threads = [threading.Thread(target=append, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ids(read_all(log))
    assert sorted(found) == sorted([f"{n}-{i}" for n in range(8) for i in range(24)] + ["shared"])
    for n in range(8):
        mine = [f for f in found if f.startswith(f"{n}-")]
        assert mine == [f"{n}-{i}" for i in range(24)]
    assert sorted(duplicates) == [False] + [True] * 7


def test_processes_append_while_one_reads(adapter: Adapter, log: EventLog) -> None:
    """The reader follows three processes and sees every event once, in each process's order."""
    body = """
    for i in range(100):
        log.append([some_feedback("p", feedback_id=f"{NAME}-{i}")])
    """
    children = [spawn(adapter, f"NAME = {name!r}\n{textwrap.dedent(body)}") for name in "abc"]
    reader = log.reader("g", ALL_TOPICS)
    found: list[str] = []
    while len(found) < 300:
        records = reader.poll(50, WAIT_S)
        assert records, "a writer died"
        found += ids(records)
    for child in children:
        assert child.wait() == 0
        child.communicate()
    assert list(reader.poll(50, 0)) == []
    reader.close()
    for name in "abc":
        assert [f for f in found if f.startswith(name)] == [f"{name}-{i}" for i in range(100)]


def test_what_was_acknowledged_survives_kill_9(adapter: Adapter, log: EventLog) -> None:
    child = spawn(
        adapter,
        """
        for i in range(1_000_000):
            log.append([some_feedback("p", feedback_id=f"f{i}"), a_decision(f"d{i}")])
            print(i, flush=True)
        """,
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(50)]
    child.send_signal(signal.SIGKILL)
    with child:
        more = child.stdout.read()  # communicate() would pass over what readline() has buffered
    acknowledged += [int(line) for line in more.splitlines() if line.isdecimal()]
    records = read_all(log)
    whole = acknowledged[-1] + 1
    rest: list[str] = []
    for topic, letter in ((Topic.FEEDBACK, "f"), (Topic.DECISIONS, "d")):
        found = ids(of(topic, records))
        assert found[:whole] == [f"{letter}{i}" for i in range(whole)]
        rest += found[whole:]
    # At most one append was in flight; where the log can, it is there as a whole or not at all.
    possible: list[list[str]] = [[], [f"f{whole}", f"d{whole}"]]
    assert rest in (possible if adapter.looks_up else [*possible, [f"f{whole}"], [f"d{whole}"]])
    assert repeated(log.append([some_feedback("p", feedback_id="f0")])) == [adapter.looks_up]


# --- SQLite only: the ways a file can fail ---------------------------------------------------------------------------


def test_sqlite_passes_over_records_of_a_topic_of_the_release_before(tmp_path: Path) -> None:
    """Reports of experiments were in plaudit.trials; a file may hold them still."""
    adapter = sqlite_adapter(tmp_path)
    with contextlib.closing(adapter.open()) as log:
        log.append([a_decision("p1")])
        adapter.write_raw("plaudit.trials", b"\xff")  # type: ignore[arg-type]  # no topic any more
        log.append([some_feedback("p1", feedback_id="f1")])
        assert [record.topic for record in read_all(log)] == [Topic.DECISIONS, Topic.FEEDBACK]


def test_sqlite_full_disk_records_nothing_and_recovers(tmp_path: Path) -> None:
    """A limit on the file size stands in for a full disk: the append that does not fit fails as a whole."""
    adapter = sqlite_adapter(tmp_path)
    child = spawn(
        adapter,
        """
        from plaudit.core.events import TextContent
        log.append([some_feedback("p", feedback_id="before")])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        large = {"question": TextContent("x" * 300_000)}
        try:
            log.append([some_feedback("p", feedback_id="too much"), a_decision("large", content=large)])
        except LogUnavailable as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.append([some_feedback("p", feedback_id="after")])
        """,
    )
    output, _ = child.communicate()
    assert child.returncode == 0
    assert "may not be recorded; send it again" in output
    assert "events.sqlite" in output
    log = adapter.open()
    assert ids(read_all(log)) == ["before", "after"]
    log.close()


def test_sqlite_read_only_file(tmp_path: Path) -> None:
    """The file turns read-only under a writer, as when a file system is remounted after an error."""
    log = SqliteLog(tmp_path / "events.sqlite")
    log.append([some_feedback("p", feedback_id="before")])
    log._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(LogUnavailable, match=r"events\.sqlite: attempt to write a readonly database"):
        log.append([some_feedback("p", feedback_id="refused")])
    assert log.feedback_recorded("refused") is None
    assert ids(read_all(log)) == ["before"]
    log.close()


def test_sqlite_one_failure_reaches_every_caller_of_the_group(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "events.sqlite")
    log._connection.execute("PRAGMA query_only = ON")
    failures: list[LogUnavailable] = []

    def append() -> None:
        try:
            log.append([some_feedback("p")])
        except LogUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=append) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 8
    log._connection.execute("PRAGMA query_only = OFF")
    assert repeated(log.append([some_feedback("p")])) == [False]
    log.close()


@pytest.mark.parametrize("make", ["folder missing", "not a database"])
def test_sqlite_refuses_to_open(tmp_path: Path, make: str) -> None:
    path = tmp_path / "events.sqlite"
    if make == "folder missing":
        path = tmp_path / "nowhere" / "events.sqlite"
    else:
        path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(LogUnavailable, match=r"events\.sqlite"):
        SqliteLog(path)


def test_sqlite_many_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    adapter = sqlite_adapter(tmp_path)
    children = [spawn(adapter, f"log.append([a_decision('p{n}')])") for n in range(6)]
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0] * 6
    log = adapter.open()
    assert sorted(ids(read_all(log))) == [f"p{n}" for n in range(6)]
    log.close()
