"""Consequences of the running comparison: refreshes that do harm are reverted, one that is better becomes gated.

Knows nothing about how the comparison is made (evaluation/running_comparison.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceReader, LeaderCommit
from plaudit.core.rollout import Change, Rollout, confirm, revert
from plaudit.core.rollout_updates import LEARNER, update_rollout
from plaudit.learner.evaluation.running_comparison import RunningComparison
from plaudit.learner.features.features import contexts_on, labelled_contexts, stored_features
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.state import LearnerState
from plaudit_models.bundle import Manifest
from plaudit_models.evaluation.gate import GateRules, new_comparison

_log = structlog.get_logger("plaudit.learner")


@dataclass(kw_only=True, eq=False)
class RefreshGuard:
    """Reverts or confirms head refreshes.

    Attributes:
        rules: of the running comparison.
        clock: UTC seconds since the epoch.
    """

    state: LearnerState
    store: ExperienceReader
    registry: ModelRegistry
    policies: PolicyCache
    rules: GateRules
    metrics: LearnerMetrics
    clock: Callable[[], float]

    def follow(self, rollout: Rollout) -> None:
        """Compare with the gated version of this rollout, from the beginning if that was another one so far."""
        gated = rollout.gated or 0
        if gated != self.state.running.gated:
            self._restart(gated, after_version=gated)

    def begin_anew(self) -> None:
        """Compare with the same gated version from the beginning, with refreshes to come."""
        self._restart(self.state.running.gated, after_version=max(self.registry.versions()))

    def act(self, live: Manifest, rollout: Rollout) -> None:
        """Revert to the gated version on evidence of harm; make the latest refresh gated on evidence of gain."""
        comparison = self.state.running.comparison
        finding = comparison.finding()
        if finding == "none" or rollout.pinned:
            return
        gated = self.state.running.gated
        reasons = "; ".join(comparison.report().reasons)
        if finding == "harm":
            self._revert(live, gated, f"refreshes since version {gated} did harm: {reasons}")
        else:
            self._confirm(live, gated, f"refreshes since version {gated} did better: {reasons}")

    def _revert(self, live: Manifest, gated: int, reason: str) -> None:
        """Revert what serves, then exclude what was learned since the gated version, or the next refresh harms
        again.
        """
        change = Change(LEARNER, self.clock(), reason)
        moved = update_rollout(self.registry, lambda r: revert(r, change) if r.gated == gated != r.live else None)
        learned, progress = self.state.learned, self.state.progress
        assert learned is not None
        learned_by_gated = int(self.registry.manifest(gated).data.get("last_experience", 0))
        since = self.store.experiences(after=learned_by_gated, up_to=progress.last_number)
        harmful = [e for e in since if e.counts]
        features = stored_features(learned.trunk_digest, self.store, harmful)
        contexts = contexts_on(self.policies.version(live.version), self.store, harmful, features)
        self.state.save(
            LeaderCommit(excluded=[e.number for e in since]),
            learned=learned.subtract(labelled_contexts([(e, e.heard_label) for e in harmful], contexts)),
            progress=replace(
                progress,
                experiences=progress.experiences - len(harmful),
                dynamic_experiences=progress.dynamic_experiences - sum(e.decision.dynamic for e in harmful),
                refreshed=progress.changes,
            ),
            running=RunningComparison(gated, max(self.registry.versions()), new_comparison(self.rules)),
        )
        self.metrics.excluded.labels("harm").inc(len(harmful))
        if moved is not None:
            self.metrics.reverts.inc()
        _log.warning("reverted", to_version=gated, excluded=len(harmful), reason=reason)

    def _confirm(self, live: Manifest, gated: int, reason: str) -> None:
        change = Change(LEARNER, self.clock(), reason)
        moved = update_rollout(
            self.registry,
            lambda r: confirm(r, change) if r.gated == gated and r.live == live.version != gated else None,
        )
        if moved is None or moved.gated is None:
            self._restart(gated, after_version=max(self.registry.versions()))
            return
        self._restart(moved.gated, after_version=moved.gated)
        self.metrics.confirms.inc()
        _log.info("confirmed", version=moved.gated, reason=reason)

    def _restart(self, gated: int, *, after_version: int) -> None:
        self.state.save(running=RunningComparison(gated, after_version, new_comparison(self.rules)))
