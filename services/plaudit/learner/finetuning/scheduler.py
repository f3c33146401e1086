"""Fine-tuning as the learner sees it: start a job when due, watch it, evaluate its candidate, promote or record why
not.

One class per phase: idle → training → gating → (experiment) → idle. Each phase does a little with every step of the
loop, saves what it needs to go on after a kill before it changes anything outside the store, and returns the phase that
comes next. A candidate is published when there is a verdict, with the evidence sealed in its manifest: also when it is
rejected, so that it can be inspected, but then it serves only if an operator promotes it. One that the gate found
neither better nor worse goes into an experiment with a share of the users, where the settings allow it. Knows nothing
about training, nor about where jobs run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import structlog

from plaudit.core.errors import UnknownVersion
from plaudit.core.job_run import CANDIDATE, last_progress, was_killed
from plaudit.core.ports.jobs import JobLauncher, JobState
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import FeatureStore, LeaderCommit
from plaudit.core.rollout import Change, Rollout, fresh_salt, promote, start_canary
from plaudit.core.rollout_updates import LEARNER, update_rollout
from plaudit.learner.features.head_builder import write_card
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.finetuning.candidate_gate import Candidate, CandidateGate
from plaudit.learner.finetuning.experiment_runner import ExperimentRunner
from plaudit.learner.finetuning.job_spec import (
    CHECKPOINT,
    PARENT,
    REWARD_MODEL,
    TrainingPlan,
    cannot_train,
    checkpoint_step,
    prepare_run,
)
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from plaudit.learner.tracing import LearnerTrace
from plaudit.learner.tuning_state import Experimenting, Gating, Idle, RunOutcome, Training, TuningState
from plaudit_models.bundle import MANIFEST, CorruptBundle, Manifest, read_manifest
from plaudit_models.evaluation.gate import GateReport, GateRules, Verdict, new_comparison

_POLL_INTERVAL_S: Final = 0.2

_log = structlog.get_logger("plaudit.learner")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuningRules:
    """When jobs start, how they train, and what becomes of their candidates.

    Attributes:
        job_interval: new experiences after which a job is due.
        gate: what counts as proof.
        max_gate_events: experiences after which the gate gives up.
        canary_share: share of the users in the experiment of a candidate without a verdict; 0: there is none.
    """

    job_interval: int
    plan: TrainingPlan
    gate: GateRules
    max_gate_events: int
    canary_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuningContext:
    """Collaborators of all phases, and what they share.

    Attributes:
        runs_dir: gets a folder per run.
        clock: UTC seconds since the epoch.
    """

    rules: FinetuningRules
    jobs: JobLauncher
    store: FeatureStore
    state: LearnerState
    registry: ModelRegistry
    policies: PolicyCache
    experiments: ExperimentRunner
    runs_dir: Path
    metrics: LearnerMetrics
    clock: Callable[[], float]
    trace: LearnerTrace

    def save(self, tuning: TuningState, commit: LeaderCommit | None = None) -> None:
        """Save a new state together with ``commit``, in one transaction.

        Raises:
            StoreMoved, StoreUnavailable: nothing was saved, and nothing here has changed.
        """
        self.state.save(commit, tuning=tuning)
        self.metrics.phase(tuning.phase.name)

    def save_phase(self, phase: Training | Gating | Experimenting, commit: LeaderCommit | None = None) -> None:
        self.save(replace(self.state.tuning, phase=phase), commit)

    def end(self, run: str, outcome: str, why: str, version: int | None) -> IdlePhase:
        """Save how a run ended, then remove what is large in its folder."""
        self.save(self.state.tuning.ended(RunOutcome(run, outcome, why, version, self.clock())))
        self.metrics.gate_n.set(0)
        self.metrics.gate_e_value.clear()
        self.metrics.gate_gain.clear()
        run_dir = self.runs_dir / run
        for folder in (CANDIDATE, PARENT):
            shutil.rmtree(run_dir / folder, ignore_errors=True)
        for file in (CHECKPOINT, REWARD_MODEL):
            (run_dir / file).unlink(missing_ok=True)
        return IdlePhase(self)

    def fail(self, run: str, error: str) -> IdlePhase:
        self.metrics.jobs.labels("failed").inc()
        _log.error("fine-tuning failed", run=run, error=error)
        return self.end(run, "failed", error, None)

    def show_kl(self, candidate: Manifest | None) -> None:
        """Show how far the latest job moved the policy: from its end until the next one begins (None)."""
        self.metrics.finetune_kl.clear()
        kl = None if candidate is None else candidate.metrics.get("kl_to_parent_nats")
        if kl is not None:
            self.metrics.finetune_kl.labels(self.registry.model).set(kl)


class Phase(Protocol):
    """One phase of fine-tuning."""

    @property
    def busy(self) -> bool:
        """Whether experiences wait for this phase, so that the loop should come back soon."""

    def step(self, live: Manifest, progress: Progress) -> Phase:
        """Go on a little; returns the phase of the next step."""

    def report(self) -> dict[str, Any]:
        """Report of this phase alone, for people."""


@dataclass(slots=True)
class IdlePhase:
    """Starts a job when one is due."""

    context: FinetuningContext
    busy: ClassVar = False
    _off: str = ""

    def step(self, live: Manifest, progress: Progress) -> Phase:
        self._off = "" if live.trainable else cannot_train(live)
        new = progress.last_number - self.context.state.tuning.last_snapshot
        trains_on = progress.experiences - (0 if live.spec.scores_text else progress.dynamic_experiences)
        if self._off or new < self.context.rules.job_interval or trains_on <= 0:
            return self
        return self._start_job(live, progress, f"{new} new experiences since the last job; from version {live.version}")

    def _start_job(self, live: Manifest, progress: Progress, reason: str) -> TrainingPhase:
        context, run, now_s = self.context, f"run-{progress.last_number:08}", self.context.clock()
        run_dir = prepare_run(
            context.runs_dir / run, context.registry, live, progress, context.rules.plan, now_s, reason
        )
        with context.trace.tuning(live, run) as traceparent:
            training = Training(run=run, started_at_s=now_s, traceparent=traceparent)
            # Saved before the launch: a job that the store does not know of would run unwatched.
            self.context.save(replace(self.context.state.tuning, phase=training, last_snapshot=progress.last_number))
            context.jobs.launch(run_dir)
        context.show_kl(None)
        context.metrics.jobs.labels("started").inc()
        context.metrics.job_running.set(1)
        _log.info("fine-tuning started", run=run, reason=reason)
        return TrainingPhase(context, training)

    def report(self) -> dict[str, Any]:
        return {"off": self._off} if self._off else {}


@dataclass(slots=True)
class TrainingPhase:
    """Watches the job. A job that was running when the learner died is found by its run folder."""

    context: FinetuningContext
    training: Training
    busy: ClassVar = False
    _polled_s: float = -_POLL_INTERVAL_S

    @property
    def run_dir(self) -> Path:
        return self.context.runs_dir / self.training.run

    def step(self, live: Manifest, progress: Progress) -> Phase:
        now_s = time.monotonic()
        if now_s - self._polled_s < _POLL_INTERVAL_S:
            return self
        self._polled_s = now_s
        status = self.context.jobs.status(self.run_dir)
        self.context.metrics.job_running.set(float(status.state == JobState.RUNNING))
        if status.state == JobState.SUCCEEDED:
            self.context.metrics.jobs.labels("succeeded").inc()
            return self._begin_gate()
        if status.state == JobState.FAILED and not self._resume():
            return self.context.fail(self.training.run, status.error)
        return self

    def _resume(self) -> bool:
        """Launch a killed job again from its checkpoint, unless it got no further than when it was last resumed."""
        step = checkpoint_step(self.run_dir)
        if not was_killed(self.run_dir) or step <= self.training.resumed_step:
            return False
        self.training = replace(self.training, resumed_step=step)
        self.context.save_phase(self.training)
        self.context.jobs.launch(self.run_dir)
        self.context.metrics.jobs.labels("resumed").inc()
        _log.warning("fine-tuning was killed and goes on", run=self.training.run, step=step)
        return True

    def _begin_gate(self) -> Phase:
        context, training = self.context, self.training
        try:
            candidate = Candidate(self.run_dir, context.policies, context.rules.plan.head_builder)
            features = candidate.features()
        except (CorruptBundle, OSError, ValueError) as error:
            return self.context.fail(training.run, f"the candidate cannot be used: {error}")
        gating = Gating(
            run=training.run,
            started_at_s=training.started_at_s,
            traceparent=training.traceparent,
            position=self.context.state.tuning.last_snapshot,
            comparison=new_comparison(context.rules.gate),
        )
        self.context.save_phase(gating, LeaderCommit(features=features))
        context.show_kl(candidate.policy.manifest)
        _log.info("candidate at the gate", run=training.run)
        return GatingPhase(context, gating, candidate)

    def report(self) -> dict[str, Any]:
        return {"progress": last_progress(self.run_dir)}


@dataclass(slots=True)
class GatingPhase:
    """Evaluates the candidate; publishes it with the verdict, and promotes it or tries it out.

    What follows from a verdict may be done again after a kill: it has no further effect then.
    """

    context: FinetuningContext
    gating: Gating
    candidate: Candidate | None = None
    busy: bool = False

    @property
    def run_dir(self) -> Path:
        return self.context.runs_dir / self.gating.run

    def step(self, live: Manifest, progress: Progress) -> Phase:
        context, builder = self.context, self.context.rules.plan.head_builder
        if self.candidate is None:
            self.candidate = Candidate(self.run_dir, context.policies, builder)
        gate = CandidateGate(context.store, context.registry, builder, context.metrics)
        gating, self.busy = gate.add_chunk(self.gating, self.candidate, progress)
        if gating is not self.gating:
            self.context.save_phase(gating)
            self.gating = gating
        report = gate.show(gating.comparison)
        if report.verdict == "insufficient" and gating.comparison.tally.seen < context.rules.max_gate_events:
            return self
        with context.trace.concluding(gating.traceparent, gating.run, report.verdict):
            return self._conclude(self.candidate, report.verdict, report)

    def _conclude(self, candidate: Candidate, verdict: Verdict, report: GateReport) -> Phase:
        context, run, why = self.context, self.gating.run, "; ".join(report.reasons)
        version = (self._published() or self._publish(report)).version
        context.trace.tuned(version)
        context.state.save(served_heads={version: candidate.evidence})
        if verdict == "promote" and not self._promote(version, f"passed the gate: {why}"):
            why += "; not made live, because a version is pinned"
        context.metrics.gate_verdicts.labels(verdict).inc()
        _log.info("gate", verdict=verdict, version=version, run=run, why=why)
        experiment = self._begin_experiment(version) if verdict == "insufficient" else None
        return experiment or self.context.end(run, verdict, why, version)

    def _publish(self, report: GateReport) -> Manifest:
        folder = self.run_dir / CANDIDATE
        made = read_manifest(folder)
        manifest = replace(made, gate=report.to_dict(), data={**made.data, **self.context.trace.data()})
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        write_card(folder, manifest)
        return self.context.registry.publish(folder)

    def _published(self) -> Manifest | None:
        """The version that a learner which died here has already published."""
        for version in reversed(self.context.registry.versions()):
            manifest = self.context.registry.manifest(version)
            if manifest.kind == "finetuned" and manifest.data.get("run") == self.gating.run:
                return manifest
        return None

    def _promote(self, version: int, why: str) -> bool:
        """Make the candidate live; False if a version is pinned."""
        first = self.context.registry.first_live(version)
        if first is not None and first.live == version:
            return True  # by a learner that died before it could save that
        change = Change(LEARNER, self.context.clock(), why)

        def transition(rollout: Rollout) -> Rollout | None:
            return None if rollout.pinned else promote(rollout, version, change)

        return update_rollout(self.context.registry, transition) is not None

    def _begin_experiment(self, version: int) -> ExperimentPhase | None:
        """None if there are no experiments, another one is under way, or a version is pinned."""
        context, share = self.context, self.context.rules.canary_share
        if share == 0.0:
            return None
        change = Change(LEARNER, context.clock(), f"version {version} is tried out with {share:.0%} of the users")

        def transition(rollout: Rollout) -> Rollout | None:
            if rollout.pinned or rollout.candidate is not None:
                return None
            return start_canary(rollout, version, share, change, salt=fresh_salt())

        update_rollout(context.registry, transition)
        if context.registry.rollout().candidate != version:
            return None
        experimenting = Experimenting(run=self.gating.run, started_at_s=change.time_s, version=version)
        self.context.save_phase(experimenting)
        return ExperimentPhase(context, experimenting)

    def report(self) -> dict[str, Any]:
        return {"gate": self.gating.comparison.report().to_dict()}


@dataclass(slots=True)
class ExperimentPhase:
    """Waits for the end of the candidate's experiment, which the :class:`ExperimentRunner` decides."""

    context: FinetuningContext
    experimenting: Experimenting
    busy: ClassVar = False

    def step(self, live: Manifest, progress: Progress) -> Phase:
        run, version = self.experimenting.run, self.experimenting.version
        experiment = self.context.experiments.experiment
        under_way = experiment is not None and experiment.version == version
        if under_way or self.context.registry.rollout().candidate == version:
            return self
        outcome = self.context.experiments.outcome(version)
        if outcome is None:  # it was begun and ended between two steps
            why = "the experiment was ended before anything was seen of it"
            return self.context.end(run, "insufficient", why, version)
        return self.context.end(run, outcome["verdict"], outcome["why"], version)

    def report(self) -> dict[str, Any]:
        begun = {"version": self.experimenting.version, "n": 0, "why": "there is no feedback yet"}
        return {"canary": self.context.experiments.report() or begun}


