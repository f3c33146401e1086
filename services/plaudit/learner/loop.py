"""The learner: takes in what the log says; where it leads, learns, refreshes the head, and takes back what does harm.

One step, top to bottom: read (reading.py) → learn (learning.py) → act on the running comparison (comparing.py) →
refresh the head if due (refreshing.py) → experiments (experiments.py) → fine-tuning (finetune.py). Any number of
learners read; the store lets one of them lead, and when that one is gone another begins from what was saved.

Imports no torch; fine-tuning happens in a job of its own.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from plaudit.core.errors import StoreMoved, Unavailable
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceStore, IntakeStats
from plaudit.core.rollout import Rollout
from plaudit.learner.evaluation.running_comparison import RunningComparison
from plaudit.learner.features.head_builder import HeadBuilder
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.finetuning.experiment_runner import ExperimentRunner
from plaudit.learner.finetuning.scheduler import Finetuning
from plaudit.learner.ingest.consumer import LogConsumer
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.contexts import Contexts
from plaudit.learner.online.policy_shift import PolicyShift
from plaudit.learner.online.refresh import HeadRefresher
from plaudit.learner.online.revert import RefreshGuard
from plaudit.learner.online.update import Learning
from plaudit.learner.progress import Progress
from plaudit.learner.schedule import Pace
from plaudit.learner.state import LearnerState
from plaudit.learner.status import StatusFile
from plaudit.learner.tracing import LearnerTrace
from plaudit_models.bandit.dynamic_actions import DynamicActionState
from plaudit_models.bandit.reward_model import RewardState
from plaudit_models.bundle import Manifest
from plaudit_models.evaluation.gate import GateRules

_IDLE_S: Final = 0.2
_BACKOFF_S: Final = 1.0
_CHUNKS_PER_STEP: Final = 4
"""A leader that is behind what others read learns more than it reads itself, but refreshes in between."""
_DISK_TROUBLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = structlog.get_logger("plaudit.learner")


class Learner:
    """Learns from the log and publishes what it learned.

    Args:
        log: decisions and feedback come from here; dead letters go there.
        store: what was taken in and learned; other learners may share it.
        state: what the leader has learned.
        registry: of the model that is learned.
        versions: runs the registry's versions.
        maker: makes heads.
        rules: of the running comparison.
        pace: when it does what.
        work_dir: for folders in the making; best on the registry's file system.
        experiments: watches dynamic actions that are tried out.
        finetuning: starts and judges fine-tuning jobs; None: there are none.
        metrics: where to count.
        status: where to say how things stand.
        trace: of joins and refreshes; None: they are not traced.
        clock: UTC seconds since the epoch.
    """

    def __init__(
        self,
        *,
        log: EventLog,
        store: ExperienceStore,
        state: LearnerState,
        registry: ModelRegistry,
        versions: PolicyCache,
        maker: HeadBuilder,
        rules: GateRules,
        pace: Pace,
        work_dir: Path,
        experiments: ExperimentRunner,
        finetuning: Finetuning | None,
        metrics: LearnerMetrics,
        status: StatusFile | None = None,
        trace: LearnerTrace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._registry = registry
        self._experiments = experiments
        self._finetuning = finetuning
        self._metrics = metrics
        self._status = status
        self._clock = clock
        self._knowledge = state
        contexts = Contexts(store, versions, self._knowledge)
        trace = trace or LearnerTrace()
        self._consumer = LogConsumer(
            log, store, registry.model, limit=pace.poll_limit, metrics=metrics, clock=clock, trace=trace
        )
        self._learning = Learning(
            store=store,
            knowledge=self._knowledge,
            registry=registry,
            versions=versions,
            maker=maker,
            contexts=contexts,
            metrics=metrics,
            limit=pace.poll_limit,
            user_cap=pace.user_cap,
            silence_reward=pace.silence_reward,
            silence_after_s=pace.silence_after_s,
            retention_s=pace.retention_s,
            clock=clock,
        )
        self._comparing = RefreshGuard(
            knowledge=self._knowledge,
            store=store,
            registry=registry,
            versions=versions,
            rules=rules,
            metrics=metrics,
            clock=clock,
        )
        self._refreshing = HeadRefresher(
            knowledge=self._knowledge,
            contexts=contexts,
            store=store,
            registry=registry,
            maker=maker,
            work_dir=work_dir,
            batch=pace.batch,
            max_wait_s=pace.max_wait_s,
            versions_kept=pace.versions_kept,
            metrics=metrics,
            clock=clock,
            trace=trace,
        )
        self._divergence = PolicyShift(
            model=registry.model,
            contexts=contexts,
            store=store,
            versions=versions,
            knowledge=self._knowledge,
            metrics=metrics,
        )
        self._contexts = contexts
        self._limit = pace.poll_limit
        self._load()

    def run(self, stop: threading.Event) -> None:
        """Step until told to stop. What is away for a while is waited for; any other failure is raised."""
        loaded = True
        while not stop.is_set():
            try:
                if not loaded:
                    self._load()
                    loaded = True
                busy = self.step()
            except (Unavailable, StoreMoved) as problem:
                self._give_up(problem)
            except OSError as problem:
                if problem.errno not in _DISK_TROUBLE:
                    raise
                self._give_up(problem)
            else:
                if not busy and self._live is None:
                    stop.wait(_IDLE_S)
                continue
            loaded = False
            stop.wait(_BACKOFF_S)

    def step(self) -> bool:
        """One turn of the loop; False if there was nothing to read or to learn."""
        self._look()
        if self._live is None:
            return False
        started_s = time.monotonic()
        read = self._consumer.step(self._live.spec.actions, self._wait_s())
        self._behind = read == self._limit
        learned = self._lead_on(self._live) if self._leads() else 0
        if read or learned:
            self._metrics.batch_seconds.observe(time.monotonic() - started_s)
        return read + learned > 0

    def close(self) -> None:
        """Let go of the log. A fine-tuning job goes on, and is found again by the next leader."""
        self._consumer.close()
        self._experiments.close()

    # --- what is remembered ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self._consumer.load()
        self._live: Manifest | None = None
        self._rollout: Rollout | None = None
        self._behind = False
        self._leading = False
        self._leads()

    def _leads(self) -> bool:
        """Whether this learner leads; it begins to with what the one before it has saved."""
        leads = self._store.lead()
        if leads and not self._leading:
            self._knowledge.load()
            self._contexts.clear()
            self._refreshing.load()
            self._experiments.load()
            if self._finetuning is not None:
                self._finetuning.load()
            _log.info("leads", experiences=self._knowledge.progress.experiences)
        self._leading = leads
        self._metrics.leader.set(float(leads))
        return leads

    def _look(self) -> None:
        """Notice what serves, whoever changed it."""
        rollout = self._registry.rollout()
        if rollout != self._rollout:
            self._metrics.live_version.set(rollout.live or 0)
            self._metrics.gated_version.set(rollout.gated or 0)
            self._live = None if rollout.live is None else self._registry.manifest(rollout.live)
            self._rollout = rollout

    def report(self) -> dict[str, Any]:
        """How things stand, JSON-ready."""
        rollout, progress, intake_stats = self._rollout, self._knowledge.progress, self._store.intake_stats()
        return {
            "time_s": self._clock(),
            "live": None if rollout is None else rollout.live,
            "gated": None if rollout is None else rollout.gated,
            "pinned": rollout is not None and rollout.pinned,
            "experiences": progress.experiences,
            "dynamic_experiences": progress.dynamic_experiences,
            "unlearned": intake_stats.last_number - progress.last_number,
            "feedback": intake_stats.feedback,
            "waiting": intake_stats.waiting,
            "discarded": intake_stats.discarded,
            "pending": progress.pending,
            "satisfaction_recent": self._learning.satisfaction,
            "comparison": self._knowledge.running.comparison.report().to_dict(),
            "canary": self._experiments.report(),
            "finetune": None if self._finetuning is None else self._finetuning.report(),
        }

    @property
    def busy(self) -> bool:
        """Whether there is more to do without anything new in the log."""
        return self._behind or self._experiments.busy or (self._finetuning is not None and self._finetuning.busy)

    @property
    def leading(self) -> bool:
        """Whether it led when it last looked."""
        return self._leading

    @property
    def intake_stats(self) -> IntakeStats:
        """What all learners of the store have taken in."""
        return self._store.intake_stats()

    @property
    def progress(self) -> Progress:
        """What was learned so far."""
        return self._knowledge.progress

    @property
    def reward_state(self) -> RewardState | None:
        """What the reward model has learned; None before any version was live."""
        return self._knowledge.reward

    @property
    def dynamic_state(self) -> DynamicActionState | None:
        """What was learned of dynamic actions; None while what serves cannot score any."""
        return self._knowledge.dynamic_actions

    @property
    def running(self) -> RunningComparison:
        """The running comparison."""
        return self._knowledge.running

    # --- leading -----------------------------------------------------------------------------------------------------

    def _lead_on(self, live: Manifest) -> int:
        """What the leader does beside reading; returns how many experiences it has learned."""
        assert self._rollout is not None
        self._learning.stand_on(live)
        self._comparing.follow(self._rollout)
        if not self._behind:
            self._learning.judge_silence()
        self._learning.forget_old()
        learned = chunk = 0
        for _ in range(_CHUNKS_PER_STEP):
            chunk = self._learning.learn(live)
            learned += chunk
            if chunk < self._limit:
                break
        self._behind |= chunk >= self._limit
        self._comparing.act(live, self._rollout)
        self._follow()
        if self._live is not None:
            self._refreshing.step(self._live, self._rollout, caught_up=not self._behind)
            self._follow()
        if self._live is not None and self._rollout is not None:
            self._experiments.step(self._rollout, self._knowledge.progress)
            self._follow()
        if self._finetuning is not None and self._live is not None:
            self._finetuning.step(self._live, self._knowledge.progress)
            self._follow()
        if self._live is not None:
            self._divergence.measure(self._live)
        if self._status is not None:
            self._status.write(self.report)
        return learned

    def _follow(self) -> None:
        """Stand on what serves now."""
        self._look()
        if self._live is not None and self._rollout is not None:
            self._learning.stand_on(self._live)
            self._comparing.follow(self._rollout)

    def _wait_s(self) -> float:
        """How long to wait for records: not while there is other work, and no longer than until a refresh is due."""
        if self.busy:
            return 0.0
        due_in_s = self._refreshing.due_in_s() if self._leading else None
        return _IDLE_S if due_in_s is None else min(_IDLE_S, due_in_s)

    def _give_up(self, problem: Exception) -> None:
        self._metrics.failures.inc()
        _log.error("step given up, will be done again", problem=str(problem), again_in_s=_BACKOFF_S)
