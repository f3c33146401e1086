"""Experiments seen from the loop: begun by the learner or a person, judged by what users say and services
report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plaudit.core.errors import StoreUnavailable
from plaudit.core.events import Answers, Decision, ExperimentReport, ShadowAnswer
from plaudit.core.ports.store import LeaderCommit
from plaudit.core.rollout import Change, end_canary, pin, promote, start_canary
from plaudit.learner.loop import Learner
from plaudit_models.evaluation.guards import BUCKETS, bucket
from support.builders import tiny_content
from support.kafka_broker import Kafka
from support.loop_world import World

MakeWorld = Callable[..., World]

QUIET = {"learner": {"batch": 10**6, "max_wait_s": 10**6}, "gate": {"min_events": 50}}


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def on_experiment_world(make_world: MakeWorld, share: float = 0.5, *, shadow: bool = False, **canary: Any) -> World:
    """Version 2, which prefers fish, is tried out beside version 1 by a person. There is no fine-tuning."""
    world = make_world(QUIET | {"canary": canary})
    begin(world, world.publish(seed=9, prefer="fish"), share, shadow=shadow)
    return world


def begin(world: World, version: int, share: float, *, shadow: bool = False) -> None:
    change = Change("ada", world.now_s, "let us see")
    world.registry.set_rollout(start_canary(world.registry.rollout(), version, share, change, shadow=shadow))


def report(world: World, replica: str, number: int, **fields: Any) -> ExperimentReport:
    rollout = world.registry.rollout()
    assert rollout.candidate is not None
    defaults: dict[str, Any] = {
        "replica": replica,
        "number": number,
        "model": rollout.model,
        "experiment": rollout.experiment,
        "version": rollout.candidate,
        "time_s": world.now_s,
    }
    return ExperimentReport(**(defaults | fields))


def answers(n: int, duration_s: float = 0.004, failed: int = 0) -> Answers:
    counts = [0] * BUCKETS
    counts[bucket(duration_s)] = n
    return Answers(failed, tuple(counts))


def until_over(learner: Learner, world: World) -> dict[str, Any]:
    """Steps until the experiment has ended; returns its last report."""
    while world.store.get_state("experiment") is not None:
        learner.step()
    summary = world.store.experiment_summary(2)
    assert summary is not None
    return dict(summary.details)


def until_seen(learner: Learner, replica: str, number: int) -> None:
    while (experiment := learner.experiments.experiment) is None or experiment.seen.get(replica, 0) < number:
        learner.step()


def test_an_experiment_begun_by_a_person_is_promoted_on_proof_without_any_fine_tuning(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world)
    learner = world.learner()
    learner.step()
    while world.registry.rollout().candidate is not None:
        world.traffic(25, likes_fish)
        world.settle(learner)
    ended = until_over(learner, world)
    assert (ended["verdict"], ended["version"], ended["actor"]) == ("promote", 2, "ada")
    rollout = world.registry.rollout()
    assert (rollout.live, rollout.previous, rollout.actor, rollout.experiment) == (2, 1, "learner", 0)
    assert rollout.reason.startswith("version 2 passed the canary: users satisfied: ")
    assert {each["name"] for each in ended["slices"]} == {"audio + image + question + sensor"}


def test_without_leave_to_promote_the_experiment_goes_on_with_proof(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world, promote=False)
    learner = world.learner()
    learner.step()
    for _ in range(12):
        world.traffic(25, likes_fish)
        world.settle(learner)
        learner.step()
    shown = learner.report()["canary"]
    assert shown["e_value_gain"] > 20
    assert (shown["verdict"], world.registry.rollout().candidate) == (None, 2)


def test_a_candidate_that_fails_is_withdrawn_without_any_feedback(make_world: MakeWorld) -> None:
    """Two replicas, each with a part of the failures that proves nothing by itself."""
    world = on_experiment_world(make_world, share=0.1)
    learner = world.learner()
    learner.step()
    parts = {"live": answers(54), "candidate": answers(0, failed=6)}
    world.log.append([report(world, "r1", 1, **parts)])
    until_seen(learner, "r1", 1)
    assert world.registry.rollout().candidate == 2
    world.log.append([report(world, "r2", 1, **parts)])
    ended = until_over(learner, world)
    assert ended["verdict"] == "reject"
    rollout = world.registry.rollout()
    assert (rollout.live, rollout.candidate, rollout.actor) == (1, None, "learner")
    assert "version 2 is withdrawn: answers failed: 12 of 12 (100.00%) by the candidate, 0 of 108" in rollout.reason


def test_a_candidate_that_is_slow_is_withdrawn(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world, share=0.1)
    learner = world.learner()
    learner.step()
    slow = {"live": answers(90, 0.005), "candidate": answers(10, 0.05)}
    world.log.append([report(world, "r1", number, **slow) for number in range(1, 6)])
    ended = until_over(learner, world)
    assert ended["verdict"] == "reject"
    assert "95 % of the answers came within: " in world.registry.rollout().reason


def test_the_margins_are_settings(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world, share=0.1, slow_factor=20.0, error_margin=1.0)
    learner = world.learner()
    learner.step()
    bad = {"live": answers(90, 0.005), "candidate": answers(5, 0.05, failed=5)}
    world.log.append([report(world, "r1", number, **bad) for number in range(1, 6)])
    until_seen(learner, "r1", 5)
    assert world.registry.rollout().candidate == 2


def test_each_report_counts_once_and_those_of_other_experiments_not_at_all(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world)
    learner = world.learner()
    learner.step()
    one = report(world, "r1", 1, live=answers(10), candidate=answers(10))
    world.log.append([one, replace(one, replica="r2", experiment=77), replace(one, replica="r3", model="other")])
    until_seen(learner, "r1", 1)
    world.log.replay([one])
    world.log.append([replace(one, number=2)])
    learner.close()
    again = world.learner()  # one that begins from what was saved
    until_seen(again, "r1", 2)
    shown = again.report()["canary"]
    assert [shown["answers"][arm]["answered"] for arm in ("live", "candidate")] == [20, 20]


def test_a_candidate_that_a_replica_cannot_run_is_withdrawn(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world)
    learner = world.learner()
    learner.step()
    world.log.append([report(world, "r1", 1, problem="version 2 failed its proof: head.onnx is damaged")])
    assert until_over(learner, world)["verdict"] == "reject"
    assert "an inference service cannot run it: version 2 failed its proof" in world.registry.rollout().reason


def test_in_the_shadow_nothing_follows_and_everything_is_shown(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world, share=1.0, shadow=True)
    learner = world.learner()
    learner.step()
    shadows = (
        ShadowAnswer("p1", "fish", agrees=False, kl_nats=0.3, duration_s=0.002),
        ShadowAnswer("p2", "cat", agrees=True, kl_nats=0.1, duration_s=0.004),
        ShadowAnswer("p3", "", agrees=False, kl_nats=0.0, duration_s=0.001, failure="ValueError: no"),
    )
    world.log.append([report(world, "r1", 1, live=answers(500, failed=3), shadows=shadows, dropped=5)])
    until_seen(learner, "r1", 1)
    assert world.registry.rollout().candidate == 2
    expected = {
        "n": 3,
        "failed": 1,
        "dropped": 5,
        "agreement": 0.5,
        "kl_nats": pytest.approx(0.2),
        "mean_s": pytest.approx(0.003),
        "slowest_s": 0.004,
        "last_failure": "ValueError: no",
    }
    assert learner.report()["canary"]["shadowed"] == expected
    world.traffic(60, likes_fish)
    world.settle(learner)
    assert learner.report()["canary"]["n"] == 0
    world.registry.set_rollout(end_canary(world.registry.rollout(), Change("bob", 1.0, "seen enough")))
    ended = until_over(learner, world)
    assert ended["shadowed"] == expected
    assert ended["why"] == "bob ended the experiment: seen enough"


@pytest.mark.parametrize("how", ["pin", "promote candidate", "promote another"])
def test_people_end_experiments(make_world: MakeWorld, how: str) -> None:
    world = on_experiment_world(make_world)
    other = world.publish(seed=7)
    learner = world.learner()
    learner.step()
    change = Change("bob", world.now_s, "decided")
    rollout = world.registry.rollout()
    after = {
        "pin": lambda: pin(rollout, 1, change),
        "promote candidate": lambda: promote(rollout, 2, change),
        "promote another": lambda: promote(rollout, other, change),
    }[how]()
    world.registry.set_rollout(after)
    ended = until_over(learner, world)
    assert ended["verdict"] == ("promote" if how == "promote candidate" else "insufficient")
    assert ended["why"] == "bob ended the experiment: decided"


def test_a_second_experiment_of_the_same_version_starts_from_nothing(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world, promote=False)
    learner = world.learner()
    learner.step()
    world.traffic(40, likes_fish)
    world.settle(learner)
    learner.step()
    assert learner.report()["canary"]["n"] > 30  # less what is above the cap on one user
    world.registry.set_rollout(end_canary(world.registry.rollout(), Change("bob", 1.0, "")))
    begin(world, 2, 0.2)  # before any learner looks
    learner.step()
    shown = learner.report()["canary"]
    assert (shown["n"], shown["share"]) == (0, 0.2)


def test_a_learner_that_dies_between_verdict_and_note_withdraws_once(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world, share=0.1)
    learner = world.learner()
    learner.step()
    save = world.store.save

    def dies_at_the_end(commit: LeaderCommit) -> None:
        if commit.state.get("experiment", b"") is None:
            raise StoreUnavailable("killed here")
        save(commit)

    world.store.save = dies_at_the_end  # type: ignore[method-assign]
    world.log.append([report(world, "r1", 1, live=answers(108), candidate=answers(0, failed=12))])
    with pytest.raises(StoreUnavailable):
        until_over(learner, world)
    assert world.registry.rollout().candidate is None
    learner.close()
    generation = world.registry.rollout().generation
    ended = until_over(world.learner(), world)
    assert ended["verdict"] == "reject"
    assert world.registry.rollout().generation == generation


def test_harm_on_one_kind_of_input_ends_an_experiment_that_looks_equal_over_all(make_world: MakeWorld) -> None:
    """Without a picture the candidate is hated, with one it is loved a little more: over all nothing is proven."""
    world = on_experiment_world(make_world, share=0.5, promote=False)
    learner = world.learner()
    learner.step()
    blind = {name: part for name, part in tiny_content(3).items() if name != "image"}
    while world.store.get_state("experiment") is not None:
        for turn in range(40):
            fields = {"content": blind} if turn % 4 == 0 else {}
            decision = world.decide(seed=turn % 20, **fields)
            candidate = decision.version == 2
            up = not candidate if turn % 4 == 0 else candidate or world.rng.random() < 0.67
            world.log.append([decision, world.say(decision, world.thumb(up))])
        world.settle(learner)
        learner.step()
    ended = until_over(learner, world)
    assert ended["verdict"] == "reject"
    assert ended["why"].startswith("with audio + question + sensor, users satisfied: 0.0% of ")


def test_a_candidate_that_is_better_over_all_but_worse_for_one_group_is_withdrawn(make_world: MakeWorld) -> None:
    """It answers fish, which the fifth of the users who speak German hate; what they send is of one kind."""
    world = on_experiment_world(make_world, share=0.5)
    learner = world.learner()
    learner.step()
    gained = False
    while world.store.get_state("experiment") is not None:
        for turn in range(40):
            german = turn % 5 == 0
            decision = world.decide(seed=turn % 20, user_group="de-DE" if german else "en-US")
            world.log.append([decision, world.say(decision, world.thumb(likes_fish(decision) != german))])
        world.settle(learner)
        learner.step()
        experiment = learner.experiments.experiment
        gained = gained or (experiment is not None and experiment.evidence.finding() == "gain")
    ended = until_over(learner, world)
    assert gained  # without groups it would have been promoted
    assert (ended["verdict"], world.registry.rollout().live) == ("reject", 1)
    assert ended["why"].startswith("with user group de-DE, users satisfied: ")
    proofs = {each["name"]: each["proof"] for each in ended["slices"]}
    assert proofs == {
        "audio + image + question + sensor": pytest.approx(40),
        "user group de-DE": pytest.approx(120),
        "user group en-US": pytest.approx(240),
    }


def test_group_labels_without_end_do_not_grow_an_experiment(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world, promote=False)
    learner = world.learner()
    learner.step()
    for number in range(60):
        decision = world.decide(seed=number % 20, user_group=f"g{number % 30}")
        world.log.append([decision, world.say(decision, world.thumb(True))])
    world.settle(learner)
    learner.step()
    shown = learner.report()["canary"]
    assert len([each for each in shown["slices"] if each["name"].startswith("user group ")]) == 8
    assert (shown["n"] > 0, shown["ungrouped"]) == (True, 44)


def test_what_became_of_experiments_is_read_in_the_store(make_world: MakeWorld) -> None:
    world = on_experiment_world(make_world)
    learner = world.learner()
    learner.step()
    present = world.store.experiment_summary(2)
    assert present is not None
    assert (present.details["verdict"], present.details["actor"], present.generation) == (None, "ada", 2)
    world.registry.set_rollout(end_canary(world.registry.rollout(), Change("bob", 1.0, "no")))
    until_over(learner, world)
    past = world.store.experiment_summary(2)
    assert past is not None
    assert past.details["why"] == "bob ended the experiment: no"
    assert world.store.experiment_summary(1) is None


@pytest.mark.kafka
def test_reports_are_read_from_kafka_and_go_on_where_the_last_leader_was(tmp_path: Path, kafka: Kafka) -> None:
    with contextlib.closing(kafka.log()) as log:
        world = World(tmp_path, settings=QUIET | {"finetune": {"enabled": False}}, log=log)
        world.first_version()
        begin(world, world.publish(seed=9, prefer="fish"), 0.1)
        with contextlib.closing(world.learner()) as first:
            first.step()
            log.append([report(world, "r1", 1, live=answers(54), candidate=answers(0, failed=6))])
            until_seen(first, "r1", 1)
        with contextlib.closing(world.learner()) as second:
            log.append([report(world, "r2", 1, live=answers(54), candidate=answers(0, failed=6))])
            ended = until_over(second, world)
        for store in world.stores:
            store.close()
    assert ended["verdict"] == "reject"
    assert ended["answers"]["candidate"]["failed"] == 12
