"""The contract of ExperienceStore, for every adapter. An adapter joins by joining ``ADAPTERS``."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from plaudit.adapters.store.engine import sqlite_url
from plaudit.adapters.store.sql import SqlStore
from plaudit.core.errors import ConfigError, StoreDamaged, StoreMoved, StoreUnavailable, WrongStore
from plaudit.core.events import Decision, DynamicAction, EncodedContent, Features, Feedback, TensorContent, Thumb
from plaudit.core.experience import Experience, FeedbackState, Label, RaterLabel, header_of, mean_label
from plaudit.core.ports.store import (
    DeadFeedback,
    ExperienceStore,
    ExperimentSummary,
    FeedbackStatus,
    IngestBatch,
    IntakeStats,
    LabelUpdate,
    LeaderCommit,
    PredictionHistory,
    StoredFeedback,
)
from support.builders import NOW_S, a_decision, some_feedback, tiny_content
from support.postgres_server import PASSWORD, PostgresServer

ADAPTERS: dict[str, Callable[[Path, pytest.FixtureRequest], str]] = {
    "sqlite": lambda folder, request: sqlite_url(folder / "learner.db").render_as_string(),
    "postgres": lambda folder, request: request.getfixturevalue("postgres").create_database(),
}
TRUNK = "f1" * 32
GOOD = Label({"cat": 1.0}, 1.0)
BAD = Label({"cat": 0.0}, 1.0)


@pytest.fixture(params=sorted(ADAPTERS))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return ADAPTERS[request.param](tmp_path, request)


@pytest.fixture
def open_store(url: str) -> Iterator[Callable[..., SqlStore]]:
    """Opens another store on the same data, as another process would. A lease ends when it is looked at."""
    opened: list[SqlStore] = []

    def open_another(*, lease_s: float = 0.0) -> SqlStore:
        opened.append(SqlStore(url, lease_s=lease_s))
        return opened[-1]

    yield open_another
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], ExperienceStore]) -> ExperienceStore:
    store = open_store()
    assert store.lead()
    return store


def make_experiences(store: ExperienceStore, n: int) -> list[Experience]:
    """The experiences 1 … n, about p1 … pn."""
    decisions = [a_decision(f"p{i + 1}") for i in range(n)]
    store.save_batch(IngestBatch(decisions=decisions, labels=[LabelUpdate(d.prediction_id, GOOD) for d in decisions]))
    return [Experience(i + 1, header_of(decision), GOOD) for i, decision in enumerate(decisions)]


def among_dynamic_actions(prediction_id: str) -> Decision:
    """A decision between three dynamic actions."""
    dynamic_actions = (DynamicAction("a", "one"), DynamicAction("b", "two"), DynamicAction("c — é", 'the "third"\n\0'))
    features = Features(TRUNK, np.ones(8, np.float32), np.array([0.5, -1.0, 2.0], np.float32))
    return a_decision(prediction_id, action="b", dynamic_actions=dynamic_actions, features=features)


def label_again(store: ExperienceStore, prediction_id: str, label: Label | None) -> None:
    before = store.histories([prediction_id])[prediction_id].experience
    store.save_batch(IngestBatch(labels=[LabelUpdate(prediction_id, label, before)]))


def test_a_fresh_store_knows_nothing(store: ExperienceStore) -> None:
    assert store.positions() == {}
    assert replace(store.intake_stats(), store_id="") == IntakeStats()
    assert store.get_state("anything") is None
    assert store.histories(["p"]) == {"p": PredictionHistory(None, [], None)}
    assert store.experiences() == []
    assert store.revisions(10, 10) == []


def test_a_store_has_an_id_of_its_own_for_good(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore], tmp_path: Path
) -> None:
    """Batches are numbers of one store: a version that was learned in another one says nothing about them."""
    own = store.intake_stats().store_id
    store.save_batch(
        IngestBatch(feedback=[StoredFeedback(some_feedback("p1", feedback_id="f1"), FeedbackState.WAITING)])
    )
    assert open_store().intake_stats().store_id == own != ""
    status = open_store().feedback_status("f1")
    assert status is not None
    assert status.store_id == own
    another = SqlStore(sqlite_url(tmp_path / "another.sqlite"))
    assert another.intake_stats().store_id not in ("", own)
    another.close()


def test_everything_saved_is_there_after_reopening(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    decision = a_decision(
        "p1", allowed_actions=("cat", "dog"), greedy=True, user_group="premium", content=tiny_content()
    )
    kept = StoredFeedback(some_feedback("p1", feedback_id="f1"), FeedbackState.DISCARDED, "no reason")
    label = Label({"cat": 0.5}, 0.25, "dog")
    store.save_batch(
        IngestBatch(
            positions={"0": "7"},
            decisions=[decision],
            feedback=[kept],
            labels=[LabelUpdate("p1", label)],
            new_feedback=[kept.feedback],
            waiting=2,
            outcomes={"decision": 1, "feedback": 3},
        )
    )
    store.save(LeaderCommit(probabilities={1: (0.1, 0.9, 0.0, 0.0)}, state={"a": b"1", "b": b"2"}))
    other = open_store()
    experience = Experience(1, header_of(decision), label, (0.1, 0.9, 0.0, 0.0))
    assert other.positions() == {"0": "7"}
    assert replace(other.intake_stats(), store_id="") == IntakeStats(
        batches=1,
        last_number=1,
        feedback=1,
        last_feedback_id="f1",
        last_feedback_time_s=kept.feedback.time_s,
        waiting=2,
        discarded=1,
        outcomes={"decision": 1, "feedback": 3},
        log_gap_to_s=decision.time_s,
    )
    assert other.get_state("a") == b"1"
    assert other.histories(["p1", "p2"]) == {
        "p1": PredictionHistory(header_of(decision), [kept], experience),
        "p2": PredictionHistory(None, [], None),
    }
    assert other.feedback(["f1", "f2"]) == {"f1": kept}
    assert other.experiences() == [experience]


def test_dynamic_actions_stay_with_their_decision(store: ExperienceStore) -> None:
    """Their ids wherever the decision goes, their texts when asked for; features have a logit for each."""
    decision, plain = among_dynamic_actions("p1"), a_decision("p2")
    store.save_batch(IngestBatch(decisions=[decision, plain], labels=[LabelUpdate("p1", Label({"b": 1.0}, 1.0))]))
    assert store.dynamic_actions(["p1", "p2", "p3"]) == {"p1": decision.dynamic_actions, "p2": ()}
    assert store.experiences()[0].decision == header_of(decision)
    assert store.experiences()[0].decision.dynamic_actions == ("a", "b", "c — é")
    assert store.experiences()[0].reward == 1.0
    assert [header.dynamic_actions for _, header in store.decisions_since(0, NOW_S + 1, 10)] == [
        ("a", "b", "c — é"),
        (),
    ]
    assert decision.features is not None
    kept = store.features(["p1"], TRUNK)["p1"]
    np.testing.assert_array_equal(kept.base_logits, decision.features.base_logits)
    assert store.forget(NOW_S + 1e6, learned=1, limit=10) == 2
    assert store.dynamic_actions(["p1"]) == {}


def test_what_is_taken_in_adds_up(store: ExperienceStore) -> None:
    def feedback(id_: str, time_s: float) -> Feedback:
        return some_feedback(id_, feedback_id=id_, time_s=time_s)

    store.save_batch(IngestBatch(new_feedback=[feedback("late", NOW_S + 9)], waiting=1, outcomes={"feedback": 1}))
    store.save_batch(
        IngestBatch(new_feedback=[feedback("early", NOW_S)], waiting=-1, outcomes={"feedback": 1, "unreadable": 2})
    )
    assert replace(store.intake_stats(), store_id="") == IntakeStats(
        batches=2,
        feedback=2,
        last_feedback_id="early",
        last_feedback_time_s=NOW_S + 9,
        outcomes={"feedback": 2, "unreadable": 2},
        log_gap_to_s=NOW_S,
    )


def test_the_log_time_goes_on_with_what_is_taken_in_and_with_no_jump(store: ExperienceStore) -> None:
    def take_in(*times_s: float, clock_s: float) -> IntakeStats:
        decisions = [a_decision(f"p{time_s}", time_s=time_s) for time_s in times_s]
        said = some_feedback("p", feedback_id=f"f{times_s[-1]}", time_s=times_s[-1])
        store.save_batch(IngestBatch(decisions=decisions, new_feedback=[said], clock_s=clock_s))
        return store.intake_stats()

    day_s = 86_400.0
    take_in(NOW_S, clock_s=NOW_S)
    assert take_in(NOW_S + day_s, clock_s=NOW_S + day_s).log_time_s == NOW_S + day_s
    ahead_s = NOW_S + 100 * day_s
    assert take_in(ahead_s, ahead_s + 8, clock_s=ahead_s + 8).log_time_s == NOW_S + day_s
    back = take_in(NOW_S + day_s + 10, clock_s=NOW_S + day_s + 10)
    assert (back.log_time_s, back.log_gap_to_s) == (NOW_S + day_s + 10, 0.0)
    future = take_in(4e9, clock_s=NOW_S + day_s + 20)
    assert (future.log_time_s, future.last_feedback_time_s) == (NOW_S + day_s + 10, ahead_s + 8)


def test_feedback_whose_record_is_a_dead_letter_says_so_until_it_is_read(store: ExperienceStore) -> None:
    dead = DeadFeedback("f1", NOW_S, "rating: 7.0 is not in [0, 1]")
    store.save_batch(IngestBatch(dead_feedback=[dead]))
    status = store.feedback_status("f1")
    assert status == FeedbackStatus(
        FeedbackState.DISCARDED, NOW_S, "its record is a dead letter: rating: 7.0 is not in [0, 1]", 1
    )
    stored = StoredFeedback(some_feedback("p", feedback_id="f1"), FeedbackState.WAITING)
    store.save_batch(IngestBatch(feedback=[stored], new_feedback=[stored.feedback], waiting=1))
    again = store.feedback_status("f1")
    assert again is not None
    assert again.state == FeedbackState.WAITING


@pytest.mark.parametrize(
    "decision",
    [
        a_decision("nul", user_id="a\0b"),
        a_decision("a surrogate", user_id="\ud800"),
        a_decision("too large a number", version=2**70),
        a_decision("no number", propensity=float("nan")),
        a_decision("too long for an index " + "".join(chr(0x4E00 + n * 7 % 20_000) for n in range(9_000))),
    ],
    ids=lambda decision: decision.prediction_id[:20],
)
def test_a_value_that_the_database_does_not_keep_is_no_outage_and_no_conflict(
    store: ExperienceStore, decision: Decision
) -> None:
    """https://github.com/confluentinc/kafka-connect-jdbc/issues/1216: taken for an outage it is tried for ever."""
    try:
        store.save_batch(IngestBatch(positions={"0": "1"}, decisions=[decision]))
    except (StoreMoved, StoreUnavailable):
        raise
    except Exception:
        assert store.positions() == {}
        assert store.histories(["other"])["other"].decision is None


