"""How probable the answers of an experiment were, under the candidate and under live: what
plaudit_models.evaluation.two_arm_test weighs with.

Knows nothing about what follows from an experiment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plaudit.core.errors import UnknownVersion
from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceStore
from plaudit.learner.evaluation.off_policy import can_answer
from plaudit.learner.features.features import features_on, lists_of
from plaudit.learner.features.policies import PolicyCache, allowed_mask
from plaudit_models.bandit.policy import Float64
from plaudit_models.evaluation.two_arm_test import Propensities


def propensities_of(
    rows: Sequence[Experience], candidate: int, live: int, store: ExperienceStore, versions: PolicyCache
) -> Propensities:
    """Of the answer that each of n experiences got; NaN where a version or the content is gone, or the answer
    was not drawn (greedy).

    Whoever gave an answer logged its propensity; the other one is asked on its own trunk. Live moves by small steps
    while an experiment lasts: for an answer of the candidate it is the version that answered the last user before who
    was not in an experiment.

    Args:
        rows: in order, each served by ``candidate`` or by a version that was live.
        candidate: the version in an experiment.
        live: the version that serves now, for answers before the first of live's.
    """
    versions_then = _live_then(rows, candidate, live)
    by_candidate = np.array([row.decision.version == candidate for row in rows])
    propensity = np.array([row.decision.propensity for row in rows])
    asked: dict[int, list[int]] = {}
    for i, then in enumerate(versions_then):
        asked.setdefault(then if by_candidate[i] else candidate, []).append(i)
    other = np.full(len(rows), np.nan)
    for number, places in asked.items():
        other[places] = _chance(number, [rows[i] for i in places], store, versions)
    other[[row.decision.greedy for row in rows]] = np.nan  # whatever its logged propensity pretends
    return Propensities(np.where(by_candidate, propensity, other), np.where(by_candidate, other, propensity))


def _live_then(rows: Sequence[Experience], candidate: int, live: int) -> list[int]:
    first = next((row.decision.version for row in rows if row.decision.version != candidate), live)
    found, last = [], first
    for row in rows:
        if row.decision.version != candidate:
            last = row.decision.version
        found.append(last)
    return found


def _chance(number: int, rows: Sequence[Experience], store: ExperienceStore, versions: PolicyCache) -> Float64:
    """With which a version gives the answers that were given, ``[n]``; 0 where it has no such action.

    An answer that was picked from dynamic actions is asked for among the same.
    """
    try:
        version = versions.version(number)
    except UnknownVersion:
        return np.full(len(rows), np.nan)
    spec = version.manifest.spec
    found = features_on(version, store, rows, store.save)
    chance = np.full(len(rows), np.nan)
    listed = lists_of(version, store, rows, found)
    for i, row in enumerate(rows):
        own = listed.get(row.decision.prediction_id)
        if own is not None:
            chance[i] = version.list_probabilities(own.seen)[row.decision.dynamic_actions.index(row.decision.action)]
    seen = [
        i
        for i, row in enumerate(rows)
        if row.decision.prediction_id in found and not row.decision.dynamic_actions and can_answer(row.decision, spec)
    ]
    if seen:
        served = [rows[i].decision for i in seen]
        probs = version.probabilities([found[each.prediction_id] for each in served], allowed_mask(spec, served))
        for i, each, row in zip(seen, served, probs, strict=True):
            chance[i] = row[spec.action_index(each.action)] if spec.has_action(each.action) else 0.0
    return chance
