"""Records that others write, and what becomes of every record: one that cannot be used harms no other, and none is lost
in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit.adapters.log.spooled import SpooledLog
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.errors import LogUnavailable, StoreUnavailable
from plaudit.core.events import Correction, DeadLetter, Decision, Event, Features, Feedback, Rating, Thumb, Topic
from plaudit.core.experience import FeedbackState
from plaudit.core.ports.log import AppendOutcome
from plaudit.learner.ingest import batch as ingestion
from plaudit.learner.ingest.dead_letters import dead_letters
from plaudit.learner.loop import Learner
from plaudit.learner.online.update import OnlineUpdater
from plaudit.v1 import events_pb2
from support.loop_recount import recount
from support.loop_world import SPEC, World, assert_same_sums, reward_state
from support.postgres_server import PostgresServer

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def write_raw(world: World, topic: Topic, payload: bytes, name: str) -> None:
    """As a program would that is not ours."""
    assert isinstance(world.log, SqliteLog)
    row = (topic, name, name, 0.0, payload)
    world.log._connection.execute(
        "INSERT INTO events (topic, event_id, key, time_s, payload) VALUES (?, ?, ?, ?, ?)", row
    )


def features(embedding: list[float], base_logits: list[float], digest: str) -> Features:
    return Features(digest, np.array(embedding, np.float32), np.array(base_logits, np.float32))


def foreign(world: World) -> dict[str, Decision]:
    """Decisions that a program might write that is not ours, by what is wrong with them."""
    good = world.decide(user_id="mallory")
    assert good.features is not None
    size, actions, digest = len(good.features.embedding), len(SPEC.actions), good.features.trunk_digest

    def with_features(embedding: list[float], base_logits: list[float]) -> Decision:
        return replace(good, features=features(embedding, base_logits, digest))

    return {
        "a propensity next to nothing": replace(good, propensity=1e-300),
        "not a number": with_features([float("nan")] * size, [0.0] * actions),
        "infinity": with_features([0.0] * size, [float("inf")] * actions),
        "huge values": with_features([3e38] * size, [0.0] * actions),
        "an embedding of another size": with_features([0.5] * (size + 1), [0.0] * actions),
        "no embedding": with_features([], [0.0] * actions),
        "base logits of another size": with_features([0.5] * size, [0.0] * (actions + 3)),
        "an action that is none": replace(good, action="no such action"),
        "a version that is none": replace(good, version=10**9),
        "a version below all": replace(good, version=-(2**40)),
        "allowed actions that are none": replace(good, allowed_actions=("no", "such", "actions")),
        "an id too long for an index": replace(good, prediction_id="".join(chr(0x4E00 + n) for n in range(4_000))),
        "a NUL in an action": replace(good, action="a\0b"),
    }


def check(world: World, learner: Learner, decisions: list[Decision]) -> None:
    """The decisions are learned, each once, and whatever else is learned is finite."""
    known = world.store.histories([decision.prediction_id for decision in decisions])
    assert all(history.experience is not None for history in known.values())
    state = reward_state(learner)
    assert np.isfinite(state.gram).all()
    assert np.isfinite(state.target).all()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_record_that_cannot_be_used_stops_no_other(
    make_world: MakeWorld, request: pytest.FixtureRequest, kind: str
) -> None:
    """All at once, between the records of others, and rated. THREATS H2, H9."""
    fields: dict[str, Any] = {}
    if kind == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        fields["store_url"] = server.create_database()
    world = make_world(**fields)
    learner = world.learner()
    decisions = world.traffic(5, likes_fish)
    bad = [
        replace(decision, prediction_id=decision.prediction_id if "too long" in name else f"bad {name}")
        for name, decision in foreign(world).items()
    ]
    for decision in bad:
        world.log.append([decision, world.say(decision, Thumb(up=True))])
        decisions += world.traffic(1, likes_fish)
    world.settle(learner)
    check(world, learner, decisions)
    letters = dead_letters(world.log)
    assert {letter.event.prediction_id for letter in letters if isinstance(letter.event, Decision)} >= {
        f"bad {name}"
        for name in ("a propensity next to nothing", "not a number", "infinity", "huge values", "a NUL in an action")
    }
    read = sum(world.store.intake_stats().outcomes.values())
    assert read == 2 * (len(decisions) + len(bad)), "every record is counted"


def test_an_unexpected_failure_in_the_join_is_that_of_its_record(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/spring-projects/spring-kafka/issues/1287: a record that fails is read again for ever."""
    world = make_world({"learner": {"poll_limit": 64}})
    learner = world.learner()
    decisions = world.traffic(12, likes_fish)
    (cursed,) = decisions[5:6]
    original = ingestion.ingest_batch

    def failing(batch: Any, *arguments: Any) -> Any:
        if cursed.prediction_id in {feedback.prediction_id for feedback in batch.feedback.values()}:
            raise RecursionError("a bug that this record finds")
        return original(batch, *arguments)

    monkeypatch.setattr("plaudit.learner.ingest.consumer.ingest_batch", failing)
    world.settle(learner)
    monkeypatch.undo()
    assert learner.state.progress.experiences == 11
    (letter,) = dead_letters(world.log)
    assert letter.letter.reason == "RecursionError: a bug that this record finds"
    assert isinstance(letter.event, Feedback)
    status = world.store.feedback_status(letter.event.feedback_id)
    assert status is not None
    assert (status.state, "dead letter" in status.reason) == (FeedbackState.DISCARDED, True)
    world.log.replay([letter.event])
    world.settle(learner)
    assert learner.state.progress.experiences == 12
    assert_same_sums(reward_state(learner), recount(world.log, SPEC, reward_state(learner).space)[0])