def test_content_comes_back_as_it_was_sent(store: ExperienceStore) -> None:
    content = tiny_content(3)
    store.save_batch(IngestBatch(decisions=[a_decision("p1", content=content), a_decision("p2", content={})]))
    found = store.contents(["p1", "p2", "p3"])
    assert found.keys() == {"p1", "p2"}
    assert found["p2"] == {}
    assert found["p1"]["image"] == content["image"]
    assert isinstance(found["p1"]["audio"], EncodedContent)
    sensor, sent = found["p1"]["sensor"], content["sensor"]
    assert isinstance(sensor, TensorContent)
    assert isinstance(sent, TensorContent)
    np.testing.assert_array_equal(sensor.array, sent.array)


def test_features_are_kept_per_trunk(store: ExperienceStore) -> None:
    """Those of the decision under the trunk that served, others under theirs."""
    decision = a_decision("p1")
    other = Features("aa" * 32, np.ones(3, np.float32), np.zeros(2, np.float32))
    store.save_batch(IngestBatch(decisions=[decision]))
    store.save(LeaderCommit(features={"p1": other}))
    assert decision.features is not None
    np.testing.assert_array_equal(store.features(["p1"], TRUNK)["p1"].embedding, decision.features.embedding)
    np.testing.assert_array_equal(store.features(["p1"], TRUNK)["p1"].base_logits, decision.features.base_logits)
    np.testing.assert_array_equal(store.features(["p1"], "aa" * 32)["p1"].embedding, other.embedding)
    assert store.features(["p1", "p2"], "bb" * 32) == {}


