"""Fine-tuning as the learner sees it: start a job when due, watch it, judge what it made, promote or record why not.

A candidate is judged on experiences that came after its snapshot only: neither it nor its reward model has seen them.
Answers that were picked from candidates of the request are left out, in training and here.
It is published when there is a verdict, with the evidence sealed in its manifest: also when it is rejected, so that
people can look at it, but then it never serves. One that the gate found neither better nor worse goes in an experiment
with a share of the users, where the settings allow it, and is promoted or withdrawn by what they say (experiments.py).
Knows nothing about training, nor about where jobs run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from plaudit.core.errors import UnknownVersion
from plaudit.core.job_run import CANDIDATE, last_progress, was_killed
from plaudit.core.ports.jobs import JobLauncher, JobState
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceStore, LeaderCommit
from plaudit.core.rollout import Change as RolloutChange
from plaudit.core.rollout import Rollout, promote, start_canary
from plaudit.core.rollout_updates import LEARNER, update_rollout
from plaudit.learner.evaluation.off_policy import (
    Compared,
    Policy,
    can_answer,
    compare,
    counts_as_proof,
    logged_policies,
)
from plaudit.learner.features.action_heads import FixedActions
from plaudit.learner.features.features import contexts_on, features_on, is_dynamic
from plaudit.learner.features.head_builder import HeadBuilder, share, write_card
from plaudit.learner.features.policies import LoadedPolicy, PolicyCache
from plaudit.learner.finetuning.experiment_runner import ExperimentRunner
from plaudit.learner.finetuning.job_spec import (
    CHECKPOINT,
    FEATURES,
    PARENT,
    REWARD_MODEL,
    STATE,
    JobSpec,
    TrainingPlan,
    checkpoint_step,
    read_features,
)
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from plaudit.learner.tracing import LearnerTrace
from plaudit.learner.tuning_state import Tuning
from plaudit_models.bundle import MANIFEST, CorruptBundle, Manifest, read_manifest
from plaudit_models.evaluation.gate import (
    Comparison,
    GateReport,
    GateRules,
    Verdict,
    new_comparison,
)
from plaudit_models.preprocess import Limits

_CHUNK: Final = 32
"""Experiences judged per step of the loop: a new trunk on that much content takes well under a refresh's time."""
_HISTORY: Final = 20
_LOOK_INTERVAL_S: Final = 0.2

_log = structlog.get_logger("plaudit.learner")


def cannot_train(live: Manifest) -> str:
    """Why no job can start from a version that is not ``trainable``."""
    return f"version {live.version} is an imported graph without weights to train; its head is refreshed all the same"


def prepare_run(
    run_dir: Path,
    registry: ModelRegistry,
    live: Manifest,
    progress: Progress,
    *,
    plan: TrainingPlan,
    maker: HeadBuilder,
    limits: Limits,
    created_at_s: float,
    reason: str,
) -> Path:
    """Write the run folder of a job that starts from ``live`` and sees all experiences so far; returns ``run_dir``."""
    if run_dir.exists():
        shutil.rmtree(run_dir)  # prepared by a learner that died before it launched
    parent = run_dir / PARENT
    parent.mkdir(parents=True)
    source = registry.folder(live.version)
    for name in (*live.files, MANIFEST):
        share(source / name, parent / name)
    JobSpec(
        snapshot=progress.last_number,
        created_at_s=created_at_s,
        reason=reason,
        plan=replace(plan, rehearsal=plan.rehearsal or _pretraining_folder(registry)),
        maker=maker,
        limits=limits,
        data={"run": run_dir.name, **progress.data()},
    ).write(run_dir)
    return run_dir


def _pretraining_folder(registry: ModelRegistry) -> str | None:
    for version in reversed(registry.versions()):
        manifest = registry.manifest(version)
        if manifest.kind == "pretrained" and "folder" in manifest.data:
            return str(manifest.data["folder"])
    return None


