"""Attackers in the whole loop: who always says the opposite is found and leaves nothing behind; people may overrule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import structlog

from plaudit.core.events import Decision, Feedback, Rating, Thumb
from plaudit.learner.features.action_heads import evidence_of
from plaudit.learner.features.context import Context, LabelledContext
from plaudit.learner.loop import Learner
from plaudit.learner.online.update import user_hash
from plaudit.learner.state import LearnerState
from plaudit_models.bandit.reward_model import RewardState, empty_state
from support.loop_world import SPEC, World, assert_same_sums, reward_state

MakeWorld = Callable[..., World]

CROWD = 30


def traffic(world: World, n: int, *, mallory: float = 0.0) -> None:
    """A crowd that likes fish, and a share of the events from one who says the opposite."""
    events: list[Decision | Feedback] = []
    for i in range(n):
        inverts = world.rng.random() < mallory
        decision = world.decide(seed=int(world.rng.integers(20)), user_id="mallory" if inverts else f"user {i % CROWD}")
        events += [decision, world.say(decision, Thumb(up=(decision.action == "fish") != inverts))]
    world.log.append(events)


def learned_sums(world: World, learner: Learner) -> RewardState:
    """Counted anew from the experiences that count."""
    space = reward_state(learner).space
    kept = [e for e in world.store.experiences() if e.counts]
    found = world.store.features([e.decision.prediction_id for e in kept], space.trunk_digest)
    contexts = [Context(found[e.decision.prediction_id], SPEC.actions) for e in kept]
    labels = [e.heard_label for e in kept]
    rows = [LabelledContext(each, label) for each, label in zip(contexts, labels, strict=True) if label is not None]
    return empty_state(space).add(evidence_of(space, rows))


def of_mallory(world: World) -> list[bool]:
    return [not e.counts for e in world.store.experiences(rater="mallory")]


EXPLORING: dict[str, dict[str, float]] = {"learner": {"batch": 64, "user_cap": 1.0}, "policy": {"floor": 0.4}}
"""Where nearly all answers are liked, who says the opposite only dislikes, as do those whom a service fails."""


def attacked(make_world: MakeWorld) -> tuple[World, Learner]:
    world = make_world(EXPLORING)
    learner = world.learner()
    for _ in range(5):
        traffic(world, 64, mallory=0.3)
        world.settle(learner)
    return world, learner


def test_a_user_who_says_the_opposite_is_quarantined_and_their_feedback_forgotten(make_world: MakeWorld) -> None:
    with structlog.testing.capture_logs() as logs:
        world, learner = attacked(make_world)
    raters = LearnerState(world.store).raters
    assert [user for user, rater in raters.users.items() if rater.trust_level == "quarantined"] == ["mallory"]
    assert len(of_mallory(world)) > 60
    assert all(of_mallory(world))
    assert learner.state.progress.experiences == sum(e.counts for e in world.store.experiences())
    assert_same_sums(reward_state(learner), learned_sums(world, learner))
    (said,) = [line for line in logs if line["event"] == "rater quarantined"]
    assert said["rater"] == user_hash("mallory")
    assert "mallory" not in str(logs)


def test_what_is_in_quarantine_stays_there_after_a_restart(make_world: MakeWorld) -> None:
    world, learner = attacked(make_world)
    learner.close()
    learner = world.learner()
    traffic(world, 32, mallory=0.5)
    world.settle(learner)
    assert all(of_mallory(world))
    assert_same_sums(reward_state(learner), learned_sums(world, learner))


def test_people_release_and_are_not_overruled(make_world: MakeWorld) -> None:
    """Excluded experiences stay so; all later feedback of the user counts."""
    world, learner = attacked(make_world)
    before = len(of_mallory(world))
    world.store.put_command("mallory", "trusted")
    traffic(world, 64, mallory=0.5)
    world.settle(learner)
    assert LearnerState(world.store).raters["mallory"].trust_level == "trusted"
    assert all(of_mallory(world)[:before])
    assert not any(of_mallory(world)[before:])
    assert len(of_mallory(world)) > before
    assert_same_sums(reward_state(learner), learned_sums(world, learner))


def test_people_quarantine_whom_they_like(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 64}})
    learner = world.learner()
    traffic(world, 128)
    world.settle(learner)
    world.store.put_command("user 3", "trusted")
    world.store.put_command("user 3", "quarantined")
    learner.step()
    assert all(e.refused == ("user 3",) for e in world.store.experiences(rater="user 3"))
    assert all(e.counts for e in world.store.experiences(rater="user 4"))
    assert_same_sums(reward_state(learner), learned_sums(world, learner))
    changes = learner.state.progress.changes
    learner.step()
    assert learner.state.progress.changes == changes  # a command is applied once


def test_a_user_who_floods_counts_for_five_equal_shares(make_world: MakeWorld) -> None:
    """31 users: 5/31 is more than the cap of 0.1. The loud one sends half of 300 events."""
    world = make_world({"learner": {"batch": 1_000}})
    learner = world.learner()
    decisions = [world.decide(user_id="loud" if i % 2 else f"user {i % 60}") for i in range(300)]
    world.log.append(decisions)
    world.log.append([world.say(decision, Thumb(up=True)) for decision in decisions])
    world.settle(learner)
    learned = [e for e in world.store.experiences(rater="loud") if e.counts]
    assert len(learned) == int(300 * 5 / 31)
    assert LearnerState(world.store).raters["loud"].floods


def test_a_single_user_is_learned_from_in_full(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decisions = [world.decide(user_id="") for _ in range(40)]
    world.log.append(decisions)
    world.log.append([world.say(decision, Thumb(up=False)) for decision in decisions])
    world.settle(learner)
    assert learner.state.progress.experiences == 40


def test_who_rates_others_decisions_has_one_share_of_them_all(make_world: MakeWorld) -> None:
    """As above, but the loud one rates what 60 others asked: 31 raters, of 300 labels 300·5/31."""
    world = make_world({"learner": {"batch": 1_000}})
    learner = world.learner()
    decisions = [world.decide(user_id=f"user {i % 60}") for i in range(300)]
    raters = ["loud" if i % 2 else decision.user_id for i, decision in enumerate(decisions)]
    world.log.append(decisions)
    world.log.append([world.say(d, Thumb(up=True), user_id=rater) for d, rater in zip(decisions, raters, strict=True)])
    world.settle(learner)
    assert sum(e.counts for e in world.store.experiences(rater="loud")) == int(300 * 5 / 31)
    assert learner.state.progress.n_users == 31
    assert learner.state.raters["loud"].floods
    assert all(learner.state.raters[f"user {i}"].refused == 0 for i in range(0, 60, 2))
    assert_same_sums(reward_state(learner), learned_sums(world, learner))


def test_who_adds_to_others_labels_has_one_share_too(make_world: MakeWorld) -> None:
    """Each of 30 users rates ten decisions of their own; then the loud one all 300. 31 raters by then, of 600 labels
    600·5/31, of which 96 are whole. What is beyond them moves no label."""
    world = make_world({"learner": {"batch": 1_000}})
    learner = world.learner()
    decisions = [world.decide(user_id=f"user {i % 30}") for i in range(300)]
    world.log.append([event for d in decisions for event in (d, world.say(d, Thumb(up=True)))])
    world.settle(learner)
    world.log.append([world.say(d, Rating(0.5), user_id="loud") for d in decisions])
    world.settle(learner)
    heard = [e.heard_label.rewards for e in world.store.experiences() if e.heard_label is not None]
    assert len(heard) == 300
    assert sum(0.75 in rewards.values() for rewards in heard) == int(600 * 5 / 31) == 96
    assert sum(1.0 in rewards.values() for rewards in heard) == 300 - 96
    assert_same_sums(reward_state(learner), learned_sums(world, learner))


def test_strangers_cannot_bring_others_into_quarantine(make_world: MakeWorld) -> None:
    """Mallory says the opposite of what the crowd says about answers to Ada, who is one of the crowd."""
    world = make_world(EXPLORING)
    learner = world.learner()
    for _ in range(5):
        traffic(world, 48)
        asked = [world.decide(seed=int(world.rng.integers(20)), user_id="ada") for _ in range(16)]
        thumbs = [world.say(d, Thumb(up=d.action != "fish"), user_id="mallory") for d in asked]
        world.log.append([event for both in zip(asked, thumbs, strict=True) for event in both])
        world.settle(learner)
    raters = learner.state.raters
    assert [user for user, rater in raters.users.items() if rater.trust_level == "quarantined"] == ["mallory"]
    assert raters["ada"].n == 0
    assert len(of_mallory(world)) == 80
    assert all(of_mallory(world))
    assert_same_sums(reward_state(learner), learned_sums(world, learner))
    before = learner.state.progress.experiences
    world.log.append([world.say(d, Thumb(up=d.action == "fish")) for d in asked])  # now Ada rates the last of them
    world.settle(learner)
    assert learner.state.progress.experiences == before + 16
    assert raters["ada"].trust_level == "heard"
    assert_same_sums(reward_state(learner), learned_sums(world, learner))


@pytest.mark.parametrize("up", [True, False])
def test_the_same_thumb_from_every_user_harms_no_rater(make_world: MakeWorld, up: bool) -> None:
    world = make_world({"learner": {"batch": 64}})
    learner = world.learner()
    for _ in range(3):
        decisions = [world.decide(seed=i % 20, user_id=f"user {i % CROWD}") for i in range(64)]
        world.log.append([event for d in decisions for event in (d, world.say(d, Thumb(up=up)))])
        world.settle(learner)
    assert all(rater.trust_level == "heard" for rater in LearnerState(world.store).raters.users.values())
    assert learner.state.progress.experiences == 192