def test_a_decision_without_features_has_none(store: ExperienceStore) -> None:
    store.save_batch(IngestBatch(decisions=[a_decision("p1", features=None)]))
    assert store.features(["p1"], TRUNK) == {}


def test_experiences_are_numbered_on_and_come_in_ranges(store: ExperienceStore) -> None:
    experiences = make_experiences(store, 2)
    decisions = [a_decision("q1"), a_decision("q2")]
    store.save_batch(IngestBatch(decisions=decisions, labels=[LabelUpdate("q2", BAD)]))
    store.save_batch(IngestBatch(labels=[LabelUpdate("q1", GOOD)]))
    experiences += [Experience(3, header_of(decisions[1]), BAD), Experience(4, header_of(decisions[0]), GOOD)]
    assert store.experiences() == experiences
    assert store.experiences(after=1, up_to=3) == experiences[1:3]
    assert store.experiences(after=1, limit=1) == experiences[1:2]
    assert store.intake_stats().last_number == 4


def test_a_changed_label_is_a_revision_until_it_is_resolved(store: ExperienceStore) -> None:
    """Histories have what is said now; experiences are as the leader knows them."""
    first, second = make_experiences(store, 2)
    label_again(store, "p1", BAD)
    assert store.histories(["p1"])["p1"].experience == Experience(1, first.decision, BAD)
    assert store.experiences() == [first, second]
    (revision,) = store.revisions(2, 10)
    assert (revision.experience, revision.label) == (first, BAD)
    assert store.revisions(0, 10) == []
    store.save(LeaderCommit(resolved=[revision]))
    assert store.revisions(2, 10) == []
    assert store.experiences() == [Experience(1, first.decision, BAD), second]


def test_a_label_that_changes_while_its_revision_is_learned_is_a_revision_again(store: ExperienceStore) -> None:
    (first,) = make_experiences(store, 1)
    label_again(store, "p1", BAD)
    (learned,) = store.revisions(1, 10)
    label_again(store, "p1", None)
    store.save(LeaderCommit(resolved=[learned]))
    (again,) = store.revisions(1, 10)
    assert (again.experience, again.label) == (Experience(1, first.decision, BAD), None)
    store.save(LeaderCommit(resolved=[again]))
    assert store.revisions(1, 10) == []
    assert store.experiences() == [Experience(1, first.decision, None)]


def test_experiences_are_excluded_and_stay_so_when_labelled_again(store: ExperienceStore) -> None:
    make_experiences(store, 3)
    store.save(LeaderCommit(excluded=[2, 3]))
    label_again(store, "p2", BAD)
    assert [e.excluded for e in store.experiences()] == [False, True, True]


