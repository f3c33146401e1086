"""What the canary is told of the answers of an experiment: exactly what candidate and live would have given them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.core.events import Decision, Thumb
from plaudit.core.rollout import Change, start_canary
from plaudit.learner.evaluation.propensities import propensities_of
from plaudit.learner.features.policies import PolicyCache
from plaudit_models.limits import Limits
from support.loop_world import SPEC, World

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def experiment(world: World, share: float = 0.5) -> tuple[int, list[Decision]]:
    """A candidate of another trunk beside version 1, and 40 experiences of it."""
    candidate = world.publish(seed=9, prefer="fish")
    change = Change("a test", world.now_s, "an experiment")
    world.registry.set_rollout(start_canary(world.registry.rollout(), candidate, share, change))
    decisions = world.traffic(40, likes_fish)
    world.settle(world.learner())
    return candidate, decisions


def test_each_answer_has_the_propensity_that_candidate_and_live_gave_it(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10_000, "max_wait_s": 1e9}})
    candidate, decisions = experiment(world)
    rows = world.store.experiences(after=0)
    found = propensities_of(rows, candidate, 1, world.store, PolicyCache(world.registry, OnnxRuntime("cpu"), Limits()))
    assert {decision.version for decision in decisions} == {1, candidate}
    by_id = {decision.prediction_id: decision for decision in decisions}
    for i, row in enumerate(rows):
        decision = by_id[row.decision.prediction_id]
        action = SPEC.action_index(decision.action)
        np.testing.assert_allclose(found.candidate[i], world.policy(candidate, decision.content)[0][action], rtol=1e-5)
        np.testing.assert_allclose(found.live[i], world.policy(1, decision.content)[0][action], rtol=1e-5)


def test_a_version_that_is_gone_leaves_the_draw_to_speak(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10_000, "max_wait_s": 1e9}})
    experiment(world)
    rows = world.store.experiences(after=0)
    gone = [row for row in rows if row.decision.version == 1]
    found = propensities_of(gone, 99, 1, world.store, PolicyCache(world.registry, OnnxRuntime("cpu"), Limits()))
    assert np.isnan(found.candidate).all()
    assert not np.isnan(found.live).any()


def test_a_greedy_answer_was_not_drawn(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10_000, "max_wait_s": 1e9}})
    decision = world.decide(greedy=True)
    world.log.append([decision, world.say(decision, Thumb(up=True))])
    world.settle(world.learner())
    versions = PolicyCache(world.registry, OnnxRuntime("cpu"), Limits())
    found = propensities_of(world.store.experiences(after=0), world.publish(seed=9), 1, world.store, versions)
    assert np.isnan(found.candidate).all()
