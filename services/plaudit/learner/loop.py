"""The learner's loop: read the log; where this learner leads, learn, refresh the head, and revert what does harm.

One step, top to bottom: ingest → online update → outdated evidence goes → revert or confirm → head refresh →
experiments → fine-tuning → policy shift. Any number of learners read; the store lets one of them lead, and when that
one is gone another begins from what was saved.

Imports no torch; fine-tuning happens in a job of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import structlog

from plaudit.core.errors import (
    LogDamaged,
    PlauditError,
    StoreDamaged,
    StoreMoved,
    Unavailable,
    UnknownVersion,
    UnprovenVersion,
)
from plaudit.core.host.backoff import pause_s
from plaudit.core.host.os_errors import explain
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.rollout import Rollout
from plaudit.learner.finetuning.experiment_runner import ExperimentRunner
from plaudit.learner.ingest.consumer import LogConsumer
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.outdated import OutdatedEvidence
from plaudit.learner.online.policy_shift import PolicyShift
from plaudit.learner.online.refresh import HeadRefresher
from plaudit.learner.online.revert import RefreshGuard
from plaudit.learner.online.update import OnlineUpdater
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from plaudit.learner.status import StatusFile
from plaudit_models.bundle import CorruptBundle, Manifest

_IDLE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
"""Upper bound on the pause between attempts at a step; an attempt costs little."""
_CHUNKS_PER_STEP: Final = 4
"""A leader that is behind what others read learns more than it reads itself, but refreshes in between."""

_log = structlog.get_logger("plaudit.learner")


class Finetuner(Protocol):
    """Fine-tuning as the loop uses it."""

    @property
    def busy(self) -> bool:
        """Whether a step has more to do without anything new in the log."""

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""

    def step(self, live: Manifest, progress: Progress) -> None:
        """Start a job, or go on with the one under way."""

    def report(self) -> dict[str, Any] | None:
        """State for people, JSON-ready."""


class NoFinetuning:
    """Fine-tuning that is switched off."""

    busy = False

    def load(self) -> None:
        pass

    def step(self, live: Manifest, progress: Progress) -> None:
        pass

    def report(self) -> None:
        return None


class Serving(NamedTuple):
    """The live version, and the rollout that names it."""

    live: Manifest
    rollout: Rollout


@dataclass(kw_only=True, eq=False)
class Learner:
    """Learns from the log and publishes what it learned.

    Attributes:
        store: of the experiences; other learners may share it.
        state: saved with every step of the leader.
        poll_limit: largest number of records read, and of experiences learned, at once.
        clock: UTC seconds since the epoch.
        leading: whether this learner led at its latest step.
    """

    store: ExperienceStore
    registry: ModelRegistry
    state: LearnerState
    consumer: LogConsumer
    updater: OnlineUpdater
    outdated: OutdatedEvidence
    guard: RefreshGuard
    refresher: HeadRefresher
    experiments: ExperimentRunner
    finetuning: Finetuner
    shift: PolicyShift
    poll_limit: int
    metrics: LearnerMetrics
    status: StatusFile
    clock: Callable[[], float]
    leading: bool = field(default=False, init=False)
    _serving: Serving | None = field(default=None, init=False)
    _loaded: bool = field(default=False, init=False)
    _behind: bool = field(default=False, init=False)

    def run(self, stop: threading.Event) -> None:
        """Step until ``stop`` is set.

        What may pass by itself, or be put right by a person, is waited for: the pauses double, and log, metrics and
        status file say what is missing.

        Raises:
            PlauditError, MemoryError: something that no waiting mends, such as a damaged store.
        """
        failures = 0
        while not stop.is_set():
            try:
                busy = self.step()
            except (LogDamaged, StoreDamaged) as problem:
                self.status.write_problem(str(problem), self.clock(), None)
                raise
            except (Unavailable, StoreMoved, UnknownVersion, UnprovenVersion, CorruptBundle, OSError) as problem:
                failures += 1
                stop.wait(self._give_up(problem, failures))
            except (PlauditError, MemoryError) as problem:
                self.status.write_problem(str(problem), self.clock(), None)
                raise
            else:
                failures = 0
                self.metrics.blocked.set(0.0)
                if not busy and (self._serving is None or self._stands_by):
                    stop.wait(_IDLE_S)

    def step(self) -> bool:
        """One turn of the loop; False if there was nothing to read or to learn."""
        if not self._loaded:
            self._load()
        serving = self._sync()
        if serving is None:
            return False
        if self.store.exclusive and not self._leads():
            return False
        started_s = time.monotonic()
        n_read = self.consumer.step(serving.live.spec.actions, self._wait_s())
        self._behind = n_read == self.poll_limit
        n_learned = self._lead() if self._leads() else 0
        if n_read or n_learned:
            self.metrics.batch_seconds.observe(time.monotonic() - started_s)
        return n_read + n_learned > 0

    @property
    def busy(self) -> bool:
        """Whether there is more to do without anything new in the log."""
        return self._behind or self.experiments.busy or self.finetuning.busy

    def close(self) -> None:
        """Stop reading the log, and leave the lead to others. A fine-tuning job goes on, and the next leader finds it
        again.
        """
        self.consumer.close()
        self.experiments.close()
        with contextlib.suppress(Unavailable):  # then the others have to wait for some seconds
            self.store.resign()

    # --- leading -----------------------------------------------------------------------------------------------------

    def _lead(self) -> int:
        """Learn, and act on what was learned; returns the number of experiences learned."""
        n_learned = self._learn(self._follow())
        acts: tuple[Callable[[Serving], None], ...] = (
            self._outdate,
            lambda now: self.guard.act(now.live, now.rollout),
            lambda now: self.refresher.step(now.live, now.rollout, caught_up=not self._behind),
            lambda now: self.experiments.step(now.rollout, self.state.progress),
            lambda now: self.finetuning.step(now.live, self.state.progress),
            lambda now: self.shift.measure(now.live),
        )
        for act in acts:
            act(self._follow())
        self.status.write(self.report)
        return n_learned

    def _learn(self, now: Serving) -> int:
        if not self._behind:
            self.updater.label_silence()
        self.updater.forget_old()
        n_learned = n_chunk = 0
        for _ in range(_CHUNKS_PER_STEP):
            n_chunk = self.updater.learn(now.live)
            n_learned += n_chunk
            if n_chunk < self.poll_limit:
                break
        self._behind |= n_chunk >= self.poll_limit
        return n_learned

    def _outdate(self, now: Serving) -> None:
        """Let evidence go that users have outdated; what refreshes were compared on is outdated with it."""
        while self.outdated.step(now.live):
            self.guard.begin_anew()

    def _follow(self) -> Serving:
        """The present rollout; evidence and running comparison are moved to its versions where it has changed."""
        serving = self._sync()
        assert serving is not None  # no transition of a rollout leaves it without a live version
        self.updater.follow(serving.live)
        self.guard.follow(serving.rollout)
        return serving

    def _sync(self) -> Serving | None:
        """The present rollout; None before any version is live."""
        rollout = self.registry.rollout()
        if self._serving is None or rollout != self._serving.rollout:
            self.metrics.live_version.set(rollout.live or 0)
            self.metrics.gated_version.set(rollout.gated or 0)
            self._serving = None if rollout.live is None else Serving(self.registry.manifest(rollout.live), rollout)
        return self._serving

    # --- state -------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self._serving = None
        self._behind = False
        self.leading = False
        if not self.store.exclusive:
            self.consumer.load()
        self._leads()
        self._loaded = True

    @property
    def _stands_by(self) -> bool:
        """Whether another learner has the store to itself, so that this one has nothing to do but wait."""
        return self.store.exclusive and not self.leading

    def _leads(self) -> bool:
        """Whether this learner leads; a new leader begins with what the one before it saved."""
        leads = self.store.lead()
        if leads and not self.leading:
            if self.store.exclusive:
                self.consumer.load()
            self.state.load()
            self.refresher.load()
            self.experiments.load()
            self.finetuning.load()
            self.metrics.leads.inc()
            _log.info("leads", experiences=self.state.progress.experiences)
        elif not leads and (self.leading or not self._loaded):
            _log.info("waits_for_the_lead", problem="another learner of this store leads")
        self.leading = leads
        self.metrics.leader.set(float(leads))
        return leads

    def _wait_s(self) -> float:
        """Time to wait for records: none while there is other work, and no more than until a refresh is due."""
        if self.busy:
            return 0.0
        due_in_s = self.refresher.due_in_s() if self.leading else None
        return _IDLE_S if due_in_s is None else min(_IDLE_S, due_in_s)

    def _give_up(self, problem: Exception, failures: int) -> float:
        """Say that a step is given up, to begin again from what was saved; returns the pause before that."""
        moved = isinstance(problem, StoreMoved)  # nothing is missing then
        again_in_s = pause_s(1 if moved else failures, _LONGEST_PAUSE_S)
        text = explain(problem) if isinstance(problem, OSError) else str(problem)
        self.metrics.failures.inc()
        self.metrics.blocked.set(float(not moved))
        _log.error("step given up, will be done again", problem=text, again_in_s=again_in_s)
        if not moved:
            self.status.write_problem(text, self.clock(), again_in_s)
        self._loaded = False
        return again_in_s

    def report(self) -> dict[str, Any]:
        """State of the loop for people, JSON-ready."""
        progress, intake_stats = self.state.progress, self.store.intake_stats()
        rollout = Rollout(self.registry.model) if self._serving is None else self._serving.rollout
        return {
            "time_s": self.clock(),
            "leads": self.leading,
            "live": rollout.live,
            "gated": rollout.gated,
            "pinned": rollout.pinned,
            "experiences": progress.experiences,
            "dynamic_experiences": progress.dynamic_experiences,
            "outdated_experiences": progress.outdated,
            "drifts": progress.drifts,
            "last_drift_time_s": progress.last_drift_time_s,
            "unlearned": intake_stats.last_number - progress.last_number,
            "feedback": intake_stats.feedback,
            "waiting": intake_stats.waiting,
            "discarded": intake_stats.discarded,
            "pending": progress.pending,
            "satisfaction_recent": self.updater.satisfaction,
            "comparison": self.state.running.comparison.report().to_dict(),
            "canary": self.experiments.report(),
            "finetune": self.finetuning.report(),
        }