def test_experiences_of_a_slice_and_what_of_them_is_outdated(store: ExperienceStore) -> None:
    make_experiences(store, 4)
    assert [(e.slice, e.outdated) for e in store.experiences()] == [("", False)] * 4
    store.save(LeaderCommit(slices={1: "cat", 2: "dog", 3: "cat", 4: "cat"}, outdated={1: True, 3: True}))
    assert [(e.number, e.outdated, e.counts) for e in store.experiences(slice="cat")] == [
        (1, True, False),
        (3, True, False),
        (4, False, True),
    ]
    store.save(LeaderCommit(outdated={3: False}))
    assert [e.number for e in store.experiences(after=1, up_to=3, slice="cat") if e.counts] == [3]
    assert store.experiences(slice="fish") == []


def test_the_experiences_of_one_rater(store: ExperienceStore) -> None:
    """Whoever asked; and whatever the rater is called."""
    strange = 'a "% _\\ü'
    by_two = mean_label([RaterLabel("bob", {"cat": 1.0}, 1.0), RaterLabel(strange, {"cat": 0.0}, 0.25)])
    by_cat = mean_label([RaterLabel("cat", {"dog": 1.0}, 1.0, "dog")])
    labels = {"p1": by_two, "p2": by_cat, "p3": GOOD}
    decisions = [a_decision(id_, user_id="ada") for id_ in labels]
    store.save_batch(IngestBatch(decisions=decisions, labels=[LabelUpdate(*each) for each in labels.items()]))
    numbers = {
        rater: [e.number for e in store.experiences(rater=rater)]
        for rater in ("ada", "bob", strange, "cat", "dog", "%")
    }
    assert numbers == {"ada": [3], "bob": [1], strange: [1], "cat": [2], "dog": [], "%": []}
    assert [e.label for e in store.experiences()] == [by_two, by_cat, GOOD]


def test_a_rater_is_found_before_and_after_a_revision(store: ExperienceStore) -> None:
    first, second = (mean_label([RaterLabel(rater, {"cat": 1.0}, 1.0)]) for rater in ("ada", "bob"))
    store.save_batch(IngestBatch(decisions=[a_decision("p1")], labels=[LabelUpdate("p1", first)]))
    label_again(store, "p1", second)
    assert [e.label for e in store.experiences(rater="ada")] == [first]
    assert [e.label for e in store.experiences(rater="bob")] == [first]
    assert store.experiences(rater="eve") == []


def test_raters_are_refused_one_by_one(store: ExperienceStore) -> None:
    """Ada's thumb up and Bob's down: 1/2; without Bob's 1, without both nothing; a receipt says so to whom it is."""
    by_two = mean_label([RaterLabel("ada", {"cat": 1.0}, 1.0), RaterLabel("bob", {"cat": 0.0}, 1.0)])
    thumbs = [some_feedback("p1", Thumb(up=user == "ada"), feedback_id=user, user_id=user) for user in ("ada", "bob")]
    store.save_batch(
        IngestBatch(
            decisions=[a_decision("p1")],
            feedback=[StoredFeedback(thumb, FeedbackState.JOINED) for thumb in thumbs],
            labels=[LabelUpdate("p1", by_two)],
        )
    )

    def heard() -> float | None:
        (experience,) = store.experiences()
        assert experience.reward == 0.5
        label = experience.heard_label
        assert experience.counts == (label is not None)
        return None if label is None else label.rewards["cat"]

    def told() -> list[bool | None]:
        statuses = [store.feedback_status(user) for user in ("ada", "bob")]
        return [None if status is None else status.excluded for status in statuses]

    assert (heard(), told()) == (0.5, [False, False])
    store.save(LeaderCommit(refused={1: ("bob",)}))
    assert (heard(), told()) == (1.0, [False, True])
    store.save(LeaderCommit(refused={1: ("bob", "ada")}))
    assert (heard(), told()) == (None, [True, True])


def test_a_label_that_names_no_rater_is_the_askers(store: ExperienceStore) -> None:
    decisions = [a_decision(f"p{i}", user_id=user) for i, user in enumerate(["ada", "bob", "ada", ""])]
    store.save_batch(IngestBatch(decisions=decisions, labels=[LabelUpdate(d.prediction_id, GOOD) for d in decisions]))
    assert [e.number for e in store.experiences(rater="ada")] == [1, 3]
    assert [e.number for e in store.experiences(rater="ada", up_to=2)] == [1]
    assert [e.number for e in store.experiences(rater="")] == [4]
    assert store.experiences(rater="eve") == []


def test_what_was_silent_becomes_an_experience(store: ExperienceStore) -> None:
    make_experiences(store, 1)
    decision = a_decision("quiet")
    store.save_batch(IngestBatch(decisions=[decision]))
    store.save(LeaderCommit(silent=[LabelUpdate("quiet", BAD)]))
    assert store.experiences(after=1) == [Experience(2, header_of(decision), BAD)]


def test_silence_and_feedback_do_not_both_label(store: ExperienceStore) -> None:
    """Whoever comes second is told to look again."""
    store.save_batch(IngestBatch(decisions=[a_decision("p1"), a_decision("p2")]))
    store.save(LeaderCommit(silent=[LabelUpdate("p1", BAD)]))
    with pytest.raises(StoreMoved):
        store.save_batch(IngestBatch(labels=[LabelUpdate("p1", GOOD)]))
    store.save_batch(IngestBatch(labels=[LabelUpdate("p2", GOOD)]))
    with pytest.raises(StoreMoved):
        store.save(LeaderCommit(silent=[LabelUpdate("p2", BAD)]))
    assert [e.label for e in store.experiences()] == [BAD, GOOD]


