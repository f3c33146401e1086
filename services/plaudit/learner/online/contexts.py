"""What is needed to learn from experiences besides themselves: features, and what the serving version thought.

Taken from the store where it has them, made from stored content where it has not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from plaudit.core.errors import UnknownVersion
from plaudit.core.events import Features
from plaudit.core.experience import DecisionHeader, Experience
from plaudit.core.ports.store import ExperienceStore
from plaudit.learner.features.evidence import Listed
from plaudit.learner.features.features import features_on, lists_of, made_features
from plaudit.learner.features.policies import LoadedPolicy, PolicyCache, allowed_mask
from plaudit.learner.state import LearnerState
from plaudit_models.bandit.dynamic_actions import ActionList
from plaudit_models.bundle import Manifest

RECENT_CONTEXTS: Final = 256
"""Contexts on which the KL of a refresh is measured."""
RECENT_LISTS: Final = 64
"""Of contexts with dynamic actions; each is as large as its list is long."""


class Contexts:
    """The latest contexts on the live trunk; after a start they come from the store.

    Those whose answer was picked from dynamic actions are kept apart, with their lists.
    """

    def __init__(self, store: ExperienceStore, versions: PolicyCache, knowledge: LearnerState) -> None:
        self._store = store
        self._versions = versions
        self._knowledge = knowledge
        self._recent: deque[Features] = deque(maxlen=RECENT_CONTEXTS)
        self._recent_lists: deque[ActionList] = deque(maxlen=RECENT_LISTS)
        self._recalled = False

    def clear(self) -> None:
        self._recalled = False
        self._recent.clear()
        self._recent_lists.clear()

    def extend(self, latest: Sequence[Features], lists: Sequence[ActionList] = ()) -> None:
        self._recent.extend(latest)
        self._recent_lists.extend(lists)

    def on(self, live: Manifest) -> Sequence[Features]:
        """Those that were answered with the model's actions."""
        if not self._recent and not self._recalled:
            self._recall(live)
        return list(self._recent)

    def lists_on(self, live: Manifest) -> Sequence[ActionList]:
        """Those that were answered with one of their dynamic actions."""
        if not self._recent_lists and not self._recalled:
            self._recall(live)
        return list(self._recent_lists)

    def _recall(self, live: Manifest) -> None:
        self._recalled = True
        last = self._knowledge.progress.last_number
        latest = self._store.experiences(after=max(0, last - RECENT_CONTEXTS), up_to=last)
        version = self._versions.version(live.version)
        found = features_on(version, self._store, latest, self._store.save)
        if not self._recent:
            plain = [e.decision.prediction_id for e in latest if not e.decision.dynamic_actions]
            self._recent.extend(found[id_] for id_ in plain if id_ in found)
        if not self._recent_lists and version.scores_dynamic_actions:
            between = [e for e in latest if e.decision.dynamic_actions][-RECENT_LISTS:]
            self._recent_lists.extend(each.seen for each in lists_of(version, self._store, between, found).values())


def features_of(
    fresh: Sequence[Experience],
    known: Sequence[Experience],
    live: Manifest,
    store: ExperienceStore,
    versions: PolicyCache,
) -> tuple[dict[str, Features], dict[str, Features]]:
    """Features on the live trunk by prediction id, and which of them had to be made from content.

    Args:
        fresh: experiences to be learned for the first time.
        known: those that were learned before. They must be forgotten at the features they were learned at; what had
            none then gets none now.
    """
    ids = [experience.decision.prediction_id for experience in (*fresh, *known)]
    found = dict(store.features(ids, live.trunk_digest))
    missing = [id_ for id_ in ids[: len(fresh)] if id_ not in found]
    if not missing:
        return found, {}
    new = made_features(
        versions.version(live.version), store, [e for e in fresh if e.decision.prediction_id in set(missing)]
    )
    return found | new, new


def served_probabilities(
    fresh: Sequence[Experience], known: Mapping[str, Features], store: ExperienceStore, versions: PolicyCache
) -> Mapping[int, tuple[float, ...]]:
    """What the version that served each would have answered, by experience number, while that version is at hand.

    Args:
        known: features on the live trunk, which is the one that served but around a change of trunk.
    """
    by_version: dict[int, list[Experience]] = {}
    for experience in fresh:
        by_version.setdefault(experience.decision.version, []).append(experience)
    noted: dict[int, tuple[float, ...]] = {}
    for number, group in by_version.items():
        try:
            version = versions.version(number)
        except UnknownVersion:
            continue  # pruned: feedback came very late
        logged = _logged([e.decision for e in group], version.manifest.trunk_digest, known, store)
        group = [e for e in group if e.decision.prediction_id in logged]
        noted |= _over_dynamic_actions([e for e in group if e.decision.dynamic_actions], logged, store, version)
        group = [e for e in group if not e.decision.dynamic_actions]
        if group:
            rows = [logged[e.decision.prediction_id] for e in group]
            allowed = allowed_mask(version.manifest.spec, [e.decision for e in group])
            probs = version.probabilities(rows, allowed)
            noted |= {e.number: tuple(row) for e, row in zip(group, probs.tolist(), strict=True)}
    return noted


def _over_dynamic_actions(
    group: Sequence[Experience], logged: Mapping[str, Features], store: ExperienceStore, version: LoadedPolicy
) -> Mapping[int, tuple[float, ...]]:
    """Of each one's own dynamic actions, by experience number."""
    listed: Mapping[str, Listed] = lists_of(version, store, group, logged)
    return {
        e.number: tuple(version.list_probabilities(listed[e.decision.prediction_id].seen).tolist())
        for e in group
        if e.decision.prediction_id in listed
    }


def _logged(
    group: Sequence[DecisionHeader], digest: str, known: Mapping[str, Features], store: ExperienceStore
) -> Mapping[str, Features]:
    """Features on the trunk that served, by prediction id."""
    ids = [served.prediction_id for served in group]
    found = {id_: known[id_] for id_ in ids if id_ in known and known[id_].trunk_digest == digest}
    return {**found, **store.features([id_ for id_ in ids if id_ not in found], digest)}
