"""Shift of the policy that serves, measured after every swap.

KL(π ‖ π'), the mean over the latest contexts, of the live version from
    reference   the policy it is anchored to: its own trunk's base policy
    previous    the version that served before it, each on its own trunk
all as they are served, floor included and with every action allowed, so that it is finite. Decisions between dynamic
actions are left out: what a request listed once is no action of the policy. Each refresh is bounded before it serves
(plaudit_models.bandit.improvement); this is the sum of refreshes and all other changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import structlog

from plaudit.core.errors import UnknownVersion, UnprovenVersion
from plaudit.core.events import Features
from plaudit.core.ports.store import FeatureStore
from plaudit.learner.features.action_heads import FixedActions
from plaudit.learner.features.features import features_on, is_dynamic
from plaudit.learner.features.policies import LoadedPolicy, PolicyCache
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.contexts import RecentContexts
from plaudit.learner.state import LearnerState
from plaudit_models.bandit.policy import Float64, divergence
from plaudit_models.bundle import Manifest

_log = structlog.get_logger("plaudit.learner")

REFERENCE: Final = "reference"
PREVIOUS: Final = "previous"


@dataclass(kw_only=True, eq=False)
class PolicyShift:
    """Measures the shift of the policy.

    Attributes:
        model: label of the metrics.
        contexts: the shift is measured on them where both versions have one trunk.
    """

    model: str
    contexts: RecentContexts
    store: FeatureStore
    policies: PolicyCache
    state: LearnerState
    metrics: LearnerMetrics
    _measured: int = field(default=0, init=False)

    def measure(self, live: Manifest) -> None:
        """Measure once for each version that goes live, as soon as there is a context to measure on."""
        if live.version == self._measured:
            return
        rows = [context.features for context in self.contexts.on(live) if FixedActions.owns(context)]
        if not rows:
            return
        before, self._measured = self._measured, live.version
        version = self.policies.version(live.version)
        now = _served(version, rows)
        self._record(REFERENCE, divergence(now, version.base_probabilities(rows)))
        if before == 0:
            return  # it is not known what served before
        try:
            previous = self.policies.version(before)
        except (UnknownVersion, UnprovenVersion):
            return
        if previous.manifest.trunk_digest == live.trunk_digest:
            self._record(PREVIOUS, divergence(now, _served(previous, rows)))
        elif previous.manifest.spec.actions == live.spec.actions:
            self._across_trunks(version, previous)

    def _across_trunks(self, version: LoadedPolicy, previous: LoadedPolicy) -> None:
        """On the latest experiences that have features on both trunks."""
        last = self.state.progress.last_number
        latest = self.store.experiences(after=max(0, last - FixedActions.RECENT), up_to=last)
        latest = [e for e in latest if not is_dynamic(e)]
        seen = [features_on(each, self.store, latest, self.store.save) for each in (version, previous)]
        both = [id_ for id_ in seen[0] if id_ in seen[1]]
        if both:
            now, before = (
                _served(each, [rows[id_] for id_ in both]) for each, rows in zip((version, previous), seen, strict=True)
            )
            self._record(PREVIOUS, divergence(now, before))

    def _record(self, against: str, kl: Float64) -> None:
        mean = float(kl.mean())
        self.metrics.policy_kl.labels(self.model, against).set(mean)
        _log.info("policy moved", version=self._measured, against=against, kl_nats=round(mean, 4), contexts=len(kl))


def _served(version: LoadedPolicy, rows: Sequence[Features]) -> Float64:
    """Probabilities with every action allowed, ``[b, a]``."""
    return version.probabilities(rows, np.ones((len(rows), len(version.manifest.spec.actions)), np.bool_))