def test_a_store_that_is_away_makes_no_dead_letters(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    learner = world.learner()
    decisions = world.traffic(4, likes_fish)
    monkeypatch.setattr(world.store, "save_batch", lambda batch: (_ for _ in ()).throw(StoreUnavailable("away")))
    with pytest.raises(StoreUnavailable):
        learner.step()
    monkeypatch.undo()
    learner._load()
    world.settle(learner)
    assert dead_letters(world.log) == []
    check(world, learner, decisions)


def test_an_experience_that_the_maths_cannot_take_is_excluded_alone(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    learner = world.learner()
    decisions = world.traffic(9, likes_fish)
    cursed = decisions[4].prediction_id
    original = OnlineUpdater._learn_chunk

    def failing(self: Any, live: Any, fresh: Any, revisions: Any, progress: Any) -> None:
        if cursed in {e.decision.prediction_id for e in fresh}:
            raise FloatingPointError("overflow")
        original(self, live, fresh, revisions, progress)

    monkeypatch.setattr(OnlineUpdater, "_learn_chunk", failing)
    world.settle(learner)
    assert (learner.state.progress.experiences, learner.state.progress.last_number) == (8, 9)
    assert [e.decision.prediction_id for e in world.store.experiences() if e.excluded] == [cursed]
    assert world.metric("plaudit_learner_excluded_total", why="failure") == 1.0


# --- no path to silence ----------------------------------------------------------------------------------------------


class Moody:
    """A log that is away now and then, and takes no event of one user; what it says it has it has."""

    def __init__(self, inner: SqliteLog) -> None:
        self.inner = inner
        self.calls = 0

    def append(self, events: Any) -> list[AppendOutcome]:
        self.calls += 1
        if self.calls % 3 == 1:
            raise LogUnavailable("away")
        if any(isinstance(event, Feedback) and event.user_id == "cursed" for event in events):
            raise RuntimeError("a bug that an event finds")
        return list(self.inner.append(events))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_every_acknowledged_event_ends_where_somebody_counts_it(make_world: MakeWorld, tmp_path: Path) -> None:
    """Through a spool before a log that fails, with duplicates, orphans, records of others and a model that is not
    ours: each piece of feedback is joined, waits, is discarded with a reason, or is a dead letter.
    """
    world = make_world()
    inner = world.log
    assert isinstance(inner, SqliteLog)
    spooled = SpooledLog(Moody(inner), tmp_path / "spool", limit_bytes=10**8, after_s=60.0, pause_s=0.001)
    acknowledged: list[Event] = []

    def append(*events: Event) -> None:
        assert not [each for each in spooled.append(events) if isinstance(each, Exception)]
        acknowledged.extend(events)

    for number in range(12):
        decision = world.decide(user_id=f"user {number % 3}")
        append(decision, world.say(decision, Thumb(up=number % 2 == 0)))
        append(decision)  # a server that did not hear of the acknowledgement
    lost = world.decide()
    append(world.say(lost, Rating(0.5)))
    other = world.decide()
    append(other, world.say(other, Correction("no such action")))
    append(replace(world.decide(), model="another"))
    append(world.say(other, Thumb(up=True), user_id="cursed"))
    append(replace(world.decide(), propensity=1e-200))
    assert spooled.drained(60.0)
    damaged = events_pb2.FeedbackEvent(feedback_id="damaged", prediction_id="p", rating=9.0, time_us=10**15)
    write_raw(world, Topic.FEEDBACK, damaged.SerializeToString(), "damaged")
    write_raw(world, Topic.DECISIONS, b"\xff\xfe", "noise")
    learner = world.learner()
    world.settle(learner)

    letters = dead_letters(inner)
    buried = {letter.event.feedback_id for letter in letters if isinstance(letter.event, Feedback)}
    found: Counter[str] = Counter()
    for id_ in {event.feedback_id for event in acknowledged if isinstance(event, Feedback)}:
        status = world.store.feedback_status(id_)
        assert status is not None or id_ in buried, f"{id_} is nowhere"
        found["dead letter" if status is None else status.state.value] += 1
    assert found == {"joined": 12, "waiting": 1, "discarded": 1, "dead letter": 1}
    damaged_status = world.store.feedback_status("damaged")
    assert damaged_status is not None
    assert "rating: 9.0 is not in [0, 1]" in damaged_status.reason
    stats = world.store.intake_stats()
    assert stats.outcomes == {"decision": 13, "feedback": 14, "other_model": 1, "unreadable": 3}
    assert (stats.waiting, stats.discarded) == (1, 1)
    assert len(letters) == 4
    assert all(isinstance(letter.letter, DeadLetter) and letter.letter.reason for letter in letters)
    spooled._inner = SqliteLog(tmp_path / "unused.sqlite")  # the world closes its own
    spooled.close()
