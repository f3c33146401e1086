"""How far the live policy has moved is measured after every swap, and what a scrape shows is that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plaudit.core.events import Decision
from plaudit.core.rollout import Change, pin
from plaudit_models.bandit.policy import divergence, probabilities
from support.loop_world import SPEC, World

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def kl(world: World, against: str) -> float | None:
    return world.metric("plaudit_learner_policy_kl_nats", model=SPEC.name, against=against)


def measured_kl(world: World, against: str) -> float:
    found = kl(world, against)
    assert found is not None
    return found


def by_hand(world: World, live: int, before: int | None, decisions: list[Decision]) -> float:
    """From the version's own graphs, content by content; ``before`` None: from its trunk's base policy."""
    found = []
    for decision in decisions:
        now, features = world.policy(live, decision.content)
        if before is None:
            floor = world.registry.manifest(live).floor
            reference = probabilities(features.base_logits[None], np.ones((1, len(now)), np.bool_), floor)[0]
        else:
            reference, _ = world.policy(before, decision.content)
        found.append(divergence(now[None], reference[None])[0])
    return float(np.mean(found))


def test_nothing_is_told_before_anything_was_asked(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    world.settle(learner)
    assert kl(world, "reference") is None


def test_each_refresh_is_measured_against_the_base_policy_and_the_version_before(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    first = world.traffic(64, likes_fish)
    world.settle(learner)
    before = world.registry.rollout().live
    assert before is not None
    assert kl(world, "reference") == pytest.approx(by_hand(world, before, None, first), rel=1e-4)
    second = world.traffic(64, likes_fish)
    learner.step()
    live = world.registry.rollout().live
    assert live is not None
    assert live != before
    assert kl(world, "reference") == pytest.approx(by_hand(world, live, None, first + second), rel=1e-4)
    assert kl(world, "previous") == pytest.approx(by_hand(world, live, before, first + second), rel=1e-4)
    assert measured_kl(world, "reference") > 0.1


def test_a_new_trunk_is_compared_on_what_both_trunks_see(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decisions = world.traffic(64, likes_fish)
    world.settle(learner)
    before = world.registry.rollout().live
    live = world.publish(seed=9, prefer="dog")
    change = Change("a test", world.now_s, "to stay")
    world.registry.set_rollout(pin(world.registry.rollout(), live, change))
    learner.step()
    assert kl(world, "reference") == pytest.approx(by_hand(world, live, None, decisions), rel=1e-4)
    assert kl(world, "previous") == pytest.approx(by_hand(world, live, before, decisions), rel=1e-4)
    assert measured_kl(world, "previous") > 0.5


def test_a_rollback_is_measured_too(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 1_000, "max_wait_s": 1e9}})
    learner = world.learner()
    world.traffic(16, likes_fish)
    world.settle(learner)
    world.promote(world.publish(seed=9, prefer="dog"))
    learner.step()
    there = kl(world, "previous")
    world.promote(1)
    learner.step()
    assert there is not None
    assert kl(world, "previous") not in (None, there)
