"""Head refresh: when it is due, how far it goes, and how the version that it makes goes live.

Knows nothing about how a head is built and published (features/head_builder.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import IngestStore
from plaudit.core.rollout import Change, Rollout, refresh
from plaudit.core.rollout_updates import LEARNER, update_rollout
from plaudit.core.settings import LearnerSettings
from plaudit.learner.features.action_heads import FixedActions, HeadStep, Learned, LiveVersion
from plaudit.learner.features.head_builder import HeadBuilder, publish_refresh
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.contexts import RecentContexts
from plaudit.learner.state import LearnerState
from plaudit.learner.tracing import LearnerTrace
from plaudit_models.bundle import Manifest

_log = structlog.get_logger("plaudit.learner")


class HeadRefresher:
    """Builds, publishes and serves heads from the latest evidence.

    Args:
        state: heads are built from its evidence.
        contexts: steps are measured on them.
        store: of the leader.
        registry: of the model that is learned.
        builder: how heads are made.
        work_dir: for folders in the making; best on the registry's file system.
        settings: say when a refresh is due, and how many versions are kept.
        metrics: of the learner.
        clock: UTC seconds since the epoch.
        trace: of refreshes.
    """

    def __init__(
        self,
        *,
        state: LearnerState,
        contexts: RecentContexts,
        store: IngestStore,
        registry: ModelRegistry,
        builder: HeadBuilder,
        work_dir: Path,
        settings: LearnerSettings,
        metrics: LearnerMetrics,
        clock: Callable[[], float],
        trace: LearnerTrace,
    ) -> None:
        self._state = state
        self._contexts = contexts
        self._store = store
        self._registry = registry
        self._builder = builder
        self._work_dir = work_dir
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._trace = trace
        self._pending_since_s: float | None = None

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self._pending_since_s = None

    def due_in_s(self) -> float | None:
        """Time until a refresh is due at the latest; None if nothing is pending."""
        if self._state.progress.pending == 0:
            self._pending_since_s = None
            return None
        now_s = time.monotonic()
        if self._pending_since_s is None:
            self._pending_since_s = now_s
        return max(0.0, self._pending_since_s + self._settings.max_wait_s - now_s)

    def step(self, live: Manifest, rollout: Rollout, *, caught_up: bool) -> None:
        """Refresh if it is due: a full batch is reason enough, unless more waits to be learned, which comes first."""
        due_in_s = self.due_in_s()
        if due_in_s is None or rollout.pinned:
            return
        pending = self._state.progress.pending
        if due_in_s == 0.0 or (caught_up and pending >= self._settings.batch):
            with self._trace.refreshing(live.version):
                self._refresh(live, pending)
            self._pending_since_s = None

    def _refresh(self, live: Manifest, pending: int) -> None:
        """Build, publish and serve heads from the latest evidence."""
        started_s = time.monotonic()
        progress = self._state.progress
        steps = self._steps(live)
        measured = [step for step in steps if step.n_contexts]
        if not measured:
            return
        kl, share = max(step.kl for step in measured), min(step.share for step in measured)
        if share == 0.0 and kl == 0.0:
            self._metrics.refreshes.labels("held back").inc()
            _log.warning("refresh held back: the smallest step would move the policy by more than policy.max_kl")
            return
        stepped = Learned(tuple(step.head for step in steps))
        published = publish_refresh(
            self._registry,
            self._work_dir,
            self._builder,
            live,
            stepped.heads,
            created_at_s=self._clock(),
            reason=f"{pending} new or changed experiences since version {live.version}",
            data={"positions": dict(self._store.positions()), **progress.data(), **self._trace.data()},
            metrics={"kl_nats": kl, "share_of_step": share},
        )
        # A step cut short leaves evidence for the next refresh, as if one experience were still unlearned.
        refreshed = progress.changes if share >= 1.0 else progress.changes - 1
        self._state.save(
            served_heads={published.version: stepped.require(FixedActions).state},
            progress=replace(progress, refreshed=refreshed),
        )
        self._trace.published(published.version)
        live_now = self._serve(live, published)
        self._metrics.refreshes.labels("live" if live_now else "overtaken").inc()
        self._metrics.refresh_kl.set(kl)
        self._metrics.refresh_seconds.observe(time.monotonic() - started_s)
        self._metrics.freshness_seconds.observe(max(0.0, self._clock() - progress.last_feedback_time_s))
        _log.info("refreshed", version=published.version, pending=pending, kl_nats=round(kl, 4), live=live_now)
        self._prune()

    def _steps(self, live: Manifest) -> list[HeadStep]:
        """A step of each head towards the latest evidence; none before anything was learned."""
        learned = self._state.learned
        if learned is None:
            return []
        served = LiveVersion(live, self._registry.folder(live.version), self._state.served_head(live.version))
        return learned.steps_from(served, self._contexts.on(live), self._builder.step_rules)

    def _serve(self, live: Manifest, published: Manifest) -> bool:
        """Make the refresh live, unless the rollout was changed meanwhile."""
        change = Change(LEARNER, self._clock(), published.reason)
        moved = update_rollout(
            self._registry,
            lambda r: refresh(r, published.version, change) if r.live == live.version and not r.pinned else None,
        )
        return moved is not None

    def _prune(self) -> None:
        removed = self._registry.prune(self._settings.unused_versions_kept)
        if removed:
            self._state.save(served_heads=dict.fromkeys(removed))
