"""Shift of the policy that serves, measured after every swap, for each kind of decision.

KL(π ‖ π'), the mean over the latest contexts of the kind, of the live version from
    reference   the policy it is anchored to: its own trunk's base policy
    previous    the version that served such decisions before it, each on its own trunk
all as they are served, floor included and with every action allowed, so that it is finite. Each context counts over its
own actions: the model's, or those that its request listed. Each refresh is bounded before it serves
(plaudit_models.bandit.improvement); this is the sum of refreshes and all other changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from plaudit.core.errors import UnknownVersion, UnprovenVersion
from plaudit.core.ports.store import FeatureStore
from plaudit.learner.features.action_heads import HEAD_KINDS, ActionHead
from plaudit.learner.features.context import Context
from plaudit.learner.features.features import contexts_on, features_on
from plaudit.learner.features.policies import LoadedPolicy, PolicyCache
from plaudit.learner.features.recent_contexts import RecentContexts, latest_of
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.state import LearnerState
from plaudit_models.bandit.policy import Float64, divergences
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
    _measured: dict[type[ActionHead], int] = field(default_factory=dict, init=False)

    def measure(self, live: Manifest) -> None:
        """Measure each kind once for each version that goes live, as soon as there is a context to measure on."""
        learned, last_number = self.state.learned, self.state.progress.last_number
        due = [kind for kind in HEAD_KINDS if self._measured.get(kind) != live.version]
        if learned is None or not due:
            return
        recent = [replace(context, allowed=()) for context in self.contexts.of(learned, live.version, last_number)]
        for kind in due:
            own = [context for context in recent if kind.owns(context)]
            if own:
                self._measure(kind, live, own)

    def _measure(self, kind: type[ActionHead], live: Manifest, contexts: Sequence[Context]) -> None:
        before = self._measured.get(kind)
        self._measured[kind] = live.version
        version = self.policies.version(live.version)
        now = version.answers(contexts)
        self._record(kind, REFERENCE, now, version.base_answers(contexts))
        if before is None:
            return  # it is not known what served before
        try:
            previous = self.policies.version(before)
        except (UnknownVersion, UnprovenVersion):
            return
        if previous.manifest.trunk_digest == live.trunk_digest:
            self._record(kind, PREVIOUS, now, previous.answers(contexts))
        else:
            self._across_trunks(kind, version, previous)

    def _across_trunks(self, kind: type[ActionHead], version: LoadedPolicy, previous: LoadedPolicy) -> None:
        """On the latest experiences in which both trunks see the same actions."""
        latest = latest_of(kind, self.store, self.state.progress.last_number)
        seen, seen_before = (
            contexts_on(each, self.store, latest, features_on(each, self.store, latest, self.store.save))
            for each in (version, previous)
        )
        both = [id_ for id_ in seen if id_ in seen_before and seen[id_].actions == seen_before[id_].actions]
        now, before = (
            each.answers([replace(contexts[id_], allowed=()) for id_ in both])
            for each, contexts in ((version, seen), (previous, seen_before))
        )
        if both:
            self._record(kind, PREVIOUS, now, before)

    def _record(
        self, kind: type[ActionHead], against: str, now: Sequence[Float64], reference: Sequence[Float64]
    ) -> None:
        kl = divergences(now, reference)
        mean, version = float(kl.mean()), self._measured[kind]
        self.metrics.policy_kl.labels(self.model, against, kind.KEY).set(mean)
        _log.info(
            "policy moved", version=version, head=kind.KEY, against=against, kl_nats=round(mean, 4), contexts=len(kl)
        )
