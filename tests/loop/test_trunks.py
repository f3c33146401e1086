"""Another trunk goes live: the reward state moves to it before anything is refreshed on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from plaudit.core.events import Decision, Thumb
from plaudit.core.rollout import Change, rollback
from plaudit.learner.features.action_heads import evidence_of
from plaudit.learner.features.context import Context, LabelledContext
from plaudit_models.bandit.reward_model import RewardState, empty_state
from support.builders import NOW_S
from support.loop_world import World, assert_same_sums, reward_state

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def recount_on(world: World, version: int, state: RewardState) -> RewardState:
    """Sums over all thumbs at what the version's trunk makes of their content."""
    labelled = []
    for experience in world.store.experiences():
        id_ = experience.decision.prediction_id
        assert experience.label is not None
        _, features = world.policy(version, world.store.contents([id_])[id_])
        context = Context(features, world.registry.manifest(version).spec.actions)
        labelled.append(LabelledContext(context, experience.label))
    return empty_state(state.space).add(evidence_of(state.space, labelled))


def assert_stands_on(world: World, version: int, state: RewardState | None) -> None:
    assert state is not None
    assert state.space.trunk_digest == world.registry.manifest(version).trunk_digest
    expected = recount_on(world, version, state)
    # Content embedded in batches and one by one differs in the last digits of float32.
    for ours, theirs in ((state.gram, expected.gram), (state.target, expected.target)):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert state.weight.tolist() == pytest.approx(expected.weight.tolist())


def test_the_state_is_rebuilt_on_the_new_trunk_and_refreshes_go_on(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    world.traffic(64, likes_fish)
    world.settle(learner)
    other = world.promote(world.publish(seed=7))
    learner.step()
    assert_stands_on(world, other, reward_state(learner))
    live = world.registry.rollout().live
    assert live is not None
    assert live > other, "what was known already is learned on the new trunk at once"
    assert world.registry.manifest(live).trunk_digest == world.registry.manifest(other).trunk_digest
    assert world.satisfaction(live, "fish") > world.satisfaction(other, "fish")
    world.traffic(64, likes_fish)
    world.settle(learner)
    assert_stands_on(world, other, reward_state(learner))


def test_feedback_on_answers_of_the_old_trunk_is_learned_on_the_new_one(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10**6, "max_wait_s": 10**6}})
    learner = world.learner()
    early = [world.decide(seed) for seed in range(5)]
    late = [world.decide(seed) for seed in range(5, 10)]
    world.log.append(early)
    world.settle(learner)
    other = world.promote(world.publish(seed=7))
    world.log.append(late)
    world.log.append([world.say(decision, Thumb(up=True)) for decision in (*early, *late)])
    world.settle(learner)
    assert learner.state.progress.experiences == 10
    assert_stands_on(world, other, reward_state(learner))
    noted = {e.decision.prediction_id: e.probabilities for e in world.store.experiences()}
    for decision in (*early, *late):
        assert noted[decision.prediction_id] == pytest.approx(world.policy(1, decision.content)[0].tolist(), abs=1e-5)


def test_a_mind_changed_after_the_trunk_is_forgotten_at_the_new_features(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10**6, "max_wait_s": 10**6}})
    learner = world.learner()
    decisions = world.traffic(10, likes_fish)
    world.settle(learner)
    other = world.promote(world.publish(seed=7))
    world.log.append([world.say(decision, Thumb(up=not likes_fish(decision))) for decision in decisions])
    world.settle(learner)
    assert_stands_on(world, other, reward_state(learner))


def test_without_stored_content_nothing_is_carried_over_and_nothing_breaks(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10**6, "max_wait_s": 10**6}})
    learner = world.learner()
    decisions = [world.decide(seed, content={}) for seed in range(5)]
    world.log.append([*decisions, *(world.say(decision, Thumb(up=True)) for decision in decisions)])
    world.settle(learner)
    world.promote(world.publish(seed=7))
    learner.step()
    world.log.append([world.say(decision, Thumb(up=False)) for decision in decisions])
    world.settle(learner)
    assert_same_sums(reward_state(learner), empty_state(reward_state(learner).space))


def test_a_rollback_across_trunks_is_followed(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10**6, "max_wait_s": 10**6}})
    learner = world.learner()
    world.traffic(20, likes_fish)
    world.settle(learner)
    world.promote(world.publish(seed=7))
    world.traffic(20, likes_fish)
    world.settle(learner)
    world.registry.set_rollout(rollback(world.registry.rollout(), Change("ada", NOW_S, "I liked the old one better")))
    world.settle(learner)
    learner.step()
    assert world.registry.rollout().live == 1
    assert_stands_on(world, 1, reward_state(learner))
