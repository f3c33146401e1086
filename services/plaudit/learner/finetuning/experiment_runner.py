"""Experiments: begun by fine-tuning or by an operator, followed, and ended on proof.

Every candidate in the rollout is an experiment (:mod:`plaudit.learner.evaluation.experiment`). Proof of harm withdraws
the candidate; proof of gain promotes it, unless harm is suspected on a slice. A shadow only collects statistics. Knows
nothing about where candidates come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from plaudit.core.events import ExperimentReport, Topic
from plaudit.core.ports.log import EventLog, EventReader, Positions
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceStore, ExperimentSummary, LeaderCommit
from plaudit.core.rollout import Change, Rollout, end_canary, promote
from plaudit.core.rollout_updates import LEARNER, update_rollout
from plaudit.learner.evaluation.experiment import Experiment, ExperimentRules, add_experiences, add_report, decide
from plaudit.learner.evaluation.propensities import propensities_of
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.metrics import CANARY_CLAIMS, LearnerMetrics
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from plaudit_models.evaluation.gate import Verdict
from plaudit_models.evaluation.guards import new_guards
from plaudit_models.evaluation.two_arm_test import new_two_arm_test

_CHUNK: Final = 256
"""Experiences added per step of the loop."""
_LOOK_BACK: Final = 2_048
"""Latest experiences that may belong to an experiment which began while no learner led."""
_REPORTS: Final = 512
_POLLS: Final = 8
"""Reads of up to that many reports per poll: those on earlier experiments are passed over quickly."""
_REPORTS_INTERVAL_S: Final = 0.2
_WAIT_S: Final = 0.2
"""Wait for reports that are known to be in the log."""

_log = structlog.get_logger("plaudit.learner")


@dataclass(kw_only=True, eq=False)
class ExperimentRunner:
    """Follows the candidate that the rollout names, a little with every step of the leader.

    Attributes:
        log: source of the inference services' reports.
        state: the experiment under way is a part of it.
        rules: what counts as proof.
        clock: UTC seconds since the epoch.
        busy: whether experiences wait to be looked at, so that the loop should come back soon.
    """

    log: EventLog
    state: LearnerState
    store: ExperienceStore
    registry: ModelRegistry
    policies: PolicyCache
    rules: ExperimentRules
    metrics: LearnerMetrics
    clock: Callable[[], float]
    _reader: EventReader | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self.close()
        self._polled_s = -_REPORTS_INTERVAL_S
        self.busy = False

    def close(self) -> None:
        """Close the reader of the log."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def experiment(self) -> Experiment | None:
        """Experiment under way; None if there is none."""
        return self.state.experiment

    def outcome(self, version: int) -> Mapping[str, Any] | None:
        """Details of the latest experiment of a version that has ended; None if it has not, or there was none."""
        summary = self.store.experiment_summary(version)
        return None if summary is None or summary.details["verdict"] is None else summary.details

    def report(self) -> dict[str, Any] | None:
        """Report of the experiment under way, for people; None if there is none."""
        return None if self.experiment is None else self.experiment.report()

    def step(self, rollout: Rollout, progress: Progress) -> None:
        """Begin, go on with or end the experiment that the rollout asks for."""
        experiment = self.experiment
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
        began = next(self.registry.ledger(after=rollout.experiment - 1), rollout)
        experiment = Experiment(
            version=rollout.candidate,
            generation=rollout.experiment,
            share=rollout.candidate_share,
            kind="shadow" if rollout.shadow else "canary",
            actor=began.actor,
            started_at_s=began.changed_at_s,
            position=max(0, progress.last_number - _LOOK_BACK),
            evidence=new_two_arm_test(self.rules.over_all(share)),
            guards=new_guards(self.rules.guards(share)),
        )
        self._save(experiment)
        _log.info(
            "experiment", version=experiment.version, share=experiment.share, kind=experiment.kind, actor=began.actor
        )
        return experiment

    def _go_on(self, experiment: Experiment, rollout: Rollout, progress: Progress) -> None:
        chunk = self.store.experiences(after=experiment.position, up_to=progress.last_number, limit=_CHUNK)
        self.busy = len(chunk) == _CHUNK
        after, cursors = experiment, dict(self.state.report_cursors)
        if chunk:
            after = add_experiences(
                after,
                chunk,
                rollout,
                self.rules,
                progress.n_users,
                lambda rows: propensities_of(rows, experiment.version, rollout.live or 0, self.store, self.policies),
            )
            after = replace(after, position=chunk[-1].number)
        for report, behind in self._reports():
            cursors = {**cursors, **behind}
            try:
                after = add_report(after, report)
            except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # of this report, maybe a stranger's
                problem = f"{type(error).__name__}: {str(error)[:200]}"
                _log.error("report passed over", replica=report.replica, number=report.number, problem=problem)
        after = decide(after, self.rules)
        if after is not experiment or cursors != self.state.report_cursors:
            self._save(after, cursors)
        if after.verdict is not None:
            self._act(after)

    def _reports(self) -> list[tuple[ExperimentReport, Positions]]:
        """Next reports on this model, each with the position behind it."""
        now_s = time.monotonic()
        if now_s - self._polled_s < _REPORTS_INTERVAL_S:
            return []
        self._polled_s = now_s
        if self._reader is None:
            group = f"plaudit-experiments-{self.registry.model}"
            cursors = self.state.report_cursors
            self._reader = self.log.reader(group, (Topic.EXPERIMENTS,), start=lambda: cursors)
        reports: list[tuple[ExperimentReport, Positions]] = []
        for _ in range(_POLLS):
            if not self._reader.lag():  # it joins the group, too; polling without waiting for anything never would
                break
            records = self._reader.poll(_REPORTS, _WAIT_S)
            reports += [
                (record.event, {record.partition: record.cursor})
                for record in records
                if isinstance(record.event, ExperimentReport) and record.event.model == self.registry.model
            ]
        return reports

    def _act(self, experiment: Experiment) -> None:
        """Change the rollout as the verdict says, then end the experiment. May be done again after a crash."""
        why, version = experiment.why, experiment.version
        if experiment.verdict == "promote":
            change = Change(LEARNER, self.clock(), f"version {version} passed the canary: {why}")
            if not self._move(experiment, lambda r: None if r.pinned else promote(r, version, change)):
                why += "; not made live, because a version is pinned"
        else:
            change = Change(LEARNER, self.clock(), f"version {version} is withdrawn: {why}")
            self._move(experiment, lambda r: end_canary(r, change))
        assert experiment.verdict is not None
        self._end(experiment, experiment.verdict, why)

    def _move(self, experiment: Experiment, transition: Callable[[Rollout], Rollout | None]) -> bool:
        """Change the rollout if the experiment is still under way; False if ``transition`` refused."""
        refused = False

        def change(rollout: Rollout) -> Rollout | None:
            nonlocal refused
            if rollout.experiment != experiment.generation:
                return None  # done by a leader that died before it could save that, or by an operator
            after = transition(rollout)
            refused = after is None
            return after

        update_rollout(self.registry, change)
        return not refused

    def _ended_by_others(self, experiment: Experiment) -> None:
        after = self.registry.ledger(after=experiment.generation)
        end = next((r for r in after if r.experiment != experiment.generation), self.registry.rollout())
        verdict: Verdict = "promote" if end.live == experiment.version else "insufficient"
        self._end(experiment, verdict, f"{end.actor} ended the experiment: {end.reason}")

    def _end(self, experiment: Experiment, verdict: Verdict, why: str) -> None:
        self.metrics.canary_verdicts.labels(verdict).inc()
        _log.info("experiment ended", verdict=verdict, version=experiment.version, why=why)
        ended = replace(experiment, verdict=verdict, why=why).report() | {"ended_at_s": self.clock()}
        summary = ExperimentSummary(experiment.generation, experiment.version, ended)
        self.state.save(LeaderCommit(experiments=[summary]), experiment=None)
        self.busy = False
        self._show(None)
        self.close()

    def _save(self, experiment: Experiment, cursors: Positions | None = None) -> None:
        summary = ExperimentSummary(experiment.generation, experiment.version, experiment.report())
        cursors = self.state.report_cursors if cursors is None else cursors
        self.state.save(LeaderCommit(experiments=[summary]), experiment=experiment, report_cursors=cursors)
        self._show(experiment)

    def _show(self, experiment: Experiment | None) -> None:
        self.metrics.candidate_version.set(0 if experiment is None else experiment.version)
        self.metrics.canary_n.set(0 if experiment is None else sum(experiment.evidence.n))
        e_values = {} if experiment is None else experiment.e_values()
        for claim in CANARY_CLAIMS:
            self.metrics.canary_e_value.labels(claim).set(e_values.get(claim, 1.0))
