"""SpooledLog while the log it wraps is away, slow, or refuses; killed; full; shared. Only the failures are made up."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plaudit.adapters.log.spooled import SpooledLog
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.errors import InvalidInput, LogUnavailable
from plaudit.core.events import DeadLetter, Decision, Event, Feedback, TextContent, Topic
from plaudit.core.ports.log import Appended, AppendOutcome, UnreadableRecord
from plaudit.core.wire import decode_event
from support.builders import NOW_S, a_decision, some_feedback
from support.kafka_broker import Cluster, Kafka, need_broker

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
LONG_S = 1e6
"""So patient is a spool that never gives up waiting on its own account."""
MIB = 1024 * 1024


class Moody(SqliteLog):
    """A log that fails on demand.

    Attributes:
        away: appends fail.
        forgetful: appends succeed and then fail, as where the acknowledgement is lost.
        stuck: appends wait for this first.
        refuses: ids of feedback that are too large.
        breaks: ids of feedback on which appends fail as nobody expects.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "NORMAL")
        self.away = False
        self.forgetful = False
        self.stuck: threading.Event | None = None
        self.refuses: Sequence[str] = ()
        self.breaks: Sequence[str] = ()

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        if self.stuck is not None:
            self.stuck.wait(WAIT_S)
        if self.away:
            raise LogUnavailable("not reachable")
        if any(self._is_of(event, self.breaks) for event in events):
            raise RuntimeError("a bug that an event finds")
        appended = iter(super().append([event for event in events if not self._is_of(event, self.refuses)]))
        if self.forgetful:
            raise LogUnavailable("no acknowledgement")
        return [
            InvalidInput("feedback", "is too large") if self._is_of(event, self.refuses) else next(appended)
            for event in events
        ]

    def _is_of(self, event: Event, ids: Sequence[str]) -> bool:
        return isinstance(event, Feedback) and event.feedback_id in ids


@pytest.fixture
def inner(tmp_path: Path) -> Moody:
    return Moody(tmp_path / "inner.sqlite")


def spooled(inner: Moody, limit_bytes: int = 16 * MIB, after_s: float = LONG_S) -> SpooledLog:
    return SpooledLog(inner, inner._path.parent / "spool", limit_bytes=limit_bytes, after_s=after_s, pause_s=0.001)


@pytest.fixture
def log(inner: Moody) -> Iterator[SpooledLog]:
    with contextlib.closing(spooled(inner)) as log:
        yield log


def append(log: SpooledLog, *ids: str, key: str = "p") -> list[bool]:
    outcomes = log.append([some_feedback(key, feedback_id=id_) for id_ in ids])
    assert not [each for each in outcomes if isinstance(each, InvalidInput)]
    return [each.duplicate for each in outcomes if isinstance(each, Appended)]


def events(inner: SqliteLog) -> list[Event]:
    with contextlib.closing(SqliteLog(inner._path)) as log, contextlib.closing(log.reader("g", tuple(Topic))) as reader:
        found = [record.event for record in reader.poll(10_000, 0.0)]
    assert not any(isinstance(event, UnreadableRecord) for event in found)
    return [event for event in found if not isinstance(event, UnreadableRecord)]


def ids(inner: SqliteLog) -> list[str]:
    return [event.feedback_id for event in events(inner) if isinstance(event, Feedback)]


def test_an_event_that_breaks_the_log_holds_no_other_up(log: SpooledLog, inner: Moody) -> None:
    """It becomes a dead letter: it was acknowledged, and must not be lost in silence."""
    inner.away = True
    append(log, *(f"f{n}" for n in range(9)))
    inner.breaks, inner.away = ["f4"], False
    assert log.drained(WAIT_S)
    assert ids(inner) == [f"f{n}" for n in range(9) if n != 4]
    (letter,) = (event for event in events(inner) if isinstance(event, DeadLetter))
    assert decode_event(Topic.FEEDBACK, letter.payload) == some_feedback("p", feedback_id="f4")


# --- away and back ---------------------------------------------------------------------------------------------------


def test_an_outage_is_not_noticed_by_who_appends(log: SpooledLog, inner: Moody) -> None:
    assert append(log, "f1") == [False]
    inner.away = True
    assert append(log, "f2") == [False]
    assert append(log, "f3", "f2") == [False, True]
    assert (ids(inner), log.spooled()) == (["f1"], 2)
    inner.away = False
    assert append(log, "f4") == [False]
    assert log.drained(WAIT_S)
    assert append(log, "f5") == [False]
    assert (ids(inner), log.spooled(), log.age_s()) == (["f1", "f2", "f3", "f4", "f5"], 0, 0.0)


