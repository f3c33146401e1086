"""Users who change what they want: evidence from before the change goes, exactly, and comes back when they do."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from plaudit.core.errors import StoreMoved
from plaudit.core.events import Decision, Retract
from plaudit.core.ports.store import LeaderCommit
from plaudit.learner.features.features import relearned
from plaudit.learner.loop import Learner
from plaudit.learner.state import LearnerState
from plaudit_models.version_card import card
from support.loop_world import World, assert_same_sums, reward_state

MakeWorld = Callable[..., World]
Likes = Callable[[Decision], bool]


def likes(action: str) -> Likes:
    return lambda decision: decision.action == action


def spend(world: World, learner: Learner, n: int, likes: Likes) -> list[Decision]:
    """Traffic in small batches, each learned and served before the next."""
    decisions = []
    for _ in range(n // 50):
        decisions += world.traffic(50, likes)
        world.settle(learner)
    return decisions


def live_satisfaction(world: World, action: str) -> float:
    live = world.registry.rollout().live
    assert live is not None
    return world.satisfaction(live, action)


def check_sums(world: World, learner: Learner) -> None:
    """What is learned is what a rebuild from the store learns of the experiences that count."""
    live = world.registry.rollout().live
    assert live is not None
    manifest = world.registry.manifest(live)
    policy = learner.updater.policies.version(live)
    expected = relearned(learner.updater.builder.empty(manifest), policy, world.store, world.store.save)
    assert_same_sums(reward_state(learner), expected.heads[0].state)  # type: ignore[attr-defined]
    assert learner.state.progress.experiences == sum(e.counts for e in world.store.experiences())
    assert learner.state.progress.outdated == sum(e.outdated for e in world.store.experiences())


def test_users_who_change_their_mind_are_followed(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    spend(world, learner, 400, likes("fish"))
    assert live_satisfaction(world, "fish") > 0.9
    assert learner.state.progress.outdated == 0
    spend(world, learner, 300, likes("cat"))
    assert live_satisfaction(world, "cat") > 0.9
    assert 0 < learner.state.progress.outdated <= 420
    assert world.metric("plaudit_learner_drifts_total") > 0  # type: ignore[operator]
    assert world.metric("plaudit_learner_outdated_experiences") == learner.state.progress.outdated
    report = learner.report()
    assert report["outdated_experiences"] == learner.state.progress.outdated
    assert report["drifts"] == world.metric("plaudit_learner_drifts_total")
    assert 0.0 < report["last_drift_time_s"] <= world.now_s
    assert world.metric("plaudit_learner_last_drift_time_seconds") == report["last_drift_time_s"]
    live = world.registry.rollout().live
    assert live is not None
    manifest = json.loads(world.registry.manifest(live).to_json())
    assert "experiences from before users changed what they want" in card(manifest)
    check_sums(world, learner)


@pytest.mark.slow
def test_a_taste_of_before_counts_again(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    spend(world, learner, 300, likes("fish"))
    spend(world, learner, 300, likes("cat"))
    before = {e.number for e in world.store.experiences() if e.outdated}
    spend(world, learner, 200, likes("fish"))
    assert live_satisfaction(world, "fish") > 0.9
    now = {e.number for e in world.store.experiences() if e.outdated}
    assert before - now, "nothing of the first taste counts again"
    check_sums(world, learner)


@pytest.mark.slow
def test_what_goes_is_gone_on_after_an_interruption(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is replaced between taking evidence back and settling the change."""
    world = make_world()
    learner = world.learner()
    spend(world, learner, 300, likes("fish"))
    monkeypatch.setattr("plaudit.learner.online.outdated.CHUNK", 50)
    save = LearnerState.save
    interrupted: list[int] = []

    def fails_once(self: LearnerState, commit: LeaderCommit | None = None, **parts: object) -> None:
        if commit is not None and commit.outdated and not interrupted:
            save(self, commit, **parts)  # type: ignore[arg-type]
            interrupted.append(len(commit.outdated))
            raise StoreMoved("a test")
        save(self, commit, **parts)  # type: ignore[arg-type]

    monkeypatch.setattr(LearnerState, "save", fails_once)
    with pytest.raises(StoreMoved):
        spend(world, learner, 300, likes("cat"))
    assert learner.state.detector.pending
    successor = world.learner()
    world.settle(successor)
    spend(world, successor, 300, likes("cat"))
    assert not successor.state.detector.pending
    assert live_satisfaction(world, "cat") > 0.9
    check_sums(world, successor)


@pytest.mark.slow
def test_feedback_taken_back_after_its_evidence_has_gone(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    early = spend(world, learner, 300, likes("fish"))
    spend(world, learner, 300, likes("cat"))
    outdated = {e.decision.prediction_id for e in world.store.experiences() if e.outdated}
    retracted = [d for d in early if d.prediction_id in outdated][:20]
    assert retracted
    world.log.append([world.say(decision, Retract()) for decision in retracted])
    world.settle(learner)
    check_sums(world, learner)


@pytest.mark.slow
def test_one_user_cannot_make_the_evidence_of_others_go(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    spend(world, learner, 300, likes("fish"))
    for _ in range(30):
        decisions = [world.decide(seed=int(world.rng.integers(20)), user_id="mallory") for _ in range(10)]
        world.log.append([e for d in decisions for e in (d, world.say(d, world.thumb(d.action != "fish")))])
        world.settle(learner)
    assert learner.state.progress.outdated == 0


@pytest.mark.slow
def test_changes_are_not_followed_where_the_setting_says_so(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"drift_detection": False}})
    learner = world.learner()
    spend(world, learner, 200, likes("fish"))
    spend(world, learner, 200, likes("cat"))
    assert learner.state.progress.outdated == 0


@pytest.mark.slow
def test_a_change_is_followed_though_the_clock_jumps_a_day(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    spend(world, learner, 300, likes("fish"))
    world.now_s += 86_400.0
    spend(world, learner, 150, likes("cat"))
    world.now_s -= 86_400.0
    spend(world, learner, 150, likes("cat"))
    assert learner.state.progress.drifts > 0
    assert live_satisfaction(world, "cat") > 0.9
    check_sums(world, learner)


@pytest.mark.slow
def test_thumbs_about_one_action_alone(make_world: MakeWorld) -> None:
    """Up, until users no longer want it; nothing is ever said of the other actions."""
    world = make_world()
    learner = world.learner()
    for up in (True, False):
        for _ in range(6):
            decisions = [world.decide(seed=int(world.rng.integers(20))) for _ in range(60)]
            said = [world.say(d, world.thumb(up)) for d in decisions if d.action == "fish"]
            world.log.append([*decisions, *said])
            world.settle(learner)
        check_sums(world, learner)
    assert live_satisfaction(world, "fish") < 0.5
