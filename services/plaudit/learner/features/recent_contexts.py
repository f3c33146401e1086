"""Recent contexts, on which the steps of a refresh and the shift of the policy are measured.

Knows nothing about what was learned in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceReader, FeatureStore
from plaudit.learner.features.action_heads import HEAD_KINDS, ActionHead, Learned
from plaudit.learner.features.context import Context
from plaudit.learner.features.features import contexts_on, features_on
from plaudit.learner.features.policies import PolicyCache

_MAX_RECENT: Final = max(kind.RECENT for kind in HEAD_KINDS)


@dataclass(eq=False)
class RecentContexts:
    """Latest contexts on the live trunk, some of each kind of decision. After a start they come from the store."""

    store: FeatureStore
    policies: PolicyCache

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

    def of(self, learned: Learned, live: int, last_number: int) -> list[Context]:
        """The latest of each kind of decision that something can be learned about, oldest first.

        Args:
            live: version on whose trunk they are.
            last_number: number of the last experience that is learned.
        """
        empty = [head for head in learned.heads if not self._recent[head.KEY]]
        if empty and not self._restored:
            self._restored = True
            contexts = self._stored(live, last_number)
            for head in empty:
                self._recent[head.KEY].extend(context for context in contexts if head.owns(context))
        return [context for head in learned.heads for context in self._recent[head.KEY]]

    def _stored(self, live: int, last_number: int) -> list[Context]:
        policy = self.policies.version(live)
        latest = [e for kind in HEAD_KINDS for e in latest_of(kind, self.store, last_number)]
        features = features_on(policy, self.store, latest, self.store.save)
        return list(contexts_on(policy, self.store, latest, features).values())


def latest_of(kind: type[ActionHead], store: ExperienceReader, last_number: int) -> list[Experience]:
    """Latest experiences of one kind up to this number, as many as a step is measured on, oldest first."""
    latest = store.experiences(after=max(0, last_number - _MAX_RECENT), up_to=last_number)
    return [e for e in latest if kind.owns(e.decision)][-kind.RECENT :]
