"""Value of an experiment: a candidate beside live, and the evidence on both. Pure: changes no store, log or rollout.

Rewards of the candidate's and live's users in the same hours are compared
(:mod:`plaudit_models.evaluation.two_arm_test`), over all, by kind of input and by user group; failed and late answers,
which inference services report, count against the candidate too (:mod:`plaudit_models.evaluation.guards`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from plaudit.core.events import Answers, ExperimentReport, ShadowAnswer
from plaudit.core.experience import Experience
from plaudit.core.rollout import Rollout, in_experiment
from plaudit.learner.evaluation.off_policy import CountedRating, rating_of
from plaudit_models.evaluation.e_process import as_json
from plaudit_models.evaluation.gate import GROUP, Verdict
from plaudit_models.evaluation.guards import Arm, GuardRules, Guards, guards_from_dict
from plaudit_models.evaluation.two_arm_test import (
    Propensities,
    TwoArmTest,
    TwoArmTestRules,
    new_two_arm_test,
    two_arm_test_from_dict,
)

_SLICES: Final = 8
"""Kinds of input tested one by one, the first that come; all others together are one more slice."""
_OTHERS: Final = "other inputs"
_GROUPS: Final = 8
"""User groups tested, the first that come; others count over all only."""

ExperimentKind = Literal["canary", "shadow"]
"""A canary's users get the candidate's answers; in a shadow the candidate only computes beside live."""


@dataclass(frozen=True, slots=True)
class ExperimentRules:
    """Thresholds of proof in an experiment.

    Attributes:
        alpha: probability of a wrong finding, for gain and for harm.
        margin: loss of reward against live that is not yet harm; ``slice_margin`` the same on one slice.
        min_events: experiences before any finding.
        max_events: experiences after which an experiment ends without proof.
        user_cap: largest share of the evidence that one user's may count for.
        error_margin, slow_factor, slow_margin: see :class:`plaudit_models.evaluation.guards.GuardRules`.
        promotes: whether proof of gain makes the candidate live.
    """

    alpha: float = 0.05
    margin: float = 0.0
    slice_margin: float = 0.03
    min_events: int = 100
    max_events: int = 5_000
    user_cap: float = 0.01
    error_margin: float = 0.01
    slow_factor: float = 2.0
    slow_margin: float = 0.05
    promotes: bool = True

    def over_all(self, share: float) -> TwoArmTestRules:
        """Rules of the test over all users, where the candidate serves a ``share`` of them."""
        return TwoArmTestRules(share, self.alpha, self.margin, self.min_events, self.user_cap)

    def on_slice(self, share: float, place: int) -> TwoArmTestRules:
        """Rules of the slice that came ``place``-th, from 1: α/(k(k+1)) of any number of slices sum to at most α."""
        alpha = self.alpha / (place * (place + 1))
        return TwoArmTestRules(share, alpha, self.slice_margin, self.min_events, self.user_cap)

    def guards(self, share: float) -> GuardRules:
        """Rules of the guards against failed and late answers."""
        return GuardRules(share, self.alpha, self.error_margin, self.slow_factor, self.slow_margin)


@dataclass(frozen=True, slots=True)
class ShadowStats:
    """Sums over ``n`` requests that a shadow computed, of which ``failed`` have no answer."""

    n: int = 0
    failed: int = 0
    agreed: int = 0
    kl_nats: float = 0.0
    duration_s: float = 0.0
    slowest_s: float = 0.0
    dropped: int = 0
    last_failure: str = ""

    def add(self, answers: Sequence[ShadowAnswer], dropped: int) -> ShadowStats:
        """Sums with further answers; ``dropped`` ones were not computed."""
        good = [each for each in answers if not each.failure]
        failures = [each.failure for each in answers if each.failure]
        return ShadowStats(
            n=self.n + len(answers),
            failed=self.failed + len(failures),
            agreed=self.agreed + sum(each.agrees for each in good),
            kl_nats=self.kl_nats + sum(each.kl_nats for each in good),
            duration_s=self.duration_s + sum(each.duration_s for each in good),
            slowest_s=max([self.slowest_s, *(each.duration_s for each in good)]),
            dropped=self.dropped + dropped,
            last_failure=failures[-1] if failures else self.last_failure,
        )

    def report(self) -> dict[str, Any]:
        """Means over the answered requests, for people."""
        good = self.n - self.failed
        return {
            "n": self.n,
            "failed": self.failed,
            "dropped": self.dropped,
            "agreement": self.agreed / good if good else None,
            "kl_nats": self.kl_nats / good if good else None,
            "mean_s": self.duration_s / good if good else None,
            "slowest_s": self.slowest_s if good else None,
            "last_failure": self.last_failure,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """One experiment with its evidence; immutable, saved by the leader.

    Attributes:
        version: number of the candidate.
        generation: number of the rollout that began it.
        share: share of the users that the candidate serves, or computes for.
        actor: operator or service that began it.
        started_at_s: UTC seconds since the epoch.
        position: number of the last experience that was looked at.
        evidence: comparison over all users.
        seen: number of the last report by replica.
        problem: why a replica cannot run the candidate; "" if all can.
        slices: comparisons by kind of input and by user group.
        ungrouped: experiences whose user group is not watched, because there are too many.
        verdict, why: once it is decided, before the rollout says so.
    """

    version: int
    generation: int
    share: float
    kind: ExperimentKind
    actor: str
    started_at_s: float
    position: int
    evidence: TwoArmTest
    guards: Guards
    slices: Mapping[str, TwoArmTest] = field(default_factory=dict)
    ungrouped: int = 0
    shadow_stats: ShadowStats = ShadowStats()
    seen: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""
    verdict: Verdict | None = None
    why: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps(as_json(self)).encode()

    def e_values(self) -> dict[str, float]:
        """Evidence by claim."""
        return {
            "gain": self.evidence.gain.e_value(),
            "harm": self.evidence.loss.e_value(),
            "errors": self.guards.errors.e_value(0),
            "latency": self.guards.slow.e_value(0),
        }

    def report(self) -> dict[str, Any]:
        """State and evidence for people, JSON-ready."""
        live, candidate = self.guards.live, self.guards.candidate
        return {
            "version": self.version,
            "generation": self.generation,
            "share": self.share,
            "shadow": self.kind == "shadow",
            "actor": self.actor,
            "started_at_s": self.started_at_s,
            "verdict": self.verdict,
            "why": self.why or self.evidence.reason(),
            "n": sum(self.evidence.n),
            "satisfaction": _arms(self.evidence),
            **{f"e_value_{claim}": e_value for claim, e_value in self.e_values().items()},
            "answers": {"live": _answers(live), "candidate": _answers(candidate)},
            "slices": [
                {
                    "name": name,
                    "n": sum(each.n),
                    "satisfaction": _arms(each),
                    "e_value_harm": each.loss.e_value(),
                    "suspected": each.suspected,
                    "proof": 1.0 / each.rules.alpha,
                }
                for name, each in self.slices.items()
            ],
            "ungrouped": self.ungrouped,
            "shadowed": self.shadow_stats.report() if self.kind == "shadow" else None,
        }


def experiment_from_bytes(raw: bytes) -> Experiment:
    saved = json.loads(raw)
    made: dict[str, Any] = {
        "evidence": two_arm_test_from_dict(saved["evidence"]),
        "guards": guards_from_dict(saved["guards"]),
        "slices": {name: two_arm_test_from_dict(each) for name, each in saved["slices"].items()},
        "shadow_stats": ShadowStats(**saved["shadow_stats"]),
    }
    return Experiment(**saved | made)


def add_experiences(
    experiment: Experiment,
    experiences: Sequence[Experience],
    rollout: Rollout,
    rules: ExperimentRules,
    n_users: int,
    propensities_of: Callable[[Sequence[Experience]], Propensities | None] = lambda rows: None,
) -> Experiment:
    """Experiment with further experiences, in their order; those that do not belong to it are passed over.

    Args:
        n_users: users with experiences so far.
        propensities_of: gives the probabilities of experiences' answers under candidate and live, where known.
    """
    rows = [e for e in experiences if _is_of_experiment(experiment, e, rollout)]
    if not rows:
        return experiment
    propensities = propensities_of(rows)
    slices, ungrouped = dict(experiment.slices), experiment.ungrouped
    of_slice: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        names = [_input_slice(row, slices), _group_slice(row, slices)]
        ungrouped += names[1] is None
        for name in names:
            if name:
                if name not in slices:
                    slices[name] = new_two_arm_test(rules.on_slice(experiment.share, len(slices) + 1))
                of_slice.setdefault(name, []).append(i)
    for name, places in of_slice.items():
        some = np.isin(np.arange(len(rows)), places)
        slices[name] = _updated(
            slices[name],
            experiment,
            [rows[i] for i in places],
            n_users,
            None if propensities is None else propensities[some],
        )
    evidence = _updated(experiment.evidence, experiment, rows, n_users, propensities)
    return replace(experiment, evidence=evidence, slices=slices, ungrouped=ungrouped)


def _input_slice(row: Experience, slices: Mapping[str, TwoArmTest]) -> str:
    name = " + ".join(row.decision.modalities) or "no input kept"
    known = len(slices) - _n_groups(slices)
    return name if name in slices or known < _SLICES else _OTHERS


def _group_slice(row: Experience, slices: Mapping[str, TwoArmTest]) -> str | None:
    """Name of the user group's slice; "" if its user has no group, None if that is one too many."""
    if not row.decision.user_group:
        return ""
    name = GROUP.format(row.decision.user_group)
    return name if name in slices or _n_groups(slices) < _GROUPS else None