def test_orphans_are_the_feedback_that_waits_oldest_first(store: ExperienceStore) -> None:
    def kept(name: str, time_s: float, state: FeedbackState) -> StoredFeedback:
        return StoredFeedback(some_feedback(name, feedback_id=name, time_s=time_s), state)

    store.save_batch(
        IngestBatch(
            feedback=[
                kept("late", NOW_S + 2, FeedbackState.WAITING),
                kept("early", NOW_S + 1, FeedbackState.WAITING),
                kept("joined", NOW_S, FeedbackState.JOINED),
            ]
        )
    )
    assert [feedback.feedback_id for feedback in store.orphans(10)] == ["early", "late"]
    assert len(store.orphans(1)) == 1


def test_silent_lists_decisions_up_to_the_first_that_is_too_young(store: ExperienceStore) -> None:
    times = {"p1": NOW_S, "p2": NOW_S + 1, "p3": NOW_S + 9, "p4": NOW_S + 2}
    store.save_batch(IngestBatch(decisions=[a_decision(id_, time_s=time_s) for id_, time_s in times.items()]))
    found = store.decisions_since(0, NOW_S + 5, 10)
    assert [decision.prediction_id for _, decision in found] == ["p1", "p2"]
    assert [decision.prediction_id for _, decision in store.decisions_since(found[0][0], NOW_S + 5, 10)] == ["p2"]
    assert len(store.decisions_since(0, NOW_S + 5, 1)) == 1


def test_state_can_be_replaced_and_removed(store: ExperienceStore) -> None:
    store.save(LeaderCommit(state={"a": b"1", "b": b"2"}))
    store.save(LeaderCommit(state={"a": b"3", "b": None}))
    assert (store.get_state("a"), store.get_state("b")) == (b"3", None)


def test_the_status_of_feedback(store: ExperienceStore) -> None:
    """It carries the number of the batch in which it became what it is."""
    states = {"waits": FeedbackState.WAITING, "bad": FeedbackState.DISCARDED, "good": FeedbackState.JOINED}
    feedback = {id_: some_feedback("p1", feedback_id=id_, time_s=NOW_S) for id_ in states}
    store.save_batch(
        IngestBatch(feedback=[StoredFeedback(feedback[id_], state, "why") for id_, state in states.items()])
    )
    own = store.intake_stats().store_id
    assert {id_: store.feedback_status(id_) for id_ in ("waits", "bad", "good")} == {
        id_: FeedbackStatus(state, NOW_S, "why", batch=1, store_id=own) for id_, state in states.items()
    }
    joined = StoredFeedback(feedback["waits"], FeedbackState.JOINED)
    store.save_batch(IngestBatch(decisions=[a_decision("p1")], feedback=[joined], labels=[LabelUpdate("p1", GOOD)]))
    assert store.feedback_status("waits") == FeedbackStatus(FeedbackState.JOINED, NOW_S, "", batch=2, store_id=own)
    store.save(LeaderCommit(excluded=[1]))
    assert store.feedback_status("waits") == FeedbackStatus(
        FeedbackState.JOINED, NOW_S, "", batch=2, excluded=True, store_id=own
    )
    assert store.feedback_status("never") is None


# --- one at a time ---------------------------------------------------------------------------------------------------


