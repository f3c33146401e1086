"""Head refreshes under the running comparison: harm is reverted, gain is made the new standard."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from plaudit.core.events import Decision, Thumb
from plaudit.core.rollout import Change, pin, refresh
from plaudit.learner.features.action_heads import evidence_of
from plaudit.learner.features.context import Context, LabelledContext
from plaudit.learner.loop import Learner
from plaudit_models.bandit.reward_model import empty_state
from support.builders import NOW_S, tiny_head_refresh
from support.loop_world import SPEC, World, assert_same_sums, reward_state

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def served_by(world: World, folder: str, prefer: str) -> int:
    """Publish a head that prefers an action and let it serve as a refresh."""
    live = world.registry.rollout().live
    assert live is not None
    tiny_head_refresh(world.folder / folder, world.registry.folder(live), prefer=prefer)
    version = world.registry.publish(world.folder / folder).version
    world.registry.set_rollout(refresh(world.registry.rollout(), version, Change("a test", NOW_S, "")))
    return version


def gated_on_fish(world: World) -> Learner:
    """The gated version is a head that answers fish, which users like; nothing is refreshed by itself."""
    live = world.registry.rollout().live
    assert live is not None
    tiny_head_refresh(world.folder / "fish", world.registry.folder(live), prefer="fish")
    world.promote(world.registry.publish(world.folder / "fish").version)
    learner = world.learner()
    learner.step()
    return learner


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world({"learner": {"batch": 10**6, "max_wait_s": 10**6}})


def test_harm_is_reverted_and_forgotten(world: World) -> None:
    learner = gated_on_fish(world)
    gated = world.registry.rollout().live
    world.traffic(50, likes_fish)  # by the gated version itself: compared with no other
    world.settle(learner)
    assert learner.state.running.comparison.n == 0
    harmful = served_by(world, "cat", prefer="cat")
    for _ in range(10):
        world.traffic(50, likes_fish)
        world.settle(learner)
        if world.registry.rollout().live != harmful:
            break
    rollout = world.registry.rollout()
    assert (rollout.live, rollout.gated, rollout.actor) == (gated, gated, "learner")
    assert "did harm" in rollout.reason
    # The gated version was made by hand and has learned from nothing: so all that came is excluded.
    assert all(experience.excluded for experience in world.store.experiences())
    assert learner.state.progress.experiences == 0
    assert_same_sums(reward_state(learner), empty_state(reward_state(learner).space))
    assert learner.state.running.comparison.n == 0


def test_late_feedback_on_a_reverted_version_counts_against_no_other(world: World) -> None:
    learner = gated_on_fish(world)
    harmful = served_by(world, "cat", prefer="cat")
    late = [world.decide() for _ in range(200)]
    while world.registry.rollout().live == harmful:
        world.traffic(50, likes_fish)
        world.settle(learner)
    world.log.append(late)
    world.log.append([world.say(decision, Thumb(up=likes_fish(decision))) for decision in late])
    world.settle(learner)
    assert learner.state.progress.experiences == 200
    assert learner.state.running.comparison.n == 0


def test_what_was_excluded_stays_so_when_labels_change(world: World) -> None:
    learner = gated_on_fish(world)
    harmful = served_by(world, "cat", prefer="cat")
    seen: list[Decision] = []
    while world.registry.rollout().live == harmful:
        seen += world.traffic(50, likes_fish)
        world.settle(learner)
    world.log.append([world.say(decision, Thumb(up=True)) for decision in seen])
    world.settle(learner)
    assert learner.state.progress.experiences == 0
    assert_same_sums(reward_state(learner), empty_state(reward_state(learner).space))


def test_gain_makes_the_refresh_the_new_gated_version(world: World) -> None:
    learner = world.learner()
    learner.step()
    better = served_by(world, "fish", prefer="fish")
    for _ in range(20):
        world.traffic(50, likes_fish)
        world.settle(learner)
        if world.registry.rollout().gated == better:
            break
    rollout = world.registry.rollout()
    assert (rollout.live, rollout.gated) == (better, better)
    assert "did better" in rollout.reason
    assert learner.state.running.gated == better


def test_the_comparison_goes_on_after_a_restart(world: World) -> None:
    learner = world.learner()
    learner.step()
    served_by(world, "fish", prefer="fish")
    world.traffic(40, likes_fish)
    world.settle(learner)
    before = learner.state.running.comparison
    assert before.n > 0
    learner.close()
    again = world.learner()
    assert again.state.running.comparison.report() == before.report()
    again.step()
    assert again.state.running.comparison.report() == before.report()


def test_a_version_that_a_person_pinned_is_left_alone(world: World) -> None:
    learner = gated_on_fish(world)
    harmful = served_by(world, "cat", prefer="cat")
    rollout = world.registry.rollout()
    world.registry.set_rollout(pin(rollout, harmful, Change("ada", NOW_S, "I want cats")))
    for _ in range(6):
        world.traffic(50, likes_fish)
        world.settle(learner)
    assert learner.state.running.comparison.finding() == "harm"
    assert world.registry.rollout().live == harmful


def test_a_revert_leaves_what_the_gated_version_had_learned(make_world: MakeWorld) -> None:
    """Learned and confirmed first; then a bad head serves and is reverted: the sums are those up to the gated one."""
    world = make_world()
    learner = world.learner()
    while world.registry.rollout().gated == 1:
        world.traffic(64, likes_fish)
        world.settle(learner)
    gated = world.registry.rollout().gated
    assert gated is not None
    learned = world.registry.manifest(gated).data["last_experience"]
    world.settings = {**world.settings, "learner": {"batch": 10**6, "max_wait_s": 10**6}}
    learner.close()
    learner = world.learner()
    harmful = served_by(world, "cat", prefer="cat")
    while world.registry.rollout().live == harmful:
        world.traffic(50, likes_fish)
        world.settle(learner)
    assert world.registry.rollout().live == gated
    kept = [e for e in world.store.experiences() if not e.excluded]
    assert [e.number for e in kept] == list(range(1, learned + 1))
    state = reward_state(learner)
    assert state is not None
    features = world.store.features([e.decision.prediction_id for e in kept], state.space.trunk_digest)
    labelled = [
        LabelledContext(Context(features[e.decision.prediction_id], SPEC.actions), e.label)
        for e in kept
        if e.label is not None
    ]
    assert_same_sums(state, empty_state(state.space).add(evidence_of(state.space, labelled)))