def test_what_is_spooled_is_recorded(log: SpooledLog, inner: Moody) -> None:
    append(log, "f1")
    inner.away = True
    append(log, "f2")
    assert [log.feedback_recorded(id_) for id_ in ("f1", "f2", "f3")] == [NOW_S + 1.0, NOW_S + 1.0, None]
    assert log.age_s() > 0.0


def test_every_kind_of_event_goes_through_the_spool(log: SpooledLog, inner: Moody) -> None:
    sent: list[Event] = [some_feedback("p1"), DeadLetter("plaudit.feedback", "17", "unreadable", b"\x00", NOW_S)]
    inner.away = True
    log.append([a_decision("p1"), *sent])
    inner.away = False
    assert log.drained(WAIT_S)
    assert events(inner)[1:] == sent


def test_a_spool_of_the_release_before_is_drained(inner: Moody, tmp_path: Path) -> None:
    """Its records of a topic that is no more are neither handed on nor counted."""
    (tmp_path / "spool").mkdir()
    with contextlib.closing(SqliteLog(tmp_path / "spool" / "0.sqlite")) as left:
        left.append([some_feedback("p1", feedback_id="f1")])
        left._connection.execute(
            "INSERT INTO events (topic, event_id, key, time_s, payload) VALUES ('plaudit.trials', 'r1', '', 1.0, x'ff')"
        )
    with contextlib.closing(spooled(inner)) as log:
        assert log.drained(WAIT_S)
        assert (ids(inner), log.spooled(), log.age_s()) == (["f1"], 0, 0.0)
        assert append(log, "f2") == [False]
    assert ids(inner) == ["f1", "f2"]


def test_a_log_that_does_not_answer_is_away(inner: Moody) -> None:
    """It is asked twice at the most: what comes after the first append does not wait for it."""
    inner.stuck = threading.Event()
    with contextlib.closing(spooled(inner, after_s=0.01)) as log:
        for number in range(20):
            assert append(log, f"f{number}") == [False]
        assert log.spooled() == 20
        inner.stuck.set()
        assert log.drained(WAIT_S)
    assert ids(inner) == [f"f{number}" for number in range(20)]


def test_an_acknowledgement_that_was_lost_adds_nothing(log: SpooledLog, inner: Moody) -> None:
    inner.forgetful = True
    append(log, "f1")
    append(log, "f2")
    inner.forgetful = False
    assert log.drained(WAIT_S)
    assert ids(inner) == ["f1", "f2"]


def test_replaying_is_not_spooled(log: SpooledLog, inner: Moody) -> None:
    append(log, "f1", "f2")
    log.replay([some_feedback("p", feedback_id="f1")])
    assert ids(inner) == ["f2", "f1"]


def test_what_the_log_refuses_becomes_a_dead_letter_and_holds_nothing_up(log: SpooledLog, inner: Moody) -> None:
    inner.refuses = ["f2"]
    refused, taken = log.append([some_feedback("p", feedback_id=id_) for id_ in ("f2", "f0")])
    assert (str(refused), taken) == ("feedback: is too large", Appended(duplicate=False))
    inner.away = True
    append(log, "f1", "f2", "f3")
    inner.away = False
    assert log.drained(WAIT_S)
    assert ids(inner) == ["f0", "f1", "f3"]
    (letter,) = (event for event in events(inner) if isinstance(event, DeadLetter))
    assert (letter.source_topic, letter.reason) == (Topic.FEEDBACK, "feedback: is too large")


# --- full ------------------------------------------------------------------------------------------------------------


def test_a_full_spool_refuses_says_so_and_takes_more_once_there_is_room(inner: Moody) -> None:
    large = {"question": TextContent("x" * 100_000)}
    with contextlib.closing(spooled(inner, limit_bytes=MIB)) as log:
        inner.away = True
        taken = []
        with pytest.raises(LogUnavailable) as refused:  # noqa: PT012  # the loop is what fills it
            for number in itertools.count():
                log.append([a_decision(f"p{number}", content=large)])
                taken.append(f"p{number}")
        assert 5 <= len(taken) <= 10
        assert "not reachable" in str(refused.value)
        assert f"holds {len(taken)} events and may have 1048576 bytes (log.spool_limit_bytes)" in str(refused.value)
        inner.away = False
        assert log.drained(WAIT_S)
        inner.away = True
        log.append([a_decision("later", content=large)])
        inner.away = False
        assert log.drained(WAIT_S)
    found = events(inner)
    assert [event.prediction_id for event in found if isinstance(event, Decision)] == [*taken, "later"]
    assert len(found) == len(taken) + 1