class FinetuningScheduler:
    """Goes through the phases, a little with every step of the leader."""

    def __init__(self, context: FinetuningContext) -> None:
        self._context = context
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self._context.metrics.phase(self._context.state.tuning.phase.name)
        self._phase = self._loaded_phase()
        self._context.show_kl(self._latest_candidate())

    @property
    def busy(self) -> bool:
        """Whether experiences wait to be evaluated, so that the loop should come back soon."""
        return self._phase.busy

    def step(self, live: Manifest, progress: Progress) -> None:
        self._phase = self._phase.step(live, progress)

    def report(self) -> dict[str, Any]:
        """Phase, progress of the job, evidence so far and latest outcomes, for people; JSON-ready."""
        state = self._context.state.tuning
        report: dict[str, Any] = {
            "phase": state.phase.name,
            "outcomes": [asdict(outcome) for outcome in state.outcomes],
        }
        if not isinstance(state.phase, Idle):
            report |= {"run": state.phase.run, "snapshot": state.last_snapshot}
            report["started_at_s"] = state.phase.started_at_s
        return report | self._phase.report()

    def _loaded_phase(self) -> Phase:
        match self._context.state.tuning.phase:
            case Idle():
                return IdlePhase(self._context)
            case Training() as training:
                return TrainingPhase(self._context, training)
            case Gating() as gating:
                return GatingPhase(self._context, gating)
            case Experimenting() as experimenting:
                return ExperimentPhase(self._context, experimenting)

    def _latest_candidate(self) -> Manifest | None:
        """Manifest of the latest job's candidate, if it made one and no job runs."""
        outcomes, registry = self._context.state.tuning.outcomes, self._context.registry
        try:
            match self._context.state.tuning.phase:
                case Training():
                    return None
                case Gating(run=run):
                    return read_manifest(self._context.runs_dir / run / CANDIDATE)
                case Experimenting(version=version):
                    return registry.manifest(version)
                case Idle():
                    latest = outcomes[-1].version if outcomes else None
                    return None if latest is None else registry.manifest(latest)
        except (CorruptBundle, UnknownVersion, OSError):
            return None
