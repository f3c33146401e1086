"""What the learner shows of itself, against a recount of what it was given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from plaudit.core.events import Decision
from plaudit.core.experience import DecisionHeader, Experience, Label
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.satisfaction import SHOWN_AFTER_S, SHOWN_AT_MOST, SHOWN_FROM, SatisfactionByVersion
from plaudit_models.evaluation.intervals import wilson
from support.loop_world import SPEC, World, candidate_that_prefers

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def metric(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"plaudit_learner_{name}", labels)


def shown_versions(registry: CollectorRegistry) -> set[str]:
    return {s.labels["version"] for family in registry.collect() for s in family.samples if "version" in s.labels}


def judged(version: int, reward: float, *, excluded: bool = False) -> Experience:
    served = DecisionHeader("p", 1.0, "ada", version, "cat", 0.5, (), False, ())
    return Experience(1, served, Label({"cat": reward}, 1.0), excluded=excluded)


# --- satisfaction by version -----------------------------------------------------------------------------------------


def test_each_version_has_its_mean_and_its_interval() -> None:
    registry = CollectorRegistry()
    by_version = SatisfactionByVersion(LearnerMetrics(registry))
    by_version.add([judged(1, 1.0)] * 8 + [judged(1, 0.0)] * 2 + [judged(2, 0.5)], 0.0)
    assert metric(registry, "version_satisfaction", version="1") == pytest.approx(0.8)
    low, high = wilson(0.8, 10)
    assert metric(registry, "version_satisfaction_low", version="1") == pytest.approx(low)
    assert metric(registry, "version_satisfaction_high", version="1") == pytest.approx(high)
    assert metric(registry, "version_experiences", version="1") == 10
    assert metric(registry, "version_satisfaction", version="2") == 0.5


def test_excluded_experiences_do_not_count_as_satisfaction() -> None:
    registry = CollectorRegistry()
    SatisfactionByVersion(LearnerMetrics(registry)).add([judged(1, 1.0), judged(1, 0.0, excluded=True)], 0.0)
    assert metric(registry, "version_satisfaction", version="1") == 1.0


def test_versions_without_recent_feedback_leave() -> None:
    registry = CollectorRegistry()
    by_version = SatisfactionByVersion(LearnerMetrics(registry))
    for version in range(500):
        by_version.add([judged(version, 1.0), judged(7, 1.0)], 0.0)
    assert shown_versions(registry) == {"7", *(str(version) for version in range(501 - SHOWN_AT_MOST, 500))}
    by_version.add([judged(499, 1.0)], SHOWN_AFTER_S)
    assert shown_versions(registry) == {"499"}


# --- in the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """One whose heads are not refreshed."""
    return make_world({"learner": {"batch": 10**6, "max_wait_s": 10**6, "user_cap": 1.0}})


def test_satisfaction_is_a_recount_and_survives_a_restart(world: World) -> None:
    learner = world.learner()
    decisions = world.traffic(40, likes_fish)
    world.settle(learner)
    mean = sum(map(likes_fish, decisions)) / 40
    assert metric(world.metrics, "version_satisfaction", version="1") == pytest.approx(mean)
    learner.close()

    again = world.learner()
    more = world.traffic(10, likes_fish)
    world.settle(again)
    assert metric(world.metrics, "version_experiences", version="1") == 50
    both = sum(map(likes_fish, decisions + more)) / 50
    assert metric(world.metrics, "version_satisfaction", version="1") == pytest.approx(both)
    again.close()


def test_satisfaction_is_not_zero_after_a_restart_and_absent_while_there_are_few_rewards(world: World) -> None:
    learner = world.learner()
    decisions = world.traffic(SHOWN_FROM - 1, likes_fish)
    world.settle(learner)
    shown = ("satisfaction_recent", "predicted_reward_recent", "calibration_error")
    assert [metric(world.metrics, name, model=SPEC.name) for name in shown] == [None, None, None]
    decisions += world.traffic(1, likes_fish)
    world.settle(learner)
    mean = sum(map(likes_fish, decisions)) / SHOWN_FROM
    assert metric(world.metrics, "satisfaction_recent", model=SPEC.name) == pytest.approx(mean)
    learner.close()

    again = world.learner()  # nobody says anything
    world.settle(again)
    assert metric(world.metrics, "satisfaction_recent", model=SPEC.name) == pytest.approx(mean)
    assert metric(world.metrics, "calibration_error", model=SPEC.name) is None
    again.close()


def test_every_stage_from_the_log_to_the_reward_state_is_timed(world: World) -> None:
    learner = world.learner()
    world.traffic(SHOWN_FROM, likes_fish)
    world.settle(learner)
    for stage in ("join", "learn", "batch"):
        assert (metric(world.metrics, f"{stage}_seconds_count") or 0.0) >= 1, stage
    error = metric(world.metrics, "calibration_error", model=SPEC.name)
    assert error is not None
    assert 0.0 <= error <= 1.0
    learner.close()


def test_fine_tuning_shows_its_phase_and_the_evidence_at_the_gate(make_world: Callable[..., World]) -> None:
    world = make_world(
        {
            "learner": {"batch": 10**6, "max_wait_s": 10**6},
            "finetune": {"enabled": True, "every": 50},
            "gate": {"min_events": 50},
        },
        run_job=candidate_that_prefers("fish"),
    )
    learner = world.learner()

    def phases() -> set[str]:
        names = ("idle", "training", "gating", "canary")
        return {name for name in names if metric(world.metrics, "finetune_phase", phase=name) == 1}

    assert phases() == {"idle"}
    evidence = []
    for _ in range(40):
        world.traffic(25, likes_fish)
        world.settle(learner)
        report = learner.report()["finetune"]
        assert phases() == {report["phase"]}
        if report["phase"] == "gating" and report["gate"]["n"]:
            shown = metric(world.metrics, "gate_gain_reward", bound="estimate")
            assert shown == pytest.approx(report["gate"]["gain"])
            assert metric(world.metrics, "gate_e_value", claim="gain") == pytest.approx(report["gate"]["e_value_gain"])
            evidence.append(shown)
        if report["outcomes"]:
            break
    assert evidence
    assert metric(world.metrics, "gate_e_value", claim="gain") is None
    learner.close()