def _n_groups(slices: Mapping[str, TwoArmTest]) -> int:
    return sum(name.startswith(GROUP.format("")) for name in slices)


def add_report(experiment: Experiment, report: ExperimentReport) -> Experiment:
    """Experiment with the report of a replica; each report counts once, and those on other experiments not at all."""
    if (report.experiment, report.version) != (experiment.generation, experiment.version):
        return experiment
    if report.number <= experiment.seen.get(report.replica, 0):
        return experiment
    return replace(
        experiment,
        guards=experiment.guards.update(_arm(report.live), _arm(report.candidate)),
        shadow_stats=experiment.shadow_stats.add(report.shadows, report.dropped),
        seen={**experiment.seen, report.replica: report.number},
        problem=report.problem or experiment.problem,
    )


def decide(experiment: Experiment, rules: ExperimentRules) -> Experiment:
    """Experiment with a verdict, where there is proof or ``max_events`` are reached; a shadow gets none."""
    if experiment.kind == "shadow" or experiment.verdict is not None:
        return experiment
    if experiment.problem:
        return replace(experiment, verdict="reject", why=f"an inference service cannot run it: {experiment.problem}")
    guard = experiment.guards.finding()
    if guard is not None:
        return replace(experiment, verdict="reject", why=experiment.guards.reason(guard))
    finding = experiment.evidence.finding()
    if finding == "harm":
        return replace(experiment, verdict="reject", why=experiment.evidence.reason())
    for name, each in experiment.slices.items():
        if each.finding() == "harm":
            return replace(experiment, verdict="reject", why=f"with {name}, {each.reason()}")
    suspected = any(each.suspected for each in experiment.slices.values())
    if finding == "gain" and rules.promotes and not suspected:
        return replace(experiment, verdict="promote", why=experiment.evidence.reason())
    if experiment.evidence.tally.seen >= rules.max_events:
        return replace(experiment, verdict="insufficient", why=experiment.evidence.reason())
    return experiment


