"""When feedback and decisions meet: early, late, often, never, and with clocks that disagree.

The rules for what it then amounts to are tested in tests/learner/test_join.py.
"""

from __future__ import annotations

from collections.abc import Callable

from plaudit.core.events import Correction, Implicit, ImplicitKind, Rating, Retract, Signal, Thumb
from plaudit.learner.loop import Learner
from support.loop_recount import recount
from support.loop_world import SPEC, World, assert_same_sums, reward_state

MakeWorld = Callable[..., World]
DAY_S = 86_400.0


def judged(world: World) -> dict[str, float | None]:
    """Reward of the served action by prediction id."""
    return {e.decision.prediction_id: e.reward for e in world.store.experiences()}


def settle(world: World, learner: Learner) -> None:
    world.settle(learner)
    learner.step()


def test_feedback_that_comes_days_late_is_joined(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    world.log.append([decision])
    settle(world, learner)
    world.now_s += 29 * DAY_S
    world.log.append([world.say(decision, Thumb(up=True))])
    settle(world, learner)
    assert judged(world) == {decision.prediction_id: 1.0}
    assert learner.store.intake_stats().waiting == 0


def test_feedback_of_before_its_decision_by_the_clock_is_joined(make_world: MakeWorld) -> None:
    """Another server's clock is an hour behind."""
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    world.log.append([decision, world.say(decision, Thumb(up=True), time_s=decision.time_s - 3_600.0)])
    settle(world, learner)
    assert judged(world) == {decision.prediction_id: 1.0}


def test_a_clock_that_is_ahead_does_not_hold_others_up(make_world: MakeWorld) -> None:
    """A decision of tomorrow does not keep those of long ago in the store."""
    world = make_world({"store": {"retention_s": 31 * DAY_S}})
    learner = world.learner()
    tomorrow, today = world.decide(time_s=world.now_s + DAY_S), world.decide()
    world.log.append([tomorrow, today])
    settle(world, learner)
    world.elapse(31.5 * DAY_S)
    settle(world, learner)
    histories = world.store.histories([tomorrow.prediction_id, today.prediction_id])
    assert [history.decision is not None for history in histories.values()] == [True, False]


def test_a_clock_that_jumps_deletes_nothing(make_world: MakeWorld) -> None:
    """For seconds the machine's clock is 100 days ahead, for the service and for the learner; then it is right again.

    https://github.com/redis/redis/issues/217 asks what becomes of expiry then.
    """
    world = make_world({"store": {"retention_s": 31 * DAY_S}})
    learner = world.learner()
    before = world.traffic(10, lambda decision: True)
    world.elapse(2 * DAY_S)
    settle(world, learner)
    for ahead_s in (100 * DAY_S, 1_000 * DAY_S):
        world.now_s += ahead_s
        settle(world, learner)
        before += world.traffic(10, lambda decision: True)
        settle(world, learner)
        world.now_s += 8.0
        settle(world, learner)
        world.now_s -= ahead_s + 8.0
        before += world.traffic(2, lambda decision: True)
        settle(world, learner)
    histories = world.store.histories([decision.prediction_id for decision in before])
    assert all(history.decision is not None for history in histories.values())
    assert learner.state.progress.experiences == len(before)


def test_nothing_is_deleted_while_the_log_is_silent_whatever_the_clock_says(make_world: MakeWorld) -> None:
    world = make_world({"store": {"retention_s": 31 * DAY_S}})
    learner = world.learner()
    decisions = world.traffic(3, lambda decision: True)
    world.elapse(2 * DAY_S)
    settle(world, learner)
    world.now_s += 1_000 * DAY_S
    settle(world, learner)
    assert judged(world).keys() == {decision.prediction_id for decision in decisions}


def test_the_last_word_counts_whenever_it_comes(make_world: MakeWorld) -> None:
    """Every signal in a batch of its own: the label follows, and what was learned follows the label."""
    world = make_world()
    learner = world.learner()
    decision = world.decide(user_id="ada")
    signals: list[tuple[Signal, float | None]] = [
        (Thumb(up=True), 1.0),
        (Thumb(up=False), 0.0),
        (Rating(0.5), 0.5),
        (Implicit(ImplicitKind.INTERRUPTED), 0.5),
        (Correction(decision.action), 1.0),
        (Retract(), None),
        (Thumb(up=False), 0.0),
    ]
    world.log.append([decision])
    for signal, reward in signals:
        world.log.append([world.say(decision, signal)])
        settle(world, learner)
        assert judged(world) == {decision.prediction_id: reward}
        assert learner.state.progress.experiences == (reward is not None)
    assert_same_sums(reward_state(learner), recount(world.log, SPEC, reward_state(learner).space)[0])


def test_an_earlier_word_that_comes_later_changes_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide(user_id="ada")
    first, last = world.say(decision, Thumb(up=True)), world.say(decision, Thumb(up=False))
    world.log.append([decision, last])
    settle(world, learner)
    world.log.append([first])
    settle(world, learner)
    assert judged(world) == {decision.prediction_id: 0.0}


def test_a_decision_without_feedback_is_kept_with_its_content(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    world.log.append([decision])
    settle(world, learner)
    assert world.store.contents([decision.prediction_id])[decision.prediction_id].keys() == decision.content.keys()
    assert judged(world) == {}


def test_orphans_are_kept_counted_and_listed_until_their_time_is_up(make_world: MakeWorld) -> None:
    world = make_world({"store": {"retention_s": 31 * DAY_S}})
    learner = world.learner()
    lost = world.decide()
    orphan = world.say(lost, Thumb(up=True))
    world.log.append([orphan])
    settle(world, learner)
    assert learner.store.intake_stats().waiting == 1
    assert [feedback.feedback_id for feedback in world.store.orphans(10)] == [orphan.feedback_id]
    world.elapse(32 * DAY_S)
    settle(world, learner)
    assert learner.store.intake_stats().waiting == 0
    assert world.store.orphans(10) == []


def test_what_was_learned_stays_when_its_decision_leaves(make_world: MakeWorld) -> None:
    """And what is said about it after that waits, as about any decision that is not there."""
    world = make_world({"store": {"retention_s": 31 * DAY_S}})
    learner = world.learner()
    (old,) = world.traffic(1, lambda decision: True)
    settle(world, learner)
    learned = reward_state(learner)
    world.elapse(32 * DAY_S)
    settle(world, learner)
    assert judged(world) == {}
    assert world.store.contents([old.prediction_id]) == {}
    assert learned is not None
    assert_same_sums(reward_state(learner), learned)
    world.traffic(1, lambda decision: True)
    world.log.append([world.say(old, Thumb(up=False))])
    settle(world, learner)
    assert learner.state.progress.experiences == 2
    assert learner.store.intake_stats().waiting == 1