def test_commands_are_pending_until_a_commit_applies_them(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    other = open_store()
    other.put_command("ada", "trusted")
    other.put_command("bob", "quarantined")
    first, second = store.pending_commands()
    assert [(c.user_id, c.trust_level) for c in (first, second)] == [("ada", "trusted"), ("bob", "quarantined")]
    store.save(LeaderCommit(commands=[first], state={"a": b"1"}))
    assert other.pending_commands() == [second]


def test_a_commit_that_fails_leaves_its_commands_pending(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    store.put_command("ada", "trusted")
    commands = store.pending_commands()
    store.resign()
    assert open_store().lead()
    with pytest.raises(StoreMoved):
        store.save(LeaderCommit(commands=commands))
    assert store.pending_commands() == commands


def test_commands_given_at_once_are_applied_once_each(
    store: ExperienceStore, open_store: Callable[..., ExperienceStore]
) -> None:
    """Four operators, each with a connection of its own, while the leader applies what it finds."""
    users = [[f"user {operator}-{i}" for i in range(12)] for operator in range(4)]
    others = [open_store() for _ in users]
    together = threading.Barrier(len(users))

    def operate(other: ExperienceStore, names: list[str]) -> None:
        together.wait()
        for name in names:
            other.put_command(name, "quarantined")

    applied: list[str] = []
    with ThreadPoolExecutor(len(users)) as operators:
        done = [operators.submit(operate, *each) for each in zip(others, users, strict=True)]
        while not all(each.done() for each in done) or store.pending_commands():
            commands = store.pending_commands()
            store.save(LeaderCommit(commands=commands, state={"applied": str(len(applied)).encode()}))
            applied += [command.user_id for command in commands]
        for each in done:
            each.result()
    assert sorted(applied) == sorted(name for names in users for name in names)


def test_the_latest_experiment_of_a_version_is_told_of(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    summaries = [ExperimentSummary(4, 2, {"verdict": "reject"}), ExperimentSummary(9, 2, {"verdict": None, "n": 0.5})]
    store.save(LeaderCommit(experiments=[*summaries, ExperimentSummary(7, 3, {"verdict": None})]))
    other = open_store()
    assert other.experiment_summary(2) == summaries[1]
    store.save(LeaderCommit(experiments=[ExperimentSummary(7, 3, {"verdict": "promote"})]))
    assert other.experiment_summary(3) == ExperimentSummary(7, 3, {"verdict": "promote"})
    assert other.experiment_summary(1) is None


def test_a_save_that_fails_changes_nothing(store: ExperienceStore) -> None:
    """The second decision of that id cannot be saved, so nothing that came with it is."""
    store.save_batch(IngestBatch(positions={"0": "1"}, decisions=[a_decision("p1")]))
    twice = [a_decision("p2"), a_decision("p1")]
    with pytest.raises(StoreMoved):
        store.save_batch(IngestBatch(since={"0": "1"}, positions={"0": "2"}, decisions=twice, waiting=5))
    assert store.positions() == {"0": "1"}
    assert store.intake_stats().waiting == 0
    assert store.histories(["p2"])["p2"].decision is None
    store.save_batch(IngestBatch(since={"0": "1"}, positions={"0": "2"}, decisions=twice[:1]))
    assert store.positions() == {"0": "2"}


def test_a_partition_is_taken_in_by_one_after_the_other(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    """Two readers of one partition: the slower one finds that it moved. Other partitions are nothing to it."""
    other = open_store()
    store.save_batch(IngestBatch(positions={"0": "5"}))
    other.save_batch(IngestBatch(positions={"1": "3"}))
    other.save_batch(IngestBatch(since={"0": "5"}, positions={"0": "8"}))
    for since in ({"0": "5"}, {}):
        with pytest.raises(StoreMoved):
            store.save_batch(IngestBatch(since=since, positions={"0": "6", "1": "9"}, decisions=[a_decision("p")]))
    assert store.positions() == {"0": "8", "1": "3"}
    assert store.histories(["p"])["p"].decision is None


def test_only_the_leader_saves(store: ExperienceStore, open_store: Callable[[], ExperienceStore]) -> None:
    other = open_store()
    with pytest.raises(StoreMoved):
        other.save(LeaderCommit(state={"a": b"1"}))
    store.resign()
    assert other.lead()
    other.save(LeaderCommit(state={"a": b"2"}))
    for save in (lambda: store.save(LeaderCommit(state={"a": b"3"})), lambda: store.forget(NOW_S, 0, 1)):
        with pytest.raises(StoreMoved):
            save()
    assert store.get_state("a") == b"2"
    store.save_batch(IngestBatch(waiting=1))
    assert other.intake_stats().waiting == 1


def test_a_leader_is_not_replaced_while_it_is_heard_of(open_store: Callable[..., SqlStore]) -> None:
    """A second learner waits, and takes nothing from the first, which goes on."""
    first, second = open_store(lease_s=3600.0), open_store(lease_s=3600.0)
    assert first.lead()
    assert not second.lead()
    first.save(LeaderCommit(state={"a": b"1"}))
    with pytest.raises(StoreMoved):
        second.save(LeaderCommit(state={"a": b"2"}))
    first._asked_s = -1e9  # as when it asks again after its lease
    assert first.lead()
    first.save(LeaderCommit(state={"a": b"3"}))
    assert second.get_state("a") == b"3"


def test_a_leader_that_resigns_is_followed_at_once(open_store: Callable[..., SqlStore]) -> None:
    first, second = open_store(lease_s=3600.0), open_store(lease_s=3600.0)
    assert first.lead()
    first.resign()
    assert second.lead()
    assert not first.lead()
    second.close()
    second.resign()
    assert first.lead()


def test_a_lead_ends_with_its_process(url: str, open_store: Callable[..., SqlStore]) -> None:
    """Killed without a word: on SQLite the kernel takes its lock back, on PostgreSQL its lease ends."""
    script = textwrap.dedent("""
        import sys
        from plaudit.adapters.store.sql import SqlStore
        store = SqlStore(sys.argv[1], lease_s=1.0)
        print(store.lead(), flush=True)
        sys.stdin.read()
    """)
    path = ":".join(str(Path(__file__).parents[2] / part) for part in ("tests", "services", "models"))
    holder = subprocess.Popen(
        [sys.executable, "-c", script, url],
        env={"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        waiting = open_store(lease_s=1.0)
        assert not waiting.lead()
        holder.kill()
    while not waiting.lead():
        pass
    waiting.save(LeaderCommit(state={"a": b"1"}))


def test_one_that_led_and_was_replaced_has_to_begin_again(postgres: PostgresServer) -> None:
    """Paused for longer than its lease, and nobody leads any more: what it has in memory is older than the store."""
    url = postgres.create_database()
    first, second = SqlStore(url, lease_s=0.0), SqlStore(url, lease_s=0.0)
    assert first.lead()
    assert second.lead()
    second.close()
    assert not first.lead()
    assert first.lead()
    first.close()


def test_a_lease_given_by_a_wrong_clock_ends(postgres: PostgresServer) -> None:
    """The server's clock was a year ahead, and has been set right since; the leader of that time is gone."""
    url = postgres.create_database()
    store = SqlStore(url)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE intake_stats SET leader = 'gone', epoch = 7, "
                "lead_until_s = extract(epoch from clock_timestamp()) + 31536000"
            )
        )
    engine.dispose()
    assert store.lead()
    store.close()


@pytest.mark.parametrize("name", ["100%20off", "a b", "who?x=1", "part#2", "ünïcödé 文", "it's", "a+b&c=d;e", "[::1]"])
def test_a_folder_of_any_name_is_the_one_that_is_opened(tmp_path: Path, name: str) -> None:
    """A path pasted into a URL opens another file, such as "100 off"; see https://github.com/calebevans/mulder/pull/86,
    https://github.com/cachix/devenv/issues/2492.
    """
    folder = tmp_path / name
    folder.mkdir()
    for url in (sqlite_url(folder / "x.sqlite"), sqlite_url(folder / "x.sqlite").render_as_string()):
        store = SqlStore(url)
        assert store.lead()
        store.close()
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert (folder / "x.sqlite").exists()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + bytes(4096)])
def test_a_damaged_file_is_told_from_one_that_is_away(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.sqlite").write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"x\.sqlite: .*; move it away, and the learner makes another one"):
        SqlStore(sqlite_url(tmp_path / "x.sqlite"))


# --- retention -------------------------------------------------------------------------------------------------------


def test_old_predictions_leave_with_all_that_belongs_to_them(store: ExperienceStore) -> None:
    old, young = a_decision("old", time_s=NOW_S - 10), a_decision("young", time_s=NOW_S)
    about = [
        StoredFeedback(some_feedback(d.prediction_id, feedback_id=d.prediction_id), FeedbackState.JOINED)
        for d in (old, young)
    ]
    orphan = StoredFeedback(some_feedback("gone", feedback_id="orphan", time_s=NOW_S - 10), FeedbackState.WAITING)
    store.save_batch(
        IngestBatch(
            decisions=[old, young],
            feedback=[*about, orphan],
            labels=[LabelUpdate("old", GOOD), LabelUpdate("young", GOOD)],
            waiting=1,
        )
    )
    assert store.forget(NOW_S - 5, 2, 10) == 2
    assert store.histories(["old", "gone"]) == {
        "old": PredictionHistory(None, [], None),
        "gone": PredictionHistory(None, [], None),
    }
    assert store.features(["old"], TRUNK) == {}
    assert store.contents(["old"]) == {}
    assert [e.number for e in store.experiences()] == [2]
    assert store.histories(["young"])["young"].feedback == [about[1]]
    assert store.intake_stats().waiting == 0
    assert store.intake_stats().last_number == 2
    assert store.forget(NOW_S - 5, 2, 10) == 0


def test_predictions_leave_a_few_at_a_time_the_oldest_first(store: ExperienceStore) -> None:
    store.save_batch(IngestBatch(decisions=[a_decision(f"p{i}", time_s=NOW_S - i) for i in range(5)]))
    assert store.forget(NOW_S, 0, 3) == 3
    assert [id_ for id_ in ("p1", "p2", "p3", "p4") if store.histories([id_])[id_].decision] == ["p1"]


def test_what_is_not_learned_yet_stays(store: ExperienceStore) -> None:
    make_experiences(store, 3)
    label_again(store, "p1", BAD)
    assert store.forget(NOW_S + 1e6, learned=2, limit=10) == 1
    assert [e.number for e in store.experiences()] == [1, 3]


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_more_ids_than_one_query_takes(store: ExperienceStore) -> None:
    ids = [f"p{n}" for n in range(1_203)]
    store.save_batch(
        IngestBatch(
            decisions=[a_decision(id_, content={}) for id_ in ids], labels=[LabelUpdate(id_, GOOD) for id_ in ids]
        )
    )
    assert all(history.decision is not None for history in store.histories(ids).values())
    assert len(store.features(ids, TRUNK)) == len(ids)
    store.save(LeaderCommit(excluded=range(1, 1_204)))
    assert all(e.excluded for e in store.experiences())
    assert store.forget(NOW_S + 1e6, len(ids), len(ids)) == len(ids)


def test_tables_of_another_version_are_refused(url: str, open_store: Callable[[], ExperienceStore]) -> None:
    open_store().close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE intake_stats SET schema = 99"))
    engine.dispose()
    with pytest.raises(WrongStore, match=r"version 99, this Plaudit has 6; move it away"):
        open_store()


def remove_raters(connection: Connection) -> None:
    """The tables as schema 5 had them."""
    connection.execute(text("ALTER TABLE experiences DROP COLUMN refused"))
    connection.execute(text("ALTER TABLE experiences DROP COLUMN raters"))
    connection.execute(text("ALTER TABLE label_revisions DROP COLUMN raters"))
    connection.execute(text("UPDATE intake_stats SET schema = 5"))


def test_tables_of_schema_5_are_brought_up_to_date(url: str, open_store: Callable[[], ExperienceStore]) -> None:
    """What was said by then is the asker's, and nobody is refused."""
    before = open_store()
    decision = a_decision("p1", user_id="ada")
    before.save_batch(IngestBatch(decisions=[decision], labels=[LabelUpdate("p1", GOOD)]))
    before.close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        remove_raters(connection)
    engine.dispose()
    for _ in range(2):
        store = open_store()
        (experience,) = store.experiences(rater="ada")
        assert experience == Experience(1, header_of(decision), GOOD)
        store.close()


def test_tables_of_schema_4_are_brought_up_to_date(url: str, open_store: Callable[[], ExperienceStore]) -> None:
    before = open_store()
    before.save_batch(IngestBatch(decisions=[a_decision("p1")], outcomes={"decision": 1}))
    before.close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        remove_raters(connection)
        connection.execute(text("ALTER TABLE intake_stats DROP COLUMN log_time_s"))
        connection.execute(text("ALTER TABLE intake_stats DROP COLUMN log_gap_to_s"))
        connection.execute(text("DROP INDEX experiences_by_slice"))
        connection.execute(text("ALTER TABLE experiences DROP COLUMN slice"))
        connection.execute(text("ALTER TABLE experiences DROP COLUMN outdated"))
        connection.execute(text("DROP TABLE dead_feedback"))
        connection.execute(text("UPDATE intake_stats SET schema = 4"))
    engine.dispose()
    for _ in range(2):
        store = open_store()
        assert replace(store.intake_stats(), store_id="") == IntakeStats(batches=1, outcomes={"decision": 1})
        assert store.histories(["p1"])["p1"].decision is not None
        assert store.feedback_status("f1") is None


def test_tables_of_the_release_before_are_refused(url: str, open_store: Callable[[], ExperienceStore]) -> None:
    """They had other names. The message names the database and the way on; nothing is written into it."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE standing (id INTEGER PRIMARY KEY, schema INTEGER)"))
        connection.execute(text("CREATE TABLE decisions (place INTEGER PRIMARY KEY)"))
    with pytest.raises(WrongStore, match=r"version 3, this Plaudit has 6; move it away, and the learner") as refused:
        open_store()
    assert url.rpartition("/")[2] in str(refused.value)
    assert sorted(inspect(engine).get_table_names()) == ["decisions", "standing"]
    engine.dispose()


def test_tables_from_before_there_were_versions_are_refused(tmp_path: Path) -> None:
    engine = create_engine(sqlite_url(tmp_path / "learner.db"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE memory (key VARCHAR PRIMARY KEY, value BLOB)"))
    engine.dispose()
    with pytest.raises(WrongStore, match="version 1"):
        SqlStore(sqlite_url(tmp_path / "learner.db"))


def test_a_store_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"no/such/folder\.db: unable to open"):
        SqlStore(sqlite_url(tmp_path / "no" / "such" / "folder.db"))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("secret", "store.url: is no database URL"),
        ("mysql://me:secret@there/db", "store.url: mysql is not supported; use sqlite or postgresql"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        SqlStore(url)
    assert "secret" not in str(refused.value)


def test_a_wrong_password_is_named_and_not_shown(postgres: PostgresServer) -> None:
    url = postgres.create_database().replace(PASSWORD, "secret")
    with pytest.raises(StoreUnavailable, match="password authentication failed") as refused:
        SqlStore(url)
    assert "secret" not in str(refused.value)


def test_a_server_that_goes_away_and_returns(own_postgres: PostgresServer) -> None:
    store = SqlStore(own_postgres.create_database())
    assert store.lead()
    store.save_batch(IngestBatch(decisions=[a_decision("p1")]))
    own_postgres.stop()
    for use in (
        lambda: store.save_batch(IngestBatch(waiting=1)),
        store.intake_stats,
        lambda: store.save(LeaderCommit()),
    ):
        with pytest.raises(StoreUnavailable):
            use()
    own_postgres.start()
    store.save_batch(IngestBatch(waiting=1))
    store.save(LeaderCommit(state={"a": b"1"}))
    assert store.intake_stats().waiting == 1
    assert store.histories(["p1"])["p1"].decision is not None
    store.close()


def test_stores_opened_at_once_agree_on_the_tables(postgres: PostgresServer) -> None:
    url = postgres.create_database()
    script = "import sys; from plaudit.adapters.store.sql import SqlStore; SqlStore(sys.argv[1]).close()"
    children = [subprocess.Popen([sys.executable, "-c", script, url]) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4


def test_a_process_that_is_killed_while_saving_leaves_nothing_behind(
    url: str, store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    """Killed inside the transaction, with the lock held: others go on at once, and see nothing of it."""
    script = textwrap.dedent("""
        import os, signal, sys
        from support.builders import a_decision
        from plaudit.adapters.store import sql as sql_store
        from plaudit.core.ports.store import IngestBatch
        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        store = sql_store.SqlStore(sys.argv[1])
        store._label = die
        store.save_batch(IngestBatch(positions={"0": "9"}, decisions=[a_decision("p1")]))
    """)
    path = ":".join(str(Path(__file__).parents[2] / part) for part in ("tests", "services", "models"))
    child = subprocess.run([sys.executable, "-c", script, url], env={"PYTHONPATH": path}, check=False)
    assert child.returncode == -signal.SIGKILL
    store.save_batch(IngestBatch(positions={"0": "1"}, decisions=[a_decision("p1")]))
    assert open_store().positions() == {"0": "1"}
