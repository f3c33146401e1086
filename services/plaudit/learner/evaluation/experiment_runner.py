"""Experiments: a candidate beside live, begun by the learner or by a person; watched, and ended on proof.

Whoever puts a candidate into the rollout begins an experiment. What the candidate's and live's users say of the same
hours is weighed as it comes (:mod:`plaudit_models.evaluation.two_arm_test`), over all, on each kind of input and for
each group of users; what inference services report of failed and late answers is held against it too
(:mod:`plaudit_models.evaluation.guards`). Proof of harm withdraws the candidate; proof of gain promotes it, unless harm
is likely on a slice. In the shadow nobody is shown anything, so nothing follows; it is only counted. Knows nothing
about where candidates come from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
import structlog

from plaudit.core.events import Answers, ExperimentReport, ShadowAnswer, Topic
from plaudit.core.experience import Experience
from plaudit.core.experiments import CURSORS, PAST, PRESENT, SHOWN
from plaudit.core.ports.log import Cursor, EventLog, EventReader
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceStore, LeaderCommit
from plaudit.core.rollout import Change, Rollout, end_canary, in_experiment, promote
from plaudit.learner.evaluation.off_policy import speaks_plainly
from plaudit.learner.evaluation.propensities import propensities_of
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.features.rollout_updates import ACTOR, move
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.progress import Progress
from plaudit_models.evaluation.gate import GROUP, Verdict
from plaudit_models.evaluation.guards import Arm, GuardRules, Guards, guards_from_dict, new_guards
from plaudit_models.evaluation.two_arm_test import (
    Propensities,
    TwoArmTest,
    TwoArmTestRules,
    new_two_arm_test,
    two_arm_test_from_dict,
)

_CHUNK: Final = 256
"""Experiences looked at per step of the loop."""
_LOOK_BACK: Final = 2_048
"""Experiences before the present that may be of an experiment which began while no leader looked."""
_REPORTS: Final = 512
_POLLS: Final = 8
"""Times that many reports are read per look: those of earlier experiments are soon passed over."""
_REPORTS_INTERVAL_S: Final = 0.2
_WAIT_S: Final = 0.2
"""For reports that are known to be there."""
_KEPT: Final = 20
"""Experiments remembered after their end."""
_SLICES: Final = 8
"""Kinds of input watched one by one, the first that come; all others are one more together."""
_OTHERS: Final = "other inputs"
_GROUPS: Final = 8
"""User groups watched, the first that come; others count over all only."""

_log = structlog.get_logger("plaudit.learner")


@dataclass(frozen=True, slots=True)
class ExperimentRules:
    """How experiments are judged.

    Attributes:
        alpha: probability of a wrong finding, for gain and for harm.
        margin: how much less reward than live is not yet harm; ``slice_margin`` the same on one slice.
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

    def canary(self, share: float) -> TwoArmTestRules:
        return TwoArmTestRules(share, self.alpha, self.margin, self.min_events, self.user_cap)

    def slice(self, share: float, place: int) -> TwoArmTestRules:
        """Of the slice that came ``place``-th, from 1: the α/(k(k+1)) of any number of slices sum to at most α."""
        alpha = self.alpha / (place * (place + 1))
        return TwoArmTestRules(share, alpha, self.slice_margin, self.min_events, self.user_cap)

    def guards(self, share: float) -> GuardRules:
        return GuardRules(share, self.alpha, self.error_margin, self.slow_factor, self.slow_margin)


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What was computed in the shadow: sums over ``n`` requests, of which ``failed`` have no answer."""

    n: int = 0
    failed: int = 0
    agreed: int = 0
    kl_nats: float = 0.0
    duration_s: float = 0.0
    slowest_s: float = 0.0
    dropped: int = 0
    last_failure: str = ""

    def plus(self, answers: Sequence[ShadowAnswer], dropped: int) -> Shadowed:
        good = [each for each in answers if not each.failure]
        failures = [each.failure for each in answers if each.failure]
        return Shadowed(
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
        """For people: means over what was answered."""
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
    """One experiment and everything seen of it; immutable, what the store remembers.

    Attributes:
        version: the candidate.
        generation: of the rollout that began it.
        actor: who began it.
        started_at_s: UTC seconds since the epoch.
        position: number of the last experience looked at.
        cursors: where reading the reports goes on.
        seen: the last report of each replica.
        problem: why a replica cannot run the candidate; "" if all can.
        slices: evidence by kind of input and by user group.
        ungrouped: experiences whose user group is not watched, because there are too many.
        verdict, why: once it is decided, before the rollout says so.
    """

    version: int
    generation: int
    share: float
    shadow: bool
    actor: str
    started_at_s: float
    position: int
    evidence: TwoArmTest
    guards: Guards
    slices: Mapping[str, TwoArmTest] = field(default_factory=dict)
    ungrouped: int = 0
    shadowed: Shadowed = Shadowed()
    cursors: Mapping[str, Cursor] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""
    verdict: Verdict | None = None
    why: str = ""

    def to_bytes(self) -> bytes:
        raw = {name: getattr(self, name) for name in _PLAIN}
        raw |= {
            "evidence": self.evidence.to_dict(),
            "guards": self.guards.to_dict(),
            "slices": {name: each.to_dict() for name, each in self.slices.items()},
            "shadowed": asdict(self.shadowed),
        }
        return json.dumps(raw).encode()

    def e_values(self) -> dict[str, float]:
        """The evidence for each claim: gain, harm, errors, latency."""
        return {
            "gain": self.evidence.gain.e_value(0),
            "harm": self.evidence.loss.e_value(0),
            "errors": self.guards.errors.e_value(0),
            "latency": self.guards.slow.e_value(0),
        }

    def report(self) -> dict[str, Any]:
        """For people, JSON-ready."""
        live, candidate = self.guards.live, self.guards.candidate
        return {
            "version": self.version,
            "generation": self.generation,
            "share": self.share,
            "shadow": self.shadow,
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
                    "e_value_harm": each.loss.e_value(0),
                    "suspected": each.suspected,
                    "proof": 1.0 / each.rules.alpha,
                }
                for name, each in self.slices.items()
            ],
            "ungrouped": self.ungrouped,
            "shadowed": self.shadowed.report() if self.shadow else None,
        }


_PLAIN: Final = (
    "version",
    "generation",
    "share",
    "shadow",
    "actor",
    "started_at_s",
    "position",
    "ungrouped",
    "cursors",
    "seen",
    "problem",
    "verdict",
    "why",
)


def experiment_from_bytes(raw: bytes | None) -> Experiment | None:
    if raw is None:
        return None
    fields = json.loads(raw)
    made: dict[str, Any] = {
        "evidence": two_arm_test_from_dict(fields["evidence"]),
        "guards": guards_from_dict(fields["guards"]),
        "slices": {name: two_arm_test_from_dict(each) for name, each in fields["slices"].items()},
        "shadowed": Shadowed(**fields["shadowed"]),
    }
    return Experiment(**{name: fields[name] for name in _PLAIN if name in fields}, **made)


def weigh(
    experiment: Experiment,
    experiences: Sequence[Experience],
    rollout: Rollout,
    rules: ExperimentRules,
    n_users: int,
    chances: Callable[[Sequence[Experience]], Propensities | None] = lambda rows: None,
) -> Experiment:
    """Take in experiences in their order; those that are not of the experiment are passed over.

    Args:
        chances: tells how probable the answers of the experiment were under candidate and live, if that is known.
    """
    rows = [e for e in experiences if _is_of_experiment(experiment, e, rollout)]
    if not rows:
        return experiment
    told = chances(rows)
    slices, ungrouped = dict(experiment.slices), experiment.ungrouped
    of_slice: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        names = [_input_slice(row, slices), _group_slice(row, slices)]
        ungrouped += names[1] is None
        for name in names:
            if name:
                if name not in slices:
                    slices[name] = new_two_arm_test(rules.slice(experiment.share, len(slices) + 1))
                of_slice.setdefault(name, []).append(i)
    for name, places in of_slice.items():
        some = np.isin(np.arange(len(rows)), places)
        slices[name] = _updated(
            slices[name], experiment, [rows[i] for i in places], n_users, None if told is None else told[some]
        )
    evidence = _updated(experiment.evidence, experiment, rows, n_users, told)
    return replace(experiment, evidence=evidence, slices=slices, ungrouped=ungrouped)


def _input_slice(row: Experience, slices: Mapping[str, TwoArmTest]) -> str:
    name = " + ".join(row.decision.modalities) or "no input kept"
    known = len(slices) - _n_groups(slices)
    return name if name in slices or known < _SLICES else _OTHERS


def _group_slice(row: Experience, slices: Mapping[str, TwoArmTest]) -> str | None:
    """ "" if its user is of no group, None if that is one too many."""
    if not row.decision.user_group:
        return ""
    name = GROUP.format(row.decision.user_group)
    return name if name in slices or _n_groups(slices) < _GROUPS else None


def _n_groups(slices: Mapping[str, TwoArmTest]) -> int:
    return sum(name.startswith(GROUP.format("")) for name in slices)


def heed(experiment: Experiment, report: ExperimentReport) -> Experiment:
    """Take in what a replica reports; each report counts once, and those of other experiments not at all."""
    if (report.experiment, report.version) != (experiment.generation, experiment.version):
        return experiment
    if report.number <= experiment.seen.get(report.replica, 0):
        return experiment
    return replace(
        experiment,
        guards=experiment.guards.update(_arm(report.live), _arm(report.candidate)),
        shadowed=experiment.shadowed.plus(report.shadows, report.dropped),
        seen={**experiment.seen, report.replica: report.number},
        problem=report.problem or experiment.problem,
    )


def decide(experiment: Experiment, rules: ExperimentRules) -> Experiment:
    """With a verdict, where there is proof or an end to it; in the shadow there is none."""
    if experiment.shadow or experiment.verdict is not None:
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


class ExperimentRunner:
    """Follows whatever candidate the rollout names, a little with every step of the leader.

    Args:
        log: reports of inference services come from here.
        store, registry, versions, metrics, clock: as the learner's.
        rules: how experiments are judged.
    """

    def __init__(
        self,
        *,
        log: EventLog,
        store: ExperienceStore,
        registry: ModelRegistry,
        versions: PolicyCache,
        rules: ExperimentRules,
        metrics: LearnerMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._store = store
        self._registry = registry
        self._versions = versions
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._reader: EventReader | None = None
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self.close()
        self._experiment = experiment_from_bytes(self._store.recall(PRESENT))
        self._past: tuple[Mapping[str, Any], ...] = tuple(json.loads(self._store.recall(PAST) or b"[]"))
        self._looked_s = -_REPORTS_INTERVAL_S
        self.busy = False

    def close(self) -> None:
        """Let go of the log."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def experiment(self) -> Experiment | None:
        """The one under way."""
        return self._experiment

    def outcome(self, version: int) -> Mapping[str, Any] | None:
        """How the latest experiment of a version ended; None if it has not, or there was none."""
        return next((past for past in reversed(self._past) if past["version"] == version), None)

    def report(self) -> dict[str, Any] | None:
        """Of the experiment under way, for people; None if there is none."""
        return None if self._experiment is None else self._experiment.report()

    def step(self, rollout: Rollout, progress: Progress) -> None:
        """Begin, go on with or end the experiment that the rollout asks for."""
        experiment = self._experiment
        if experiment is not None and experiment.verdict is not None:
            self._act(experiment)  # begun by a leader that died before it was done
            return
        if experiment is not None and rollout.experiment != experiment.generation:
            self._ended_by_others(experiment)
            experiment = None
        if experiment is None:
            if rollout.candidate is None:
                self.close()
                return
            experiment = self._begin(rollout, progress)
        self._go_on(experiment, rollout, progress)

    def _begin(self, rollout: Rollout, progress: Progress) -> Experiment:
        assert rollout.candidate is not None
        share = min(rollout.candidate_share, 0.5) if rollout.shadow else rollout.candidate_share
        began = next((r for r in self._registry.ledger() if r.generation == rollout.experiment), rollout)
        experiment = Experiment(
            version=rollout.candidate,
            generation=rollout.experiment,
            share=rollout.candidate_share,
            shadow=rollout.shadow,
            actor=began.actor,
            started_at_s=began.changed_at_s,
            position=max(0, progress.last_number - _LOOK_BACK),
            evidence=new_two_arm_test(self._rules.canary(share)),
            guards=new_guards(self._rules.guards(share)),
            cursors=json.loads(self._store.recall(CURSORS) or b"{}"),
        )
        self._remember(experiment)
        _log.info(
            "experiment",
            version=experiment.version,
            share=experiment.share,
            shadow=experiment.shadow,
            actor=experiment.actor,
        )
        return experiment

    def _go_on(self, experiment: Experiment, rollout: Rollout, progress: Progress) -> None:
        chunk = self._store.experiences(after=experiment.position, up_to=progress.last_number, limit=_CHUNK)
        self.busy = len(chunk) == _CHUNK
        after = experiment
        if chunk:
            after = weigh(
                after, chunk, rollout, self._rules, progress.n_users, partial(self._chances, experiment, rollout)
            )
            after = replace(after, position=chunk[-1].number)
        for report, cursors in self._reports(after):
            after = replace(heed(after, report), cursors={**after.cursors, **cursors})
        after = decide(after, self._rules)
        if after is not experiment:
            self._remember(after)
        if after.verdict is not None:
            self._act(after)

    def _chances(self, experiment: Experiment, rollout: Rollout, rows: Sequence[Experience]) -> Propensities:
        return propensities_of(rows, experiment.version, rollout.live or 0, self._store, self._versions)

    def _reports(self, experiment: Experiment) -> list[tuple[ExperimentReport, Mapping[str, Cursor]]]:
        """The next reports about this model, each with where reading goes on behind it."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _REPORTS_INTERVAL_S:
            return []
        self._looked_s = now_s
        if self._reader is None:
            group = f"plaudit-experiments-{self._registry.model}"
            cursors = dict(experiment.cursors)
            self._reader = self._log.reader(group, (Topic.EXPERIMENTS,), start=lambda: cursors)
        found: list[tuple[ExperimentReport, Mapping[str, Cursor]]] = []
        for _ in range(_POLLS):
            if not self._reader.lag():  # it joins the group, too; polling without waiting for anything never would
                break
            records = self._reader.poll(_REPORTS, _WAIT_S)
            found += [
                (record.event, {record.partition: record.cursor})
                for record in records
                if isinstance(record.event, ExperimentReport) and record.event.model == self._registry.model
            ]
        return found

    def _act(self, experiment: Experiment) -> None:
        """Change the rollout as the verdict says, then forget the experiment. May be done again after a crash."""
        why, version = experiment.why, experiment.version
        if experiment.verdict == "promote":
            change = Change(ACTOR, self._clock(), f"version {version} passed the canary: {why}")
            if not self._move(experiment, lambda r: None if r.pinned else promote(r, version, change)):
                why += "; not made live, because a version is pinned"
        else:
            change = Change(ACTOR, self._clock(), f"version {version} is withdrawn: {why}")
            self._move(experiment, lambda r: end_canary(r, change))
        assert experiment.verdict is not None
        self._end(experiment, experiment.verdict, why)

    def _move(self, experiment: Experiment, transition: Callable[[Rollout], Rollout | None]) -> bool:
        """Change the rollout if the experiment is still under way; False if ``transition`` would not."""
        refused = False

        def change(rollout: Rollout) -> Rollout | None:
            nonlocal refused
            if rollout.experiment != experiment.generation:
                return None  # done by a leader that died before it could note it, or by a person
            after = transition(rollout)
            refused = after is None
            return after

        move(self._registry, change)
        return not refused

    def _ended_by_others(self, experiment: Experiment) -> None:
        after = [r for r in self._registry.ledger() if r.generation > experiment.generation]
        end = next((r for r in after if r.experiment != experiment.generation), self._registry.rollout())
        verdict: Verdict = "promote" if end.live == experiment.version else "insufficient"
        self._end(experiment, verdict, f"{end.actor} ended the experiment: {end.reason}")

    def _end(self, experiment: Experiment, verdict: Verdict, why: str) -> None:
        self._metrics.canary_verdicts.labels(verdict).inc()
        _log.info("experiment ended", verdict=verdict, version=experiment.version, why=why)
        ended = replace(experiment, verdict=verdict, why=why).report() | {"ended_at_s": self._clock()}
        past = (*self._past, ended)[-_KEPT:]
        cursors = json.dumps(dict(experiment.cursors)).encode()
        self._store.save(
            LeaderCommit(memory={PRESENT: None, SHOWN: None, PAST: json.dumps(past).encode(), CURSORS: cursors})
        )
        self._experiment, self._past, self.busy = None, past, False
        self._tell(None)
        self.close()

    def _remember(self, experiment: Experiment) -> None:
        shown = json.dumps(experiment.report()).encode()
        self._store.save(LeaderCommit(memory={PRESENT: experiment.to_bytes(), SHOWN: shown}))
        self._experiment = experiment
        self._tell(experiment)

    def _tell(self, experiment: Experiment | None) -> None:
        self._metrics.candidate_version.set(0 if experiment is None else experiment.version)
        self._metrics.canary_n.set(0 if experiment is None else sum(experiment.evidence.n))
        e_values = (
            dict.fromkeys(("gain", "harm", "errors", "latency"), 1.0) if experiment is None else experiment.e_values()
        )
        for claim, e_value in e_values.items():
            self._metrics.canary_e_value.labels(claim).set(e_value)


def _is_of_experiment(experiment: Experiment, experience: Experience, rollout: Rollout) -> bool:
    """Served after the experiment began, to somebody, by the version that the draw says."""
    served = experience.decision
    return (
        not experiment.shadow
        and not experience.excluded
        and speaks_plainly(experience)
        and served.time_s >= experiment.started_at_s
        and served.user_id != ""
        and in_experiment(rollout, served.user_id) == (served.version == experiment.version)
    )


def _updated(
    canary: TwoArmTest, experiment: Experiment, rows: Sequence[Experience], n_users: int, chances: Propensities | None
) -> TwoArmTest:
    return canary.update(
        np.array([e.reward for e in rows], np.float64),
        np.array([e.decision.version == experiment.version for e in rows]),
        [e.decision.user_id for e in rows],
        n_users=n_users,
        chances=chances,
    )


def _arm(answers: Answers) -> Arm:
    return Arm(answers.failed, answers.latencies)


def _arms(canary: TwoArmTest) -> dict[str, dict[str, Any]]:
    return {
        name: {"n": n, "mean": total / n if n else None}
        for name, n, total in zip(("live", "candidate"), canary.n, canary.total, strict=True)
    }


def _answers(arm: Arm) -> dict[str, Any]:
    return {
        "answered": arm.answered,
        "failed": arm.failed,
        "p50_s": arm.quantile_s(0.5),
        "p95_s": arm.quantile_s(0.95),
    }
