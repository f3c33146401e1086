"""Contexts that the online update needs besides the experiences: on the live trunk, and on the one that served each.

Features are taken from the store where it has them and made from stored content where it has not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from plaudit.core.errors import UnknownVersion, UnprovenVersion
from plaudit.core.events import Features
from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceReader, FeatureStore
from plaudit.learner.features.action_heads import HEAD_KINDS, ActionHead
from plaudit.learner.features.context import Context
from plaudit.learner.features.features import contexts_on, features_on, stored_features
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.state import LearnerState
from plaudit_models.bundle import Manifest

MAX_RECENT: Final = max(kind.RECENT for kind in HEAD_KINDS)


@dataclass(eq=False)
class RecentContexts:
    """Latest contexts on the live trunk, on which the steps of a refresh are measured, some of each kind of decision.

    After a start they come from the store.
    """

    store: FeatureStore
    policies: PolicyCache
    state: LearnerState

    def __post_init__(self) -> None:
        self._recent = {kind.KEY: deque[Context](maxlen=kind.RECENT) for kind in HEAD_KINDS}
        self._restored = False

    def clear(self) -> None:
        self._restored = False
        for contexts in self._recent.values():
            contexts.clear()

    def extend(self, latest: Sequence[Context]) -> None:
        for kind in HEAD_KINDS:
            self._recent[kind.KEY].extend(context for context in latest if kind.owns(context))

    def on(self, live: Manifest) -> list[Context]:
        """The latest of each kind that the live version can answer, oldest first."""
        heads = () if self.state.learned is None else self.state.learned.heads
        empty = [head for head in heads if not self._recent[head.KEY]]
        if empty and not self._restored:
            self._restored = True
            contexts = self._stored(live)
            for head in empty:
                self._recent[head.KEY].extend(context for context in contexts if head.owns(context))
        return [context for head in heads for context in self._recent[head.KEY]]

    def _stored(self, live: Manifest) -> list[Context]:
        last, policy = self.state.progress.last_number, self.policies.version(live.version)
        latest = [e for kind in HEAD_KINDS for e in latest_of(kind, self.store, last)]
        features = features_on(policy, self.store, latest, self.store.save)
        return list(contexts_on(policy, self.store, latest, features).values())


def latest_of(kind: type[ActionHead], store: ExperienceReader, last: int) -> list[Experience]:
    """Latest experiences of one kind up to number ``last``, as many as a step is measured on, oldest first."""
    latest = store.experiences(after=max(0, last - MAX_RECENT), up_to=last)
    return [e for e in latest if kind.owns(e.decision)][-kind.RECENT :]


def served_probabilities(
    fresh: Sequence[Experience], features: Mapping[str, Features], store: FeatureStore, policies: PolicyCache
) -> dict[int, tuple[float, ...]]:
    """Probabilities of the version that served each, by experience number, of those whose version is still there.

    Args:
        features: on the live trunk, which is the one that served but around a change of trunk.
    """
    by_version: dict[int, list[Experience]] = {}
    for experience in fresh:
        by_version.setdefault(experience.decision.version, []).append(experience)
    served: dict[int, tuple[float, ...]] = {}
    for version, group in by_version.items():
        try:
            policy = policies.version(version)
        except (UnknownVersion, UnprovenVersion):
            continue  # pruned: feedback came very late
        digest = policy.manifest.trunk_digest
        ids = [e.decision.prediction_id for e in group]
        own = {id_: features[id_] for id_ in ids if id_ in features and features[id_].trunk_digest == digest}
        missing = [e for e in group if e.decision.prediction_id not in own]
        contexts = contexts_on(policy, store, group, own | stored_features(digest, store, missing))
        with_context = [e for e in group if e.decision.prediction_id in contexts]
        answers = policy.answers([contexts[e.decision.prediction_id] for e in with_context])
        served |= {e.number: tuple(row.tolist()) for e, row in zip(with_context, answers, strict=True)}
    return served
