"""The reward states of one trunk, counted anew from the store: what the fast loop stands on after the trunk changed.

Knows nothing about why it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from plaudit.core.events import Features
from plaudit.core.experience import Experience, Label
from plaudit.core.ports.store import ExperienceStore, LeaderCommit
from plaudit.learner.features.evidence import Learned, Listed, Said
from plaudit.learner.features.policies import LoadedPolicy
from plaudit_models.bandit.dynamic_actions import ActionList, DynamicActionSpace, empty_dynamic_action_state
from plaudit_models.bandit.features import FeatureSpace
from plaudit_models.bandit.reward_model import empty_state

CHUNK: Final = 256


def features_on(
    version: LoadedPolicy,
    store: ExperienceStore,
    experiences: Sequence[Experience],
    save: Callable[[LeaderCommit], None],
) -> Mapping[str, Features]:
    """Features of the experiences on a version's trunk, by prediction id.

    What the store has is taken from there; the rest is made from stored content and saved. Experiences without content
    have none, nor have those between dynamic actions where the version cannot score any.
    """
    ids = [experience.decision.prediction_id for experience in experiences]
    found = dict(store.features(ids, version.manifest.trunk_digest))
    fresh = made_features(version, store, [e for e in experiences if e.decision.prediction_id not in found])
    if fresh:
        save(LeaderCommit(features=fresh))
        found |= fresh
    return found


def made_features(
    version: LoadedPolicy, store: ExperienceStore, experiences: Sequence[Experience]
) -> dict[str, Features]:
    """Features made from stored content, by prediction id."""
    usable = [e for e in experiences if version.scores_dynamic_actions or not e.decision.dynamic_actions]
    ids = [experience.decision.prediction_id for experience in usable]
    if not ids:
        return {}
    contents = store.contents(ids)
    made = {
        id_: row for id_, row in zip(ids, version.embed([contents[id_] for id_ in ids]), strict=True) if row is not None
    }
    between = [
        e.decision.prediction_id for e in usable if e.decision.dynamic_actions and e.decision.prediction_id in made
    ]
    if between:
        listed = store.dynamic_actions(between)
        for id_ in between:
            vectors = version.action_vectors([candidate.text for candidate in listed[id_]])
            made[id_] = replace(made[id_], base_logits=vectors @ made[id_].embedding)
    return made


def lists_of(
    version: LoadedPolicy, store: ExperienceStore, experiences: Sequence[Experience], found: Mapping[str, Features]
) -> dict[str, Listed]:
    """What those of the experiences were picked from that were between dynamic actions, by prediction id.

    Args:
        version: one that scores dynamic actions, or there are none; its vectors are taken.
        found: features on its trunk by prediction id; what has none is left out.
    """
    if not version.scores_dynamic_actions:
        return {}
    ids = [
        e.decision.prediction_id
        for e in experiences
        if e.decision.dynamic_actions and e.decision.prediction_id in found
    ]
    listed: dict[str, Listed] = {}
    for id_, dynamic_actions in (store.dynamic_actions(ids) if ids else {}).items():
        row, vectors = found[id_], version.action_vectors([candidate.text for candidate in dynamic_actions])
        seen = ActionList(row.embedding, vectors, row.base_logits)
        listed[id_] = Listed([candidate.id for candidate in dynamic_actions], seen)
    return listed


def said_of(
    experiences: Sequence[Experience], found: Mapping[str, Features], listed: Mapping[str, Listed]
) -> list[Said]:
    """What is learned of those of the experiences that are judged and can be seen."""
    said = [said_by(experience, experience.label, found, listed) for experience in experiences]
    return [each for each in said if each is not None]


def said_by(
    experience: Experience, label: Label | None, found: Mapping[str, Features], listed: Mapping[str, Listed]
) -> Said | None:
    """What is learned, or was, of one experience that is judged so; None if nothing is."""
    id_ = experience.decision.prediction_id
    if label is None or id_ not in found or (experience.decision.dynamic_actions and id_ not in listed):
        return None
    return Said(found[id_], label, listed.get(id_))


def rebuilt_state(
    version: LoadedPolicy,
    store: ExperienceStore,
    space: FeatureSpace,
    dynamic_space: DynamicActionSpace | None,
    save: Callable[[LeaderCommit], None],
    *,
    up_to: int | None = None,
) -> Learned:
    """The sums over all experiences that are learned from, numbered at most ``up_to``, as this version sees them.

    Args:
        dynamic_space: None where the version cannot score dynamic actions; then there are no sums of them.
    """
    learned = Learned(empty_state(space), None if dynamic_space is None else empty_dynamic_action_state(dynamic_space))
    index = {action: i for i, action in enumerate(version.manifest.spec.actions)}
    last = 0
    while chunk := store.experiences(after=last, up_to=up_to, limit=CHUNK):
        last = chunk[-1].number
        usable = [e for e in chunk if e.label is not None and not e.excluded]
        found = features_on(version, store, usable, save)
        learned = learned.add(said_of(usable, found, lists_of(version, store, usable, found)), index)
    return learned
