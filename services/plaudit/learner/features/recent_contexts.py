"""Recent contexts, on which the steps of a refresh and the shift of the policy are measured.

Knows nothing about what was learned in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.core.ports.store import FeatureStore
from plaudit.learner.features.action_heads import HEAD_KINDS, DynamicActions, FixedActions, Learned
from plaudit.learner.features.context import Context
from plaudit.learner.features.features import contexts_on, features_on, is_dynamic
from plaudit.learner.features.policies import PolicyCache


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
        latest = self.store.experiences(after=max(0, last_number - FixedActions.RECENT), up_to=last_number)
        policy = self.policies.version(live)
        features = features_on(policy, self.store, latest, self.store.save)
        fixed = [e for e in latest if not is_dynamic(e)]
        dynamic = [e for e in latest if is_dynamic(e)][-DynamicActions.RECENT :]
        return list(contexts_on(policy, self.store, [*fixed, *dynamic], features).values())
