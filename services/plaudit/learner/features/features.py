"""Features and contexts of experiences on the trunk of one version.

They are taken from the store where it has them and made from stored content where it has not. Knows nothing about why
they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from plaudit.core.events import Features
from plaudit.core.experience import Experience, Label
from plaudit.core.ports.store import ExperienceReader, LeaderCommit
from plaudit.learner.features.action_heads import Learned
from plaudit.learner.features.context import Context, Floats32, LabelledContext
from plaudit.learner.features.policies import LoadedPolicy

CHUNK: Final = 256

Save = Callable[[LeaderCommit], None]


def features_on(
    version: LoadedPolicy, store: ExperienceReader, experiences: Sequence[Experience], save: Save
) -> dict[str, Features]:
    """Features of the experiences on a version's trunk, by prediction id; those that had to be made are saved.

    Experiences without content have none, nor have those between dynamic actions where the version scores no text.
    """
    stored = stored_features(version.manifest.trunk_digest, store, experiences)
    made = made_features(version, store, [e for e in experiences if e.decision.prediction_id not in stored])
    if made:
        save(LeaderCommit(features=made))
    return stored | made


def stored_features(
    trunk_digest: str, store: ExperienceReader, experiences: Sequence[Experience]
) -> dict[str, Features]:
    """Features that the store has of this trunk, by prediction id."""
    return dict(store.features([e.decision.prediction_id for e in experiences], trunk_digest))


def made_features(
    version: LoadedPolicy, store: ExperienceReader, experiences: Sequence[Experience]
) -> dict[str, Features]:
    """Features made from stored content, by prediction id."""
    usable = [e for e in experiences if version.scores_dynamic_actions or not e.decision.dynamic]
    ids = [e.decision.prediction_id for e in usable]
    if not ids:
        return {}
    contents = store.contents(ids)
    rows = zip(ids, version.embed([contents[id_] for id_ in ids]), strict=True)
    made = {id_: row for id_, row in rows if row is not None}
    for id_, (_, vectors) in _action_lists(version, store, usable, made).items():
        made[id_] = replace(made[id_], base_logits=vectors @ made[id_].embedding)
    return made


def contexts_on(
    version: LoadedPolicy, store: ExperienceReader, experiences: Sequence[Experience], features: Mapping[str, Features]
) -> dict[str, Context]:
    """Contexts of the experiences on a version's trunk, by prediction id.

    Args:
        features: on that trunk, by prediction id. What has none has no context, nor have decisions between dynamic
            actions where the version scores no text, nor features that are not of the trunk's sizes.
    """
    features = {id_: each for id_, each in features.items() if len(each.embedding) == version.embedding_size}
    lists = _action_lists(version, store, experiences, features)
    actions = version.manifest.spec.actions
    contexts = {}
    for experience in experiences:
        decision = experience.decision
        id_ = decision.prediction_id
        if id_ in lists:
            ids, vectors = lists[id_]
            contexts[id_] = Context(features[id_], ids, vectors=vectors)
        elif id_ in features and not decision.dynamic and len(features[id_].base_logits) == len(actions):
            contexts[id_] = Context(features[id_], actions, decision.allowed_actions)
    return contexts


def labelled_contexts(
    labels: Iterable[tuple[Experience, Label | None]], contexts: Mapping[str, Context]
) -> list[LabelledContext]:
    """Labels with the contexts of their experiences; what has no label or no context is left out."""
    return [
        LabelledContext(contexts[experience.decision.prediction_id], label)
        for experience, label in labels
        if label is not None and experience.decision.prediction_id in contexts
    ]


def relearned(
    empty: Learned, version: LoadedPolicy, store: ExperienceReader, save: Save, *, up_to: int | None = None
) -> Learned:
    """Evidence of all experiences that are learned from, numbered at most ``up_to``, on the version's trunk.

    Args:
        empty: no evidence, in the feature spaces of that trunk.
    """
    learned, last = empty, 0
    while chunk := store.experiences(after=last, up_to=up_to, limit=CHUNK):
        last = chunk[-1].number
        usable = [e for e in chunk if e.counts]
        contexts = contexts_on(version, store, usable, features_on(version, store, usable, save))
        learned = learned.add(labelled_contexts([(e, e.heard_label) for e in usable], contexts))
    return learned


def learned_from(
    empty: Learned, version: LoadedPolicy, store: ExperienceReader, experiences: Sequence[Experience]
) -> tuple[Learned, dict[str, Features]]:
    """Evidence of these experiences on the version's trunk, and their features there; nothing is saved.

    Args:
        empty: no evidence, in the feature spaces of that trunk.
    """
    learned, features = empty, dict[str, Features]()
    for start in range(0, len(experiences), CHUNK):
        chunk = experiences[start : start + CHUNK]
        made = made_features(version, store, chunk)
        contexts = contexts_on(version, store, chunk, made)
        learned = learned.add(labelled_contexts([(e, e.heard_label) for e in chunk], contexts))
        features |= made
    return learned, features


def _action_lists(
    version: LoadedPolicy, store: ExperienceReader, experiences: Sequence[Experience], features: Mapping[str, Features]
) -> dict[str, tuple[list[str], Floats32]]:
    """Ids and vectors ``[k, d]`` of the dynamic actions of those that have features, by prediction id."""
    if not version.scores_dynamic_actions:
        return {}
    dynamic = [e.decision.prediction_id for e in experiences if e.decision.dynamic]
    ids = [id_ for id_ in dynamic if id_ in features]
    return {
        id_: ([action.id for action in actions], version.action_vectors([action.text for action in actions]))
        for id_, actions in (store.dynamic_actions(ids) if ids else {}).items()
    }