def _is_of_experiment(experiment: Experiment, experience: Experience, rollout: Rollout) -> bool:
    """Whether it was rated, and served after the experiment began, to a known user, by the version that the user's draw
    gives."""
    served = experience.decision
    return (
        experiment.kind == "canary"
        and rating_of(experience) is not None
        and served.time_s >= experiment.started_at_s
        and served.user_id != ""
        and in_experiment(rollout, served.user_id) == (served.version == experiment.version)
    )


def _updated(
    test: TwoArmTest,
    experiment: Experiment,
    rows: Sequence[Experience],
    n_users: int,
    propensities: Propensities | None,
) -> TwoArmTest:
    ratings: list[CountedRating] = [rating for e in rows if (rating := rating_of(e)) is not None]
    return test.update(
        np.array([rating.reward for rating in ratings], np.float64),
        np.array([e.decision.version == experiment.version for e in rows]),
        [rating.rater for rating in ratings],
        n_users=n_users,
        propensities=propensities,
    )


def _arm(answers: Answers) -> Arm:
    return Arm(answers.failed, answers.latencies)


def _arms(test: TwoArmTest) -> dict[str, dict[str, Any]]:
    return {
        name: {"n": n, "mean": total / n if n else None}
        for name, n, total in zip(("live", "candidate"), test.n, test.total, strict=True)
    }


def _answers(arm: Arm) -> dict[str, Any]:
    return {"answered": arm.answered, "failed": arm.failed, "p50_s": arm.quantile_s(0.5), "p95_s": arm.quantile_s(0.95)}
