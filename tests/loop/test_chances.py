"""What the canary is told of the answers of a trial: exactly what candidate and live would have given them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loop_world import SPEC, World
from plaudit.adapters.onnx_runtime import OnnxRuntime
from plaudit.core.events import Decision, Thumb
from plaudit.core.rollout import Change, start_canary
from plaudit.learner.chances import chances_of
from plaudit.learner.versions import Versions
from plaudit_models.preprocess import Limits

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def trial(world: World, share: float = 0.5) -> tuple[int, list[Decision]]:
    """A candidate of another trunk beside version 1, and 40 experiences of it."""
    candidate = world.publish(seed=9, prefer="fish")
    change = Change("a test", world.now_s, "a trial")
    world.registry.set_rollout(start_canary(world.registry.rollout(), candidate, share, change))
    decisions = world.traffic(40, likes_fish)
    world.settle(world.learner())
    return candidate, decisions


def test_each_answer_has_the_chance_that_candidate_and_live_gave_it(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10_000, "max_wait_s": 1e9}})
    candidate, decisions = trial(world)
    rows = world.store.experiences(after=0)
    found = chances_of(rows, candidate, 1, world.store, Versions(world.registry, OnnxRuntime("cpu"), Limits()))
    assert {decision.version for decision in decisions} == {1, candidate}
    by_id = {decision.prediction_id: decision for decision in decisions}
    for i, row in enumerate(rows):
        decision = by_id[row.served.prediction_id]
        action = SPEC.action_index(decision.action)
        np.testing.assert_allclose(found.candidate[i], world.policy(candidate, decision.content)[0][action], rtol=1e-5)
        np.testing.assert_allclose(found.live[i], world.policy(1, decision.content)[0][action], rtol=1e-5)


def test_a_version_that_is_gone_leaves_the_draw_to_speak(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10_000, "max_wait_s": 1e9}})
    trial(world)
    rows = world.store.experiences(after=0)
    gone = [row for row in rows if row.served.version == 1]
    found = chances_of(gone, 99, 1, world.store, Versions(world.registry, OnnxRuntime("cpu"), Limits()))
    assert np.isnan(found.candidate).all()
    assert not np.isnan(found.live).any()


def test_a_greedy_answer_was_not_drawn(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 10_000, "max_wait_s": 1e9}})
    decision = world.decide(greedy=True)
    world.log.append([decision, world.say(decision, Thumb(up=True))])
    world.settle(world.learner())
    versions = Versions(world.registry, OnnxRuntime("cpu"), Limits())
    found = chances_of(world.store.experiences(after=0), world.publish(seed=9), 1, world.store, versions)
    assert np.isnan(found.candidate).all()
