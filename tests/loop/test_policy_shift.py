"""How far the live policy has moved is measured after every swap, for each head, and what a scrape shows is that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from plaudit.core.events import Decision, Thumb
from plaudit.core.rollout import Change, pin
from plaudit_models.bandit.policy import divergence, probabilities
from support.builders import tiny_spec
from support.loop_dynamic_actions import DynamicActionWorld, some_dynamic_actions
from support.loop_world import SPEC, World

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def kl(world: World, against: str, head: str = "fixed_actions") -> float | None:
    return world.metric("plaudit_learner_policy_kl_nats", model=SPEC.name, against=against, head=head)


def measured_kl(world: World, against: str, head: str = "fixed_actions") -> float:
    found = kl(world, against, head)
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


# --- dynamic actions -------------------------------------------------------------------------------------------------


@pytest.fixture
def listing(tmp_path: Path) -> Iterator[DynamicActionWorld]:
    world = DynamicActionWorld(
        tmp_path, settings={"learner": {"batch": 1, "max_wait_s": 0.001}, "finetune": {"enabled": False}}
    )
    world.first_version()
    yield world
    world.close()


def listed(world: DynamicActionWorld, n: int) -> list[Decision]:
    """Log n decisions between two to six dynamic actions each, of n users, who like what is loud."""
    decisions = []
    for seed in range(n):
        actions, user = some_dynamic_actions(world.rng, 2 + seed % 5), f"lister {next(world.numbers)}"
        decision = world.decide_between(actions, seed, request_id=str(seed), user_id=user)
        text = {each.id: each.text for each in decision.dynamic_actions}[decision.action]
        world.log.append([decision, world.say(decision, Thumb(up="loud" in text))])
        decisions.append(decision)
    return decisions


def by_hand_over_lists(world: DynamicActionWorld, live: int, before: int | None, decisions: list[Decision]) -> float:
    """As :func:`by_hand`, each decision over its own list."""
    found = []
    for decision in decisions:
        seed = int(decision.request_id)
        now, features = world.over(live, decision.dynamic_actions, seed)
        if before is None:
            floor = world.registry.manifest(live).floor
            reference = probabilities(features.base_logits[None], np.ones((1, len(now)), np.bool_), floor)[0]
        else:
            reference, _ = world.over(before, decision.dynamic_actions, seed)
        found.append(float(np.sum(now * np.log(now / reference))))
    return float(np.mean(found))


def test_each_head_is_measured_on_its_own_decisions(listing: DynamicActionWorld) -> None:
    learner = listing.learner()
    lists, fixed = listed(listing, 24), listing.traffic(32, likes_fish)
    listing.settle(learner)
    before = listing.registry.rollout().live
    assert before is not None
    of_lists, of_fixed = measured_kl(listing, "reference", "dynamic_actions"), measured_kl(listing, "reference")
    assert of_lists == pytest.approx(by_hand_over_lists(listing, before, None, lists), rel=1e-3)
    assert of_fixed == pytest.approx(by_hand(listing, before, None, fixed), rel=1e-4)
    lists += listed(listing, 24)
    learner.step()
    live = listing.registry.rollout().live
    assert live is not None
    assert live != before
    shift = measured_kl(listing, "previous", "dynamic_actions")
    assert shift == pytest.approx(by_hand_over_lists(listing, live, before, lists), rel=1e-3)
    assert min(of_lists, of_fixed, shift) > 0.01
    assert measured_kl(listing, "previous") == pytest.approx(0.0, abs=1e-6)  # nothing new was said of fixed actions


def test_a_head_is_measured_once_there_is_a_decision_of_its_kind(listing: DynamicActionWorld) -> None:
    """Also where the version that serves was measured on the other kind before."""
    listing.settings = {**listing.settings, "learner": {"batch": 10_000, "max_wait_s": 1e9}}
    learner = listing.learner()
    listing.traffic(4, likes_fish)
    listing.settle(learner)
    assert (kl(listing, "reference"), kl(listing, "reference", "dynamic_actions")) == (0.0, None)
    listed(listing, 4)
    listing.settle(learner)
    assert kl(listing, "reference", "dynamic_actions") == pytest.approx(0.0, abs=1e-9)


def test_lists_are_compared_on_what_both_trunks_make_of_them(listing: DynamicActionWorld) -> None:
    learner = listing.learner()
    decisions = listed(listing, 24)
    listing.settle(learner)
    before = listing.registry.rollout().live
    live = listing.publish(seed=9)
    listing.registry.set_rollout(pin(listing.registry.rollout(), live, Change("a test", listing.now_s, "to stay")))
    learner.step()
    expected = by_hand_over_lists(listing, live, before, decisions)
    assert measured_kl(listing, "previous", "dynamic_actions") == pytest.approx(expected, rel=1e-3)
    assert kl(listing, "reference", "dynamic_actions") == pytest.approx(0.0, abs=1e-6)  # it has no head of its own
    assert expected > 0.1


def test_a_version_that_scores_no_text_is_no_version_before_of_lists(listing: DynamicActionWorld) -> None:
    listing.settings = {**listing.settings, "learner": {"batch": 10_000, "max_wait_s": 1e9}}
    learner = listing.learner()
    lists = listed(listing, 8)
    listing.settle(learner)
    listing.promote(listing.publish(spec=tiny_spec()))
    listing.traffic(4, likes_fish)
    listing.settle(learner)
    other = listing.promote(listing.publish(seed=9))
    listing.settle(learner)
    expected = by_hand_over_lists(listing, other, 1, lists)
    assert measured_kl(listing, "previous", "dynamic_actions") == pytest.approx(expected, rel=1e-3)
