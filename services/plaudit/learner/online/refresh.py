"""Head refresh: when it is due, how far it goes, and how the version that it makes goes live.

Knows nothing about how a head is built and published (features/head_builder.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import IngestStore
from plaudit.core.rollout import Change, Rollout, refresh
from plaudit.core.rollout_updates import LEARNER, update_rollout
from plaudit.core.settings import LearnerSettings
from plaudit.learner.features.action_heads import BuiltVersion, FixedActions
from plaudit.learner.features.head_builder import HeadBuilder, publish_refresh
from plaudit.learner.features.recent_contexts import RecentContexts
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.state import LearnerState
from plaudit.learner.tracing import LearnerTrace
from plaudit_models.bundle import Manifest

_log = structlog.get_logger("plaudit.learner")


@dataclass(kw_only=True, eq=False)
class HeadRefresher:
    """Builds, publishes and serves heads from the latest evidence.

    Attributes:
        contexts: steps are measured on them.
        work_dir: for folders in the making; best on the registry's file system.
        settings: say when a refresh is due, and how many versions are kept.
        clock: UTC seconds since the epoch.
    """

    state: LearnerState
    contexts: RecentContexts
    store: IngestStore
    registry: ModelRegistry
    builder: HeadBuilder
    work_dir: Path
    settings: LearnerSettings
    metrics: LearnerMetrics
    clock: Callable[[], float]
    trace: LearnerTrace
    _pending_since_s: float | None = field(default=None, init=False)

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self.contexts.clear()
        self._pending_since_s = None

    def due_in_s(self) -> float | None:
        """Time until a refresh is due at the latest; None if nothing is pending."""
        if self.state.progress.pending == 0:
            self._pending_since_s = None
            return None
        now_s = time.monotonic()
        if self._pending_since_s is None:
            self._pending_since_s = now_s
        return max(0.0, self._pending_since_s + self.settings.max_wait_s - now_s)

    def step(self, live: Manifest, rollout: Rollout, *, caught_up: bool) -> None:
        """Refresh if it is due: a full batch is reason enough, unless more waits to be learned, which comes first."""
        due_in_s = self.due_in_s()
        if due_in_s is None or rollout.pinned:
            return
        pending = self.state.progress.pending
        if due_in_s == 0.0 or (caught_up and pending >= self.settings.batch):
            with self.trace.refreshing(live.version):
                self._refresh(live, pending)
            self._pending_since_s = None

    def _refresh(self, live: Manifest, pending: int) -> None:
        """Step towards the latest evidence as far as the rules allow; publish what that makes, and let it serve."""
        started_s = time.monotonic()
        learned, progress = self.state.learned, self.state.progress
        if learned is None:
            return
        built = BuiltVersion(live, self.registry.folder(live.version), self.state.served_head(live.version))
        data = {"positions": dict(self.store.positions()), **progress.data(), **self.trace.data()}
        recent = self.contexts.of(learned, live.version, progress.last_number)
        step = learned.step_from(self.builder.empty(live).of_version(built), recent, self.builder)
        if step is None:
            return
        if step.stays:
            self.metrics.refreshes.labels("held back").inc()
            _log.warning("refresh held back: the smallest step would move the policy by more than policy.max_kl")
            return
        published = publish_refresh(
            self.registry,
            self.work_dir,
            self.builder,
            live,
            step.learned.heads,
            created_at_s=self.clock(),
            reason=f"{pending} new or changed experiences since version {live.version}",
            data=data,
            metrics={"kl_nats": step.kl, "share_of_step": step.share},
        )
        # A step cut short leaves evidence for the next refresh, as if one experience were still unlearned.
        refreshed = progress.changes if step.share >= 1.0 else progress.changes - 1
        self.state.save(
            served_heads={published.version: step.learned.require(FixedActions).state},
            progress=replace(progress, refreshed=refreshed),
        )
        self.trace.published(published.version)
        live_now = self._serve(live, published)
        self.metrics.refreshes.labels("live" if live_now else "overtaken").inc()
        self.metrics.refresh_kl.set(step.kl)
        self.metrics.refresh_seconds.observe(time.monotonic() - started_s)
        self.metrics.freshness_seconds.observe(max(0.0, self.clock() - progress.last_feedback_time_s))
        _log.info("refreshed", version=published.version, pending=pending, kl_nats=round(step.kl, 4), live=live_now)
        self._prune()

    def _serve(self, live: Manifest, published: Manifest) -> bool:
        """Make the refresh live, unless the rollout was changed meanwhile."""
        change = Change(LEARNER, self.clock(), published.reason)
        moved = update_rollout(
            self.registry,
            lambda r: refresh(r, published.version, change) if r.live == live.version and not r.pinned else None,
        )
        return moved is not None

    def _prune(self) -> None:
        removed = self.registry.prune(self.settings.unused_versions_kept)
        if removed:
            self.state.save(served_heads=dict.fromkeys(removed))
