"""Head refreshes: when they are due, and from the latest evidence to a version that serves.

Knows nothing about how a head is built and published (refresh.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.rollout import Change as RolloutChange
from plaudit.core.rollout import Rollout, refresh
from plaudit.core.rollout_updates import LEARNER, update_rollout
from plaudit.learner.features.head_builder import HeadBuilder, publish_refresh
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.contexts import Contexts
from plaudit.learner.state import LearnerState
from plaudit.learner.tracing import LearnerTrace
from plaudit_models.bandit.dynamic_actions import (
    DynamicActionState,
    dynamic_action_head_from_bytes,
    empty_dynamic_action_state,
)
from plaudit_models.bandit.improvement import Step
from plaudit_models.bandit.reward_model import RewardState, empty_state
from plaudit_models.bundle import DYNAMIC_HEAD, Manifest

_log = structlog.get_logger("plaudit.learner")


class HeadRefresher:
    """Args:
    knowledge: heads are made from it.
    contexts: steps are measured on them.
    batch: new experiences after which the head is refreshed.
    max_wait_s: it is refreshed with fewer after this long.
    versions_kept: dead head refreshes kept in the registry.
    store, registry, maker, work_dir, metrics, clock: as the learner's.
    trace: where to say what a version came of.
    """

    def __init__(
        self,
        *,
        knowledge: LearnerState,
        contexts: Contexts,
        store: ExperienceStore,
        registry: ModelRegistry,
        maker: HeadBuilder,
        work_dir: Path,
        batch: int,
        max_wait_s: float,
        versions_kept: int,
        metrics: LearnerMetrics,
        clock: Callable[[], float],
        trace: LearnerTrace | None = None,
    ) -> None:
        self._knowledge = knowledge
        self._contexts = contexts
        self._store = store
        self._registry = registry
        self._maker = maker
        self._work_dir = work_dir
        self._batch = batch
        self._max_wait_s = max_wait_s
        self._versions_kept = versions_kept
        self._metrics = metrics
        self._clock = clock
        self._trace = trace or LearnerTrace()
        self._pending_since_s: float | None = None

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self._pending_since_s = None

    def due_in_s(self) -> float | None:
        """When a refresh is due at the latest; None if nothing is pending."""
        if self._knowledge.progress.pending == 0:
            self._pending_since_s = None
            return None
        now_s = time.monotonic()
        if self._pending_since_s is None:
            self._pending_since_s = now_s
        return max(0.0, self._pending_since_s + self._max_wait_s - now_s)

    def step(self, live: Manifest, rollout: Rollout, *, caught_up: bool) -> None:
        """Refresh if it is due: a full batch is reason enough, unless more waits to be learned, which comes first."""
        due_in_s = self.due_in_s()
        if due_in_s is None or rollout.pinned:
            return
        pending = self._knowledge.progress.pending
        if due_in_s == 0.0 or (caught_up and pending >= self._batch):
            with self._trace.refreshing(live.version):
                self._refresh(live, pending)
            self._pending_since_s = None

    def _refresh(self, live: Manifest, pending: int) -> None:
        """Build, publish and serve a head from the latest evidence."""
        started_s = time.monotonic()
        progress = self._knowledge.progress
        step, dynamic_step = self._step(live), self._dynamic_step(live)
        steps = [each for each in (step, dynamic_step) if each is not None]
        if not steps:
            return
        if any(each.share == 0.0 for each in steps) and not any(each.kl > 0.0 for each in steps):
            self._metrics.refreshes.labels("held back").inc()
            _log.warning("refresh held back: the smallest step would move the policy by more than policy.max_kl")
            return
        kl = max(each.kl for each in steps)
        share = min(each.share for each in steps)
        state = self._served(live) if step is None else step.state
        dynamic_actions = self._served_dynamic_actions(live) if dynamic_step is None else dynamic_step.state
        published = publish_refresh(
            self._registry,
            self._work_dir,
            self._maker,
            live,
            state,
            dynamic_actions,
            created_at_s=self._clock(),
            reason=f"{pending} new or changed experiences since version {live.version}",
            data={"positions": dict(self._store.positions()), **progress.data(), **self._trace.data()},
            metrics={"kl_nats": kl, "share_of_step": share},
        )
        # A step cut short leaves evidence for the next refresh, as if one experience were still unlearned.
        refreshed = progress.changes if share >= 1.0 else progress.changes - 1
        self._knowledge.save(served_heads={published.version: state}, progress=replace(progress, refreshed=refreshed))
        self._trace.published(published.version)
        change = RolloutChange(LEARNER, self._clock(), published.reason)
        version = published.version
        moved = update_rollout(
            self._registry, lambda r: refresh(r, version, change) if r.live == live.version and not r.pinned else None
        )
        self._metrics.refreshes.labels("live" if moved is not None else "overtaken").inc()
        self._metrics.refresh_kl.set(kl)
        self._metrics.refresh_seconds.observe(time.monotonic() - started_s)
        self._metrics.freshness_seconds.observe(max(0.0, self._clock() - progress.last_feedback_time_s))
        _log.info("refreshed", version=version, pending=pending, kl_nats=round(kl, 4), live=moved is not None)
        self._prune()

    def _served(self, live: Manifest) -> RewardState:
        """The evidence that live's head was built from."""
        assert self._knowledge.reward is not None
        served = self._knowledge.served_head(live.version)
        return empty_state(self._knowledge.reward.space) if served is None else served

    def _step(self, live: Manifest) -> Step[RewardState] | None:
        """Towards the latest evidence; None if nothing was answered with the model's actions yet."""
        reward, recent = self._knowledge.reward, self._contexts.on(live)
        return self._maker.step(self._served(live), reward, recent) if reward is not None and recent else None

    def _dynamic_step(self, live: Manifest) -> Step[DynamicActionState] | None:
        """The same of dynamic actions; None if nothing was picked from dynamic actions of late."""
        latest = self._knowledge.dynamic_actions
        recent = [] if latest is None else self._contexts.lists_on(live)
        if latest is None or not recent:
            return None
        return self._maker.dynamic_step(
            self._served_dynamic_actions(live) or empty_dynamic_action_state(latest.space), latest, recent
        )

    def _served_dynamic_actions(self, live: Manifest) -> DynamicActionState | None:
        """What live's candidate head was built from; None if it has none that evidence can be added to."""
        latest = self._knowledge.dynamic_actions
        if latest is None or not live.has(DYNAMIC_HEAD):
            return None
        served = dynamic_action_head_from_bytes(
            (self._registry.folder(live.version) / live.stored_name(DYNAMIC_HEAD)).read_bytes()
        ).state
        return served if served.space == latest.space else None

    def _prune(self) -> None:
        removed = self._registry.prune(self._versions_kept)
        if removed:
            self._knowledge.save(served_heads=dict.fromkeys(removed))