# --- killed and shared -----------------------------------------------------------------------------------------------


def test_what_was_spooled_survives_kill_9_and_goes_first_after_a_restart(inner: Moody) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        from support.builders import some_feedback
        from test_spooled_log import Moody, spooled
        inner = Moody(Path({str(inner._path)!r}))
        inner.away = True
        log = spooled(inner)
        for number in range(100):
            log.append([some_feedback("p", feedback_id=f"f{{number}}")])
            print(f"f{{number}}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    path = os.pathsep.join(str(ROOT / part) for part in ("services", "models", "tests", "tests/adapters"))
    child = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL
    printed = [line for line in child.stdout.splitlines() if line.startswith("f")]  # the rest is our own log
    assert len(printed) == 100
    with contextlib.closing(spooled(inner)) as log:
        append(log, "after")
        assert log.drained(WAIT_S)
    assert ids(inner) == [*printed, "after"]


def test_processes_share_the_folder_and_the_next_one_takes_over_what_is_left(inner: Moody) -> None:
    inner.away = True
    first, second = spooled(inner), spooled(inner)
    append(first, "f1")
    append(second, "f2")
    assert (first.spooled(), second.spooled()) == (1, 1)
    second.close()
    first.close()
    inner = Moody(inner._path)
    with contextlib.closing(spooled(inner)) as log:
        assert log.drained(WAIT_S)
    assert sorted(ids(inner)) == ["f1", "f2"]


def test_a_spool_that_cannot_be_opened_says_where(inner: Moody) -> None:
    folder = inner._path.parent / "spool"
    folder.write_text("in the way")
    with pytest.raises(LogUnavailable, match="spool"):
        spooled(inner)


# --- any order of it all ---------------------------------------------------------------------------------------------


class Outages(RuleBasedStateMachine):
    """Whatever happens in whatever order: what was acknowledged is in the log once, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.inner = Moody(Path(self.folder.name) / "inner.sqlite")
        self.log = spooled(self.inner)
        self.acknowledged: list[str] = []
        self.numbers = itertools.count()

    @rule(count=st.integers(1, 3))
    def append(self, count: int) -> None:
        fresh = [f"f{next(self.numbers)}" for _ in range(count)]
        assert append(self.log, *fresh) == [False] * count
        self.acknowledged += fresh

    @rule(away=st.booleans(), forgetful=st.booleans())
    def change_mood(self, away: bool, forgetful: bool) -> None:
        self.inner.away, self.inner.forgetful = away, forgetful

    @rule()
    def recover(self) -> None:
        self.change_mood(away=False, forgetful=False)
        assert self.log.drained(WAIT_S)
        assert ids(self.inner) == self.acknowledged

    @rule()
    def restart(self) -> None:
        """With what was spooled left in the middle of being handed on."""
        self.log.close()
        mood = self.inner.away, self.inner.forgetful
        self.inner = Moody(self.inner._path)
        self.inner.away, self.inner.forgetful = mood
        self.log = spooled(self.inner)

    @invariant()
    def nothing_is_out_of_order(self) -> None:
        found = ids(self.inner)
        assert found == self.acknowledged[: len(found)]

    def teardown(self) -> None:
        self.recover()
        self.log.close()
        self.folder.cleanup()


TestOutages = Outages.TestCase
TestOutages.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


# --- a real broker ---------------------------------------------------------------------------------------------------


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["killed", "paused"])
def test_a_broker_that_goes_away_and_comes_back(tmp_path: Path, trouble: str) -> None:
    need_broker()
    with Cluster(tmp_path / "kafka") as cluster:
        (broker,) = cluster.brokers
        log = SpooledLog(Kafka(cluster.bootstrap).log(), tmp_path / "spool", limit_bytes=16 * MIB, after_s=1.0)
        with contextlib.closing(log):
            append(log, "f0")
            assert log.drained(WAIT_S)
            broker.kill() if trouble == "killed" else broker.pause()
            for number in range(1, 50):
                assert append(log, f"f{number}") == [False]
            assert log.spooled() == 49
            broker.start() if trouble == "killed" else broker.resume()
            append(log, "f50")
            assert log.drained(WAIT_S)
            with contextlib.closing(log.reader("g", [Topic.FEEDBACK], start=dict)) as reader:
                found: list[str] = []
                while reader.lag():
                    read = [record.event for record in reader.poll(1_000, WAIT_S)]
                    assert all(isinstance(event, Feedback) for event in read)
                    found += [event.feedback_id for event in read if isinstance(event, Feedback)]
    assert list(dict.fromkeys(found)) == [f"f{number}" for number in range(51)]
