"""Two policies on the same logged experiences: what plaudit_models.gate needs, made from experiences.

Used twice: by the running comparison of head refreshes with the gated version, and by the gate of fine-tuned versions.

Notation:
    n: experiences, a: number of actions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from plaudit.core.events import Features
from plaudit.core.experience import Experience
from plaudit_models.gate import Comparison, differences
from plaudit_models.ope import LoggedRounds
from plaudit_models.policy import Float64
from plaudit_models.spec import ModelSpec

MIN_WEIGHT: Final = 0.5
"""Only what users say counts as proof, not what they do or leave undone."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """An experience with the features that were logged with it (those of the trunk that served it)."""

    experience: Experience
    features: Features


def counts_as_proof(experience: Experience, spec: ModelSpec) -> bool:
    """Whether off-policy evaluation can use it: a judged answer drawn at random from a known policy.

    A greedy answer would have been the same whatever its logged propensity pretends, so it says nothing about others.
    """
    return speaks_plainly(experience, spec) and experience.probabilities is not None and not experience.served.greedy


def speaks_plainly(experience: Experience, spec: ModelSpec) -> bool:
    """Whether its user has said something about the answer, not only done something, or nothing."""
    judgement = experience.judgement
    return (
        judgement is not None
        and judgement.weight >= MIN_WEIGHT
        and experience.reward is not None
        and spec.has_action(experience.served.action)
    )


def compare(
    comparison: Comparison,
    rows: Sequence[Compared],
    spec: ModelSpec,
    *,
    candidate: Float64,
    baseline: Float64,
    q_hat: Float64,
    n_users: int,
) -> Comparison:
    """Take in n experiences, n ≥ 1, that :func:`counts_as_proof`.

    Args:
        candidate: its probabilities, ``[n, a]``.
        baseline: those of what it is compared with.
        q_hat: predicted rewards that know nothing of these experiences, ``[n, a]``.
        n_users: how many users there were before these experiences.
    """
    log = LoggedRounds(
        reward=np.array([row.experience.reward for row in rows], np.float64),
        action=np.array([spec.action_index(row.experience.served.action) for row in rows], np.int64),
        pscore=np.array([row.experience.served.propensity for row in rows], np.float64),
    )
    seen = differences(
        log, candidate, baseline, q_hat, logging_probs=logged_probabilities(rows), rules=comparison.rules
    )
    users = [row.experience.served.user_id for row in rows]
    return comparison.update(seen, users, [slice_of(row, spec) for row in rows], n_users=n_users)


def logged_probabilities(rows: Sequence[Compared]) -> Float64:
    """Of the policies that served, as noted when each experience was joined, ``[n, a]``."""
    return np.array([row.experience.probabilities for row in rows], np.float64)


def slice_of(row: Compared, spec: ModelSpec) -> str:
    """Which modalities were given and what the base policy would say: both known before the answer."""
    modalities = "+".join(row.experience.served.modalities) or "unknown"
    return f"{modalities}: {spec.actions[int(row.features.base_logits.argmax())]}"
