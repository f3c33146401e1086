"""The whole loop in one process: what users say becomes a better policy, whatever order it comes in."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.core.errors import StoreUnavailable
from plaudit.core.events import (
    Correction,
    DeadLetter,
    Decision,
    Event,
    Feedback,
    Preference,
    Retract,
    Signal,
    Thumb,
    Topic,
)
from plaudit.core.experience import FeedbackState
from plaudit.core.ports.log import Record
from plaudit.core.ports.store import LeaderCommit
from plaudit.core.rollout import Change, pin, unpin
from plaudit.learner.ingest.join import SILENCE_WEIGHT
from plaudit_models.bandit.reward_model import empty_state
from support.builders import NOW_S
from support.loop_recount import recount
from support.loop_world import SPEC, World, assert_same_sums, reward_state

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def test_thumbs_make_the_live_policy_better(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    before = world.satisfaction(1, "fish")
    for _ in range(4):
        world.traffic(64, likes_fish)
        world.settle(learner)
    live = world.registry.rollout().live
    assert live is not None
    assert before < 0.5
    assert world.satisfaction(live, "fish") > 0.9
    manifest = world.registry.manifest(live)
    assert manifest.kind == "head"
    assert manifest.trunk_digest == world.registry.manifest(1).trunk_digest
    assert manifest.data["experiences"] == 256
    assert manifest.data["feedback"] == 256


def test_the_manifest_says_what_the_version_has_learned_from(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    thumb = world.say(decision, Thumb(up=True))
    world.log.append([decision, thumb])
    world.settle(learner)
    manifest = world.registry.manifest(2)
    assert manifest.parent == 1
    assert manifest.data == {
        "positions": {"0": "2"},
        "store_id": world.store.intake_stats().store_id,
        "batches": 1,
        "experiences": 1,
        "dynamic_experiences": 0,
        "outdated_experiences": 0,
        "drifts": 0,
        "last_experience": 1,
        "raters": 1,
        "feedback": 1,
        "last_feedback_id": thumb.feedback_id,
        "last_feedback_time_s": pytest.approx(thumb.time_s, abs=1e-6),
    }
    assert world.registry.rollout().live == 2
    assert world.registry.rollout().gated == 1


def test_one_refresh_moves_the_policy_no_further_than_allowed(make_world: MakeWorld) -> None:
    """The rest follows with the next refreshes, without any new feedback."""
    world = make_world({"policy": {"max_kl": 0.1}})
    learner = world.learner()
    world.traffic(64, likes_fish)
    learner.step()
    first = world.registry.manifest(2).metrics
    assert first["kl_nats"] <= 0.1
    assert first["share_of_step"] < 1.0
    before = world.satisfaction(2, "fish")
    while learner.state.progress.pending:
        learner.step()
    live = world.registry.rollout().live
    assert live is not None
    assert live > 2
    assert world.satisfaction(live, "fish") > before


def test_sums_equal_a_recount_of_the_log(make_world: MakeWorld) -> None:
    """With changed minds, several users and retractions among the feedback."""
    world = make_world({"learner": {"user_cap": 1.0}})
    learner = world.learner()
    decisions = world.traffic(40, likes_fish)
    world.settle(learner)
    world.log.append([world.say(d, Thumb(up=True)) for d in decisions[:10]])
    world.log.append([world.say(d, Thumb(up=False), user_id="another") for d in decisions[5:15]])
    world.log.append([world.say(d, Retract()) for d in decisions[20:30]])
    world.settle(learner)
    expected, count = recount(world.log, SPEC, reward_state(learner).space)
    assert_same_sums(reward_state(learner), expected)
    assert learner.state.progress.experiences == count == 30


def test_what_is_retracted_leaves_nothing_behind(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decisions = world.traffic(20, likes_fish)
    world.settle(learner)
    world.log.append([world.say(decision, Retract()) for decision in decisions])
    world.settle(learner)
    assert_same_sums(reward_state(learner), empty_state(reward_state(learner).space))
    assert learner.state.progress.experiences == 0


def test_a_correction_covers_every_action(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    world.log.append([decision, world.say(decision, Correction("bird"))])
    world.settle(learner)
    assert reward_state(learner).weight.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_feedback_that_comes_before_its_decision_waits(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    world.log.append([world.say(decision, Thumb(up=True))])
    world.settle(learner)
    assert learner.store.intake_stats().waiting == 1
    assert [feedback.prediction_id for feedback in world.store.orphans(10)] == [decision.prediction_id]
    world.log.append([decision])
    world.settle(learner)
    assert learner.store.intake_stats().waiting == 0
    assert learner.state.progress.experiences == 1
    assert world.store.orphans(10) == []


def test_feedback_of_an_unknown_action_is_discarded_with_the_reason(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    bad = world.say(decision, Correction("cow"))
    world.log.append([decision, bad])
    world.settle(learner)
    kept = world.store.feedback([bad.feedback_id])[bad.feedback_id]
    assert kept.state == FeedbackState.DISCARDED
    assert "'cow'" in kept.reason
    assert (learner.store.intake_stats().discarded, learner.state.progress.experiences) == (1, 0)


def test_a_preference_without_the_served_action_teaches_but_proves_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = replace(world.decide(), action="cat")
    world.log.append([decision, world.say(decision, Preference("bird", "fish"))])
    world.settle(learner)
    (experience,) = world.store.experiences()
    assert experience.reward is None
    assert reward_state(learner).weight.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_decisions_of_another_model_are_counted_and_left_alone(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    world.log.append([world.decide(model="another")])
    world.settle(learner)
    assert learner.store.intake_stats().outcomes["other_model"] == 1
    assert "decision" not in learner.store.intake_stats().outcomes


def test_an_unreadable_record_goes_to_the_dead_letters_and_the_loop_goes_on(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    world.log.append([decision])
    with sqlite3.connect(world.folder / "log.sqlite") as connection:
        connection.execute(
            "INSERT INTO events (topic, event_id, key, time_s, payload) VALUES ('plaudit.feedback', 'x', 'x', 0, ?)",
            (b"\xff\xff",),
        )
    connection.close()
    bad = world.decide()
    assert bad.features is not None
    bad.features.embedding[0] = float("nan")
    world.log.append([bad, world.say(decision, Thumb(up=True))])
    world.settle(learner)
    assert learner.state.progress.experiences == 1
    assert learner.store.intake_stats().outcomes["unreadable"] == 2
    reader = world.log.reader("test", [Topic.DEAD_LETTER], start=dict)
    found = [record.event for record in reader.poll(10, 0.0)]
    letters = [event for event in found if isinstance(event, DeadLetter)]
    assert len(letters) == len(found)
    reader.close()
    assert [letter.source_topic for letter in letters] == ["plaudit.feedback", "plaudit.decisions"]
    assert letters[0].payload == b"\xff\xff"
    assert "not finite" in letters[1].reason


def test_silence_means_nothing_unless_it_is_given_a_reward(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    world.log.append([world.decide()])
    world.now_s += 1_000
    world.settle(learner)
    learner.step()
    assert learner.state.progress.experiences == 0


def test_the_version_that_learned_from_a_piece_of_feedback_can_be_told(make_world: MakeWorld) -> None:
    """It is the first that had taken in the batch in which the feedback was joined, late decisions included."""
    world = make_world()
    learner = world.learner()

    def learned(feedback: Feedback) -> int:
        status = world.store.feedback_status(feedback.feedback_id)
        assert status is not None
        versions = world.registry.versions()
        return next(v for v in versions if world.registry.manifest(v).data.get("batches", 0) >= status.batch)

    early, late = world.decide(), world.decide()
    first, before = world.say(early, Thumb(up=True)), world.say(late, Thumb(up=True))
    world.log.append([early, first, before])
    world.settle(learner)
    world.log.append([late])
    world.settle(learner)
    changed = world.say(early, Thumb(up=False))
    world.log.append([changed])
    world.settle(learner)
    assert [learned(f) for f in (first, before, changed)] == [2, 3, 4]


def test_silence_can_be_learned_from_and_gives_way_to_words(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"silence_reward": 0.7, "silence_after_s": 60.0}})
    learner = world.learner()
    quiet, loud = world.decide(), world.decide()
    world.log.append([quiet, loud, world.say(loud, Thumb(up=True))])
    world.settle(learner)
    assert learner.state.progress.experiences == 1
    world.now_s += 61
    learner.step()
    assert learner.state.progress.experiences == 2
    assert reward_state(learner).weight.sum() == pytest.approx(1.0 + SILENCE_WEIGHT)
    world.log.append([world.say(quiet, Thumb(up=False))])
    world.settle(learner)
    learner.step()
    assert learner.state.progress.experiences == 2
    assert_same_sums(reward_state(learner), recount(world.log, SPEC, reward_state(learner).space)[0])


def test_one_user_is_learned_from_up_to_the_cap(make_world: MakeWorld) -> None:
    """Of 100 experiences with a cap of a tenth, 10 of the user who gave half of them are learned from, and not more."""
    world = make_world({"learner": {"user_cap": 0.1, "batch": 1_000}})
    learner = world.learner()
    decisions = [world.decide(user_id="loud" if i % 2 else f"quiet {i}") for i in range(100)]
    world.log.append(decisions)
    world.log.append([world.say(decision, Thumb(up=True)) for decision in decisions])
    world.settle(learner)
    learned = [e.decision.user_id for e in world.store.experiences() if e.counts]
    assert learned.count("loud") == 10
    assert len(learned) == 60
    assert learner.state.progress.experiences == 60
    assert reward_state(learner).weight.sum() == pytest.approx(60.0)


def test_a_pinned_version_stays_while_learning_goes_on(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    change = Change("ada", NOW_S, "an audit")
    world.registry.set_rollout(pin(world.registry.rollout(), 1, change))
    world.traffic(64, likes_fish)
    world.settle(learner)
    assert world.registry.versions() == [1]
    assert learner.state.progress.experiences == 64
    world.registry.set_rollout(unpin(world.registry.rollout(), change))
    learner.step()
    assert world.registry.rollout().live == 2


def test_without_a_live_version_the_log_waits(make_world: MakeWorld) -> None:
    world = make_world(live=False)
    learner = world.learner()
    assert learner.step() is False
    version = world.publish()
    world.promote(version)
    world.traffic(3, likes_fish)
    world.settle(learner)
    assert learner.state.progress.experiences == 3


def test_a_restarted_learner_goes_on_where_it_was(make_world: MakeWorld) -> None:
    world = make_world()
    first = world.learner()
    world.traffic(30, likes_fish)
    world.settle(first)
    first.close()
    second = world.learner()
    assert_same_sums(reward_state(second), reward_state(first))
    world.traffic(30, likes_fish)
    world.settle(second)
    assert_same_sums(reward_state(second), recount(world.log, SPEC, reward_state(second).space)[0])
    assert second.state.progress.experiences == 60


def test_a_step_that_could_not_be_saved_is_done_again(make_world: MakeWorld) -> None:
    """The store is away once; the loop begins again from what was saved, and nothing is lost or counted twice."""
    world = make_world()
    learner = world.learner()
    world.traffic(10, likes_fish)
    save, calls = world.store.save, []

    def away_once(commit: LeaderCommit) -> None:
        calls.append(commit)
        if len(calls) == 1:
            raise StoreUnavailable("disk full")
        save(commit)

    world.store.save = away_once  # type: ignore[method-assign]

    class Stop:
        """Stops the loop once all is learned, and never waits."""

        def is_set(self) -> bool:
            return learner.state.progress.experiences == 10

        def wait(self, timeout_s: float) -> bool:
            return False

    learner.run(Stop())  # type: ignore[arg-type]
    assert_same_sums(reward_state(learner), recount(world.log, SPEC, reward_state(learner).space)[0])


def test_old_versions_are_pruned_with_what_was_remembered_of_them(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"unused_versions_kept": 1}})
    learner = world.learner()
    for _ in range(5):
        world.traffic(2, likes_fish)
        world.settle(learner)
    rollout = world.registry.rollout()
    kept = set(world.registry.versions())
    assert {rollout.live, rollout.previous, rollout.gated} <= kept
    assert len(kept) <= 4
    assert rollout.live is not None
    assert learner.state.served_head(rollout.live) is not None
    assert learner.state.served_head(2) is None


def test_with_other_features_than_what_serves_was_built_on_refreshes_go_on(make_world: MakeWorld) -> None:
    """A setting was changed between two starts: everything is learned anew, and the next head is built on that."""
    world = make_world({"policy": {"embedding_features": 8, "max_kl": 0.05}})
    world.traffic(20, likes_fish)
    world.settle(world.learner())
    before = world.registry.rollout().live
    world.settings = {**world.settings, "policy": {"embedding_features": 16, "max_kl": 0.05}}
    learner = world.learner()
    world.traffic(20, likes_fish)
    world.settle(learner)
    live = world.registry.rollout().live
    assert live is not None
    assert before is not None
    assert live > before
    served = learner.state.served_head(live)
    assert served is not None
    assert served.space == reward_state(learner).space
    assert served.space.embedding_features == 16


def test_the_status_file_says_how_things_stand(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    learner.step()
    status = json.loads((world.folder / "work" / "learner-status.json").read_text())
    assert (status["live"], status["gated"], status["experiences"]) == (1, 1, 0)
    assert learner.report().keys() == status.keys()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_and_number_of_deliveries_comes_to_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two learners get the same events, one as logged, one shuffled, repeated, and cut into other batches."""
    world = World(
        tmp_path_factory.mktemp("ordered"), settings={"finetune": {"enabled": False}, "learner": {"max_wait_s": 1e6}}
    )
    other = World(
        tmp_path_factory.mktemp("shuffled"),
        settings={"finetune": {"enabled": False}, "learner": {"max_wait_s": 1e6, "poll_limit": 3}},
    )
    try:
        for each in (world, other):
            each.first_version()
        decisions = [world.decide(seed) for seed in range(3)]
        signals: st.SearchStrategy[Signal] = st.sampled_from(
            [Thumb(up=True), Thumb(up=False), Correction("bird"), Retract()]
        )
        feedback = [
            world.say(decisions[i], signal, user_id=user)
            for i, user, signal in data.draw(
                st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["ada", "bob"]), signals), max_size=8)
            )
        ]
        events: list[Event] = [*decisions, *feedback]
        world.log.append(events)
        shuffled = data.draw(st.permutations(events))
        other.log.append(shuffled)
        # The log itself refuses a second copy, so deliver copies past it.
        first, second = world.learner(), other.learner()
        world.settle(first)
        other.settle(second)
        second.consumer._save(_again(other, shuffled), SPEC.actions)
        other.settle(second)
        assert_same_sums(reward_state(first), reward_state(second))
        assert first.state.progress.experiences == second.state.progress.experiences
        labels = {e.decision.prediction_id: e.label for e in world.store.experiences() if e.label}
        assert labels == {e.decision.prediction_id: e.label for e in other.store.experiences() if e.label}
    finally:
        world.close()
        other.close()


def _again(world: World, events: list[Event]) -> list[Record]:
    """The log's records once more, as a log with redelivery would give them."""
    reader = world.log.reader("again", [Topic.DECISIONS, Topic.FEEDBACK], start=dict)
    records = list(reader.poll(len(events) + 1, 0.0))
    reader.close()
    assert all(isinstance(record.event, Decision | Feedback) for record in records)
    return records