class Finetuning:
    """Starts jobs and judges candidates, a little with every step.

    Args:
        jobs: where jobs run.
        state: what fine-tuning remembers is part of it.
        store, registry, versions, maker, metrics, clock: as the learner's.
        runs_dir: gets a folder per run.
        every: new experiences after which a job is due.
        plan: how jobs train.
        limits: what content jobs decode.
        rules: of the gate.
        max_events: experiences after which the gate gives up.
        experiments: judges what is tried out on users.
        canary_share: of the users that try a candidate out; 0: there are no experiments.
    """

    def __init__(
        self,
        *,
        jobs: JobLauncher,
        state: LearnerState,
        store: ExperienceStore,
        registry: ModelRegistry,
        versions: PolicyCache,
        maker: HeadBuilder,
        runs_dir: Path,
        every: int,
        plan: TrainingPlan,
        limits: Limits,
        rules: GateRules,
        max_events: int,
        experiments: ExperimentRunner,
        canary_share: float,
        metrics: LearnerMetrics,
        clock: Callable[[], float] = time.time,
        trace: LearnerTrace | None = None,
    ) -> None:
        self._jobs = jobs
        self._state = state
        self._store = store
        self._registry = registry
        self._versions = versions
        self._maker = maker
        self._runs_dir = runs_dir
        self._every = every
        self._plan = plan
        self._limits = limits
        self._rules = rules
        self._max_events = max_events
        self._experiments = experiments
        self._canary_share = canary_share
        self._metrics = metrics
        self._clock = clock
        self._trace = trace or LearnerTrace()
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved. A job that was running is found again by its folder."""
        self._metrics.phase(self._tuning.phase)
        self._comparison = self._state.gate or new_comparison(self._rules)
        self._candidate: _Candidate | None = None
        self._backlog = False
        self._off = ""
        self._looked_s = -_LOOK_INTERVAL_S
        self._tell_kl(self._latest())

    @property
    def _tuning(self) -> Tuning:
        return self._state.tuning

    @property
    def busy(self) -> bool:
        """Experiences wait to be judged, so the loop should come back soon."""
        return self._backlog

    def step(self, live: Manifest, progress: Progress) -> None:
        match self._tuning.phase:
            case "idle":
                self._off = "" if live.trainable else cannot_train(live)
                trains_on = progress.experiences - progress.dynamic_experiences
                due = progress.last_number - self._tuning.last_snapshot >= self._every
                if not self._off and due and trains_on > 0:
                    self._launch(live, progress)
            case "training":
                self._watch()
            case "gating":
                self._judge(progress)
            case "canary":
                self._watch_canary()

    def cancel(self) -> None:
        """End the job that is running, if any; it is recorded as failed."""
        if self._tuning.phase == "training":
            self._jobs.cancel(self._run_dir)
            self._looked_s = -_LOOK_INTERVAL_S
            self._watch(resume=False)

    def report(self) -> dict[str, Any]:
        """For people: the phase, the job's progress, the evidence so far, and the latest outcomes."""
        report: dict[str, Any] = {"phase": self._tuning.phase, "outcomes": list(self._tuning.outcomes)}
        if self._off:
            report["off"] = self._off
        if self._tuning.phase != "idle":
            report |= {"run": self._tuning.run, "snapshot": self._tuning.last_snapshot}
            report["started_at_s"] = self._tuning.started_at_s
        if self._tuning.phase == "training":
            report["progress"] = last_progress(self._run_dir)
        if self._tuning.phase == "gating":
            report["gate"] = self._comparison.report().to_dict()
        if self._tuning.phase == "canary":
            begun = {"version": self._tuning.version, "n": 0, "why": "nobody has said anything yet"}
            report["canary"] = self._experiments.report() or begun
        return report

    @property
    def _run_dir(self) -> Path:
        return self._runs_dir / self._tuning.run

    # --- training ----------------------------------------------------------------------------------------------------

    def _launch(self, live: Manifest, progress: Progress) -> None:
        new = progress.last_number - self._tuning.last_snapshot
        run = f"run-{progress.last_number:08}"
        reason = f"{new} new experiences since the last job; from version {live.version}"
        run_dir = prepare_run(
            self._runs_dir / run,
            self._registry,
            live,
            progress,
            plan=self._plan,
            maker=self._maker,
            limits=self._limits,
            created_at_s=self._clock(),
            reason=reason,
        )
        with self._trace.tuning(live, run) as started:
            # Remembered before it is launched: a job must never run that nobody asks after.
            self._remember(
                replace(
                    self._tuning,
                    phase="training",
                    run=run,
                    last_snapshot=progress.last_number,
                    position=progress.last_number,
                    started_at_s=self._clock(),
                    resumed_step=0,
                    traceparent=started,
                )
            )
            self._jobs.launch(run_dir)
        self._tell_kl(None)
        self._metrics.jobs.labels("started").inc()
        self._metrics.job_running.set(1)
        _log.info("fine-tuning started", run=run, reason=reason)

    def _watch(self, *, resume: bool = True) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_INTERVAL_S:
            return
        self._looked_s = now_s
        status = self._jobs.status(self._run_dir)
        self._metrics.job_running.set(float(status.state == JobState.RUNNING))
        if status.state == JobState.FAILED:
            if not (resume and self._resume()):
                self._fail(status.error)
        elif status.state == JobState.SUCCEEDED:
            self._metrics.jobs.labels("succeeded").inc()
            self._begin_gate()

    def _resume(self) -> bool:
        """Let a job that was killed go on from its checkpoint, unless it got no further than when it last did."""
        step = checkpoint_step(self._run_dir)
        if not was_killed(self._run_dir) or step <= self._tuning.resumed_step:
            return False
        self._remember(replace(self._tuning, resumed_step=step))
        self._jobs.launch(self._run_dir)
        self._metrics.jobs.labels("resumed").inc()
        _log.warning("fine-tuning was killed and goes on", run=self._tuning.run, step=step)
        return True

    def _fail(self, error: str) -> None:
        self._metrics.jobs.labels("failed").inc()
        _log.error("fine-tuning failed", run=self._tuning.run, error=error)
        self._end("failed", error, version=None)

    def _latest(self) -> Manifest | None:
        """Of what the last job made, if it made anything and none runs."""
        outcomes = self._tuning.outcomes
        try:
            match self._tuning.phase:
                case "training":
                    return None
                case "gating":
                    return read_manifest(self._run_dir / CANDIDATE)
                case "canary":
                    return self._registry.manifest(self._tuning.version)
                case "idle":
                    version = outcomes[-1]["version"] if outcomes else None
                    return None if version is None else self._registry.manifest(version)
        except (CorruptBundle, UnknownVersion, OSError):
            return None

    def _tell_kl(self, made: Manifest | None) -> None:
        """How far a job moved the policy is shown from its end until the next one begins."""
        self._metrics.finetune_kl.clear()
        kl = None if made is None else made.metrics.get("kl_to_parent_nats")
        if kl is not None:
            self._metrics.finetune_kl.labels(self._registry.model).set(kl)

    # --- the gate ----------------------------------------------------------------------------------------------------

    def _begin_gate(self) -> None:
        try:
            candidate = self._open_candidate()
        except (CorruptBundle, OSError, ValueError) as error:
            self._fail(f"the candidate cannot be used: {error}")
            return
        path = self._run_dir / FEATURES
        made = read_features(path, candidate.version.manifest.trunk_digest) if path.exists() else {}
        self._comparison = new_comparison(self._rules)
        self._remember(replace(self._tuning, phase="gating"), LeaderCommit(features=made))
        self._tell_kl(candidate.version.manifest)
        _log.info("candidate at the gate", run=self._tuning.run)

    def _open_candidate(self) -> _Candidate:
        if self._candidate is None:
            version = self._versions.folder(self._run_dir / CANDIDATE)
            self._candidate = _Candidate(version, FixedActions.from_bytes((self._run_dir / STATE).read_bytes()))
        return self._candidate

    def _judge(self, progress: Progress) -> None:
        """Look at the next few experiences; conclude when the evidence is in."""
        chunk = self._store.experiences(after=self._tuning.position, up_to=progress.last_number, limit=_CHUNK)
        self._backlog = len(chunk) == _CHUNK
        if chunk:
            candidate = self._open_candidate()
            spec = candidate.version.manifest.spec
            proof = [e for e in chunk if not e.excluded and counts_as_proof(e)]
            self._metrics.gate_left_out.inc(sum(map(is_dynamic, proof)))
            usable = [e for e in proof if not is_dynamic(e) and can_answer(e.decision, spec)]
            found = features_on(candidate.version, self._store, usable, self._store.save)
            contexts = contexts_on(candidate.version, self._store, usable, found)
            rows = [
                Compared(e, contexts[e.decision.prediction_id]) for e in usable if e.decision.prediction_id in found
            ]
            if rows:
                self._comparison = self._compare(candidate, rows, progress.n_users)
            self._remember(replace(self._tuning, position=chunk[-1].number))
            self._metrics.gate_n.set(self._comparison.n)
        report = self._comparison.report()
        self._show(report)
        if report.verdict != "insufficient":
            self._conclude(report.verdict, report, progress)
        elif self._comparison.tally.seen >= self._max_events:
            self._conclude("insufficient", report, progress)

    def _show(self, report: GateReport) -> None:
        for claim, e_value in (("gain", report.e_value_gain), ("harm", report.e_value_harm)):
            self._metrics.gate_e_value.labels(claim).set(e_value)
        for bound, gain in (("estimate", report.gain), ("lower", report.lower), ("upper", report.upper)):
            self._metrics.gate_gain.labels(bound).set(gain)

    def _compare(self, candidate: _Candidate, rows: list[Compared], n_users: int) -> Comparison:
        """Against the policies that logged: on the features they served on, as noted when each was joined."""
        actions, contexts = candidate.version.manifest.spec.actions, [row.context for row in rows]
        expected = candidate.head.expected(self._maker.settings.prior, contexts)
        logged = logged_policies(rows, self._registry, actions)
        return compare(
            self._comparison,
            rows,
            candidate=Policy(actions, np.array(candidate.version.answers(contexts))),
            baseline=logged,
            logged=logged,
            q_hat=Policy(actions, np.array([each.reward for each in expected])),
            n_users=n_users,
        )

    def _conclude(self, verdict: Verdict, report: GateReport, progress: Progress) -> None:
        """Publish with the evidence; then promote, or try out, or leave it. All may be done again after a crash."""
        with self._trace.judged(self._tuning.traceparent, self._tuning.run, verdict):
            self._publish_and_follow(verdict, report)

    def _publish_and_follow(self, verdict: Verdict, report: GateReport) -> None:
        candidate = self._open_candidate()
        why = "; ".join(report.reasons)
        published = self._published() or self._publish(report)
        self._trace.tuned(published.version)
        self._state.save(served_heads={published.version: candidate.head.state})
        if verdict == "promote":
            why += self._promote(published.version, f"passed the gate: {why}")
        self._metrics.gate_verdicts.labels(verdict).inc()
        _log.info("gate", verdict=verdict, version=published.version, run=self._tuning.run, why=why)
        if verdict == "insufficient" and self._begin_canary(published.version):
            return
        self._end(verdict, why, version=published.version)

    def _publish(self, report: GateReport) -> Manifest:
        folder = self._run_dir / CANDIDATE
        made = read_manifest(folder)
        manifest = replace(made, gate=report.to_dict(), data={**made.data, **self._trace.data()})
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        write_card(folder, manifest)
        return self._registry.publish(folder)

    def _published(self) -> Manifest | None:
        """The version that a learner which died here has published already."""
        for version in reversed(self._registry.versions()):
            manifest = self._registry.manifest(version)
            if manifest.kind == "finetuned" and manifest.data.get("run") == self._tuning.run:
                return manifest
        return None

    # --- the canary --------------------------------------------------------------------------------------------------

    def _begin_canary(self, version: int) -> bool:
        """Put a candidate in an experiment; False if there are no experiments, another one is under way, or a version
        is pinned.
        """
        share = self._canary_share
        if share == 0.0:
            return False
        change = RolloutChange(LEARNER, self._clock(), f"version {version} is tried out with {share:.0%} of the users")

        def transition(rollout: Rollout) -> Rollout | None:
            if rollout.pinned or rollout.candidate is not None:
                return None
            return start_canary(rollout, version, share, change)

        update_rollout(self._registry, transition)
        if self._registry.rollout().candidate != version:
            return False
        self._backlog = False  # what the gate has not looked at, it never will
        self._remember(replace(self._tuning, phase="canary", version=version, started_at_s=change.time_s))
        return True

    def _watch_canary(self) -> None:
        """Wait for the end of the experiment (experiments.py)."""
        version, experiment = self._tuning.version, self._experiments.experiment
        if self._registry.rollout().candidate == version or (experiment is not None and experiment.version == version):
            return
        outcome = self._experiments.outcome(version)
        if outcome is None:  # it was begun and ended between two looks
            self._end(
                "insufficient", "the experiment was ended before anything was seen of it", version=self._tuning.version
            )
        else:
            self._end(outcome["verdict"], outcome["why"], version=self._tuning.version)

    def _promote(self, version: int, why: str) -> str:
        """Make it live; says so where that could not be done."""
        if any(rollout.live == version for rollout in self._registry.ledger()):
            return ""  # by a learner that died before it could note it
        change = RolloutChange(LEARNER, self._clock(), why)

        def transition(rollout: Rollout) -> Rollout | None:
            return None if rollout.pinned else promote(rollout, version, change)

        return "" if update_rollout(self._registry, transition) else "; not made live, because a version is pinned"

    # --- state -------------------------------------------------------------------------------------------------------

    def _end(self, outcome: str, why: str, *, version: int | None) -> None:
        run_dir = self._run_dir
        entry = {
            "run": self._tuning.run,
            "outcome": outcome,
            "why": why,
            "version": version,
            "ended_at_s": self._clock(),
        }
        outcomes = (*self._tuning.outcomes, entry)[-_HISTORY:]
        self._comparison = new_comparison(self._rules)
        self._candidate = None
        self._backlog = False
        self._metrics.gate_n.set(0)
        self._metrics.gate_e_value.clear()
        self._metrics.gate_gain.clear()
        self._remember(replace(self._tuning, phase="idle", run="", version=0, outcomes=outcomes))
        for leftover in (CANDIDATE, PARENT):
            shutil.rmtree(run_dir / leftover, ignore_errors=True)
        for large in (CHECKPOINT, REWARD_MODEL):
            (run_dir / large).unlink(missing_ok=True)

    def _remember(self, tuning: Tuning, also: LeaderCommit | None = None) -> None:
        self._state.save(also, tuning=tuning, gate=self._comparison if tuning.phase == "gating" else None)
        self._metrics.phase(tuning.phase)


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    version: LoadedPolicy
    head: FixedActions
