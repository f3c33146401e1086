"""How probable the answers of a trial were, under the candidate and under live: what plaudit_models.canary weighs with.

Knows nothing about what follows from a trial.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plaudit.core.errors import UnknownVersion
from plaudit.core.experience import Experience
from plaudit.core.ports import ExperienceStore
from plaudit.learner.compare import can_answer
from plaudit.learner.rebuild import features_on, lists_of
from plaudit.learner.versions import Versions, allowed_mask
from plaudit_models.canary import Chances
from plaudit_models.policy import Float64


def chances_of(
    rows: Sequence[Experience], candidate: int, live: int, store: ExperienceStore, versions: Versions
) -> Chances:
    """Of the answer that each of n experiences got; NaN where a version or the content is gone, or the answer
    was not drawn (greedy).

    Whoever gave an answer logged its propensity; the other one is asked on its own trunk. Live moves by small steps
    while a trial lasts: for an answer of the candidate it is the version that answered the last user before who was
    not on trial.

    Args:
        rows: in order, each served by ``candidate`` or by a version that was live.
        candidate: the version on trial.
        live: the version that serves now, for answers before the first of live's.
    """
    versions_then = _live_then(rows, candidate, live)
    by_candidate = np.array([row.served.version == candidate for row in rows])
    propensity = np.array([row.served.propensity for row in rows])
    asked: dict[int, list[int]] = {}
    for i, then in enumerate(versions_then):
        asked.setdefault(then if by_candidate[i] else candidate, []).append(i)
    other = np.full(len(rows), np.nan)
    for number, places in asked.items():
        other[places] = _chance(number, [rows[i] for i in places], store, versions)
    other[[row.served.greedy for row in rows]] = np.nan  # whatever its logged propensity pretends
    return Chances(np.where(by_candidate, propensity, other), np.where(by_candidate, other, propensity))


def _live_then(rows: Sequence[Experience], candidate: int, live: int) -> list[int]:
    first = next((row.served.version for row in rows if row.served.version != candidate), live)
    found, last = [], first
    for row in rows:
        if row.served.version != candidate:
            last = row.served.version
        found.append(last)
    return found


def _chance(number: int, rows: Sequence[Experience], store: ExperienceStore, versions: Versions) -> Float64:
    """With which a version gives the answers that were given, ``[n]``; 0 where it has no such action.

    An answer that was picked from candidates is asked for among the same.
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
        own = listed.get(row.served.prediction_id)
        if own is not None:
            chance[i] = version.list_probabilities(own.seen)[row.served.candidates.index(row.served.action)]
    seen = [
        i
        for i, row in enumerate(rows)
        if row.served.prediction_id in found and not row.served.candidates and can_answer(row.served, spec)
    ]
    if seen:
        served = [rows[i].served for i in seen]
        probs = version.probabilities([found[each.prediction_id] for each in served], allowed_mask(spec, served))
        for i, each, row in zip(seen, served, probs, strict=True):
            chance[i] = row[spec.action_index(each.action)] if spec.has_action(each.action) else 0.0
    return chance
