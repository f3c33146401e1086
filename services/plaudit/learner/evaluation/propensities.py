"""Probabilities of logged decisions: of all actions under the version that served each, and of the answers of an
experiment under the candidate and under live, which :mod:`plaudit_models.evaluation.two_arm_test` weighs with.

Knows nothing about what follows from an experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from plaudit.core.errors import UnknownVersion, UnprovenVersion
from plaudit.core.events import Features
from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceReader, FeatureStore
from plaudit.learner.evaluation.off_policy import can_answer
from plaudit.learner.features.features import contexts_on, features_on, stored_features
from plaudit.learner.features.policies import PolicyCache
from plaudit_models.bandit.policy import Float64
from plaudit_models.evaluation.two_arm_test import Propensities


def served_probabilities(
    fresh: Sequence[Experience], features: Mapping[str, Features], store: ExperienceReader, policies: PolicyCache
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


def propensities_of(
    rows: Sequence[Experience], candidate: int, live: int, store: FeatureStore, policies: PolicyCache
) -> Propensities:
    """Propensities of the answer of each of n experiences; NaN where a version or the content is gone, or the answer
    was not drawn (greedy).

    The version that answered logged its propensity; that of the other one is computed on its own trunk. Live moves by
    small steps while an experiment lasts: for an answer of the candidate it is the version that gave the last answer
    before it outside the experiment.

    Args:
        rows: in order, each served by ``candidate`` or by a version that was live.
        candidate: version in the experiment.
        live: version that serves now, for answers before the first of live's.
    """
    by_candidate = np.array([row.decision.version == candidate for row in rows])
    propensity = np.array([row.decision.propensity for row in rows])
    by_other: dict[int, list[int]] = {}
    for i, then in enumerate(_live_then(rows, candidate, live)):
        by_other.setdefault(then if by_candidate[i] else candidate, []).append(i)
    other = np.full(len(rows), np.nan)
    for version, places in by_other.items():
        other[places] = _propensities(version, [rows[i] for i in places], store, policies)
    other[[row.decision.greedy for row in rows]] = np.nan  # not drawn, so the logged propensity means nothing
    return Propensities(np.where(by_candidate, propensity, other), np.where(by_candidate, other, propensity))


def _live_then(rows: Sequence[Experience], candidate: int, live: int) -> list[int]:
    """Version that was live at each row."""
    latest = next((row.decision.version for row in rows if row.decision.version != candidate), live)
    versions = []
    for row in rows:
        if row.decision.version != candidate:
            latest = row.decision.version
        versions.append(latest)
    return versions


def _propensities(version: int, rows: Sequence[Experience], store: FeatureStore, policies: PolicyCache) -> Float64:
    """Probabilities with which a version gives the answers that were given, ``[n]``; 0 where it has no such action."""
    propensities = np.full(len(rows), np.nan)
    try:
        policy = policies.version(version)
    except (UnknownVersion, UnprovenVersion):
        return propensities
    contexts = contexts_on(policy, store, rows, features_on(policy, store, rows, store.save))
    answerable = [
        i
        for i, row in enumerate(rows)
        if row.decision.prediction_id in contexts and can_answer(row.decision, policy.manifest.spec)
    ]
    own = [contexts[rows[i].decision.prediction_id] for i in answerable]
    for i, context, probs in zip(answerable, own, policy.answers(own), strict=True):
        place = context.index(rows[i].decision.action)
        propensities[i] = 0.0 if place is None else probs[place]
    return propensities
