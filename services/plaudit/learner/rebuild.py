"""The reward state of one trunk, counted anew from the store: what the fast loop stands on after the trunk changed.

Knows nothing about why it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from plaudit.core.events import Features
from plaudit.core.experience import Experience
from plaudit.core.ports import Changes, ExperienceStore
from plaudit.learner.evidence import evidence_of
from plaudit.learner.versions import OpenVersion
from plaudit_models.features import FeatureSpace
from plaudit_models.reward_model import RewardState, empty_state

CHUNK: Final = 256


def features_on(
    version: OpenVersion, store: ExperienceStore, experiences: Sequence[Experience], save: Callable[[Changes], None]
) -> Mapping[str, Features]:
    """Features of the experiences on a version's trunk, by prediction id.

    What the store has is taken from there; the rest is made from stored content and saved. Experiences without content
    have none.
    """
    ids = [experience.served.prediction_id for experience in experiences]
    found = dict(store.features(ids, version.manifest.trunk_digest))
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        contents = store.contents(missing)
        made = dict(zip(missing, version.embed([contents[id_] for id_ in missing]), strict=True))
        fresh = {id_: features for id_, features in made.items() if features is not None}
        save(Changes(features=fresh))
        found |= fresh
    return found


def rebuilt_state(
    version: OpenVersion,
    store: ExperienceStore,
    space: FeatureSpace,
    save: Callable[[Changes], None],
    *,
    up_to: int | None = None,
) -> RewardState:
    """The sums over all experiences that are learned from, numbered at most ``up_to``, at this version's features."""
    state = empty_state(space)
    index = {action: i for i, action in enumerate(version.manifest.spec.actions)}
    last = 0
    while chunk := store.experiences(after=last, up_to=up_to, limit=CHUNK):
        last = chunk[-1].number
        learned = [e for e in chunk if e.judgement is not None and not e.set_aside]
        found = features_on(version, store, learned, save)
        judged = [
            (found[e.served.prediction_id], e.judgement)
            for e in learned
            if e.judgement is not None and e.served.prediction_id in found
        ]
        state = state.add(evidence_of(space, judged, index))
    return state
