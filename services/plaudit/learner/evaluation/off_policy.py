"""Two policies on the same logged experiences: what plaudit_models.evaluation.gate needs, made from experiences.

Used twice: by the running comparison of head refreshes with the gated version, and by the gate of fine-tuned versions.

Notation:
    n: experiences, a: number of actions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from plaudit.core.errors import UnknownVersion
from plaudit.core.events import Features
from plaudit.core.experience import DecisionHeader, Experience
from plaudit.core.ports.registry import ModelRegistry
from plaudit.learner.features.evidence import Listed
from plaudit_models.bandit.policy import Float64
from plaudit_models.evaluation.gate import Comparison, Differences, differences
from plaudit_models.evaluation.ope import LoggedRounds
from plaudit_models.spec import ModelSpec

MIN_WEIGHT: Final = 0.5
"""Only what users say counts as proof, not what they do or leave undone."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """An experience with the features that were logged with it (those of the trunk that served it).

    Attributes:
        listed: what it was picked from, where those were dynamic actions.
    """

    experience: Experience
    features: Features
    listed: Listed | None = None


def speaks_plainly(experience: Experience) -> bool:
    """Whether its user has said something about the answer, not only done something, or nothing."""
    label = experience.label
    return label is not None and label.weight >= MIN_WEIGHT and experience.reward is not None


def counts_as_proof(experience: Experience) -> bool:
    """Whether off-policy evaluation can use it: a judged answer drawn at random from a known policy.

    A greedy answer would have been the same whatever its logged propensity pretends, so it says nothing about others.
    """
    return speaks_plainly(experience) and experience.probabilities is not None and not experience.decision.greedy


def can_answer(served: DecisionHeader, spec: ModelSpec) -> bool:
    """Whether a policy with these actions has any of those that were allowed."""
    return not served.allowed_actions or any(spec.has_action(action) for action in served.allowed_actions)


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """What a policy would answer, or is expected to earn, in each of n contexts.

    Attributes:
        actions: its action set.
        values: shape ``[n, a]``, in that order.
    """

    actions: Sequence[str]
    values: Float64

    def onto(self, actions: Sequence[str], missing: float = 0.0) -> Float64:
        """The same in the order of ``actions``, which have all of ours; ``missing`` for those that are not."""
        placed = np.full((len(self.values), len(actions)), missing)
        placed[:, [actions.index(action) for action in self.actions]] = self.values
        return placed


def logged_policies(rows: Sequence[Compared], registry: ModelRegistry, otherwise: Sequence[str]) -> Policy:
    """Those that served each experience, as noted when it was joined, over all actions that any of them had.

    Args:
        otherwise: the action set of versions that are gone: a refresh has that of the version it came from.
    """
    own = [_actions(registry, row.experience.decision.version, otherwise) for row in rows]
    actions = list(dict.fromkeys(action for each in dict.fromkeys(own) for action in each))
    values = np.zeros((len(rows), len(actions)))
    for i, (row, each) in enumerate(zip(rows, own, strict=True)):
        values[i, [actions.index(action) for action in each]] = row.experience.probabilities
    return Policy(actions, values)


def _actions(registry: ModelRegistry, version: int, otherwise: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(registry.manifest(version).spec.actions)
    except UnknownVersion:
        return tuple(otherwise)


def compare(
    comparison: Comparison,
    rows: Sequence[Compared],
    spec: ModelSpec,
    *,
    candidate: Policy,
    baseline: Policy,
    logged: Policy,
    q_hat: Policy,
    n_users: int,
) -> Comparison:
    """Take in n experiences, n ≥ 1, that :func:`counts_as_proof`.

    The action sets may differ. An answer that was never offered counts as the worst there is where gain is to be
    proven, and as the best where harm is; one that the candidate has no more is one it never gives.

    Args:
        spec: names the slices.
        candidate: its probabilities.
        baseline: those of what it is compared with.
        logged: those of what served.
        q_hat: predicted rewards that know nothing of these experiences.
        n_users: how many users there were before these experiences.
    """
    actions = list(dict.fromkeys([*candidate.actions, *baseline.actions, *logged.actions, *q_hat.actions]))
    log = LoggedRounds(
        reward=np.array([row.experience.reward for row in rows], np.float64),
        action=np.array([actions.index(row.experience.decision.action) for row in rows], np.int64),
        pscore=np.array([row.experience.decision.propensity for row in rows], np.float64),
    )
    seen = differences(
        log,
        candidate.onto(actions),
        baseline.onto(actions),
        q_hat.onto(actions, missing=0.5),
        logging_probs=logged.onto(actions),
        rules=comparison.rules,
    )
    return _taken_in(comparison, seen, rows, spec, n_users)


def compare_lists(
    comparison: Comparison,
    rows: Sequence[Compared],
    spec: ModelSpec,
    *,
    candidate: Sequence[Sequence[float]],
    baseline: Sequence[Sequence[float]],
    logged: Sequence[Sequence[float]],
    q_hat: Sequence[Sequence[float]],
    n_users: int,
) -> Comparison:
    """As :func:`compare`, of n experiences that were picked from dynamic actions, each from its own.

    All are values of its own dynamic actions, in their order. A place in one list means nothing in another: lists are
    only filled up with places that nobody picks.
    """
    places = [row.experience.decision.dynamic_actions.index(row.experience.decision.action) for row in rows]
    log = LoggedRounds(
        reward=np.array([row.experience.reward for row in rows], np.float64),
        action=np.array(places, np.int64),
        pscore=np.array([row.experience.decision.propensity for row in rows], np.float64),
    )
    seen = differences(
        log,
        _filled(candidate),
        _filled(baseline),
        _filled(q_hat),
        logging_probs=_filled(logged),
        rules=comparison.rules,
    )
    return _taken_in(comparison, seen, rows, spec, n_users)


def _taken_in(
    comparison: Comparison, seen: Differences, rows: Sequence[Compared], spec: ModelSpec, n_users: int
) -> Comparison:
    return comparison.update(
        seen,
        [row.experience.decision.user_id for row in rows],
        [slice_of(row, spec) for row in rows],
        groups=[row.experience.decision.user_group for row in rows],
        n_users=n_users,
    )


def _filled(lists: Sequence[Sequence[float]]) -> Float64:
    """Zeros behind the shorter ones."""
    whole = np.zeros((len(lists), max(len(each) for each in lists)))
    for row, each in zip(whole, lists, strict=True):
        row[: len(each)] = each
    return whole


def slice_of(row: Compared, spec: ModelSpec) -> str:
    """Which modalities were given and what the base policy would say: both known before the answer.

    All that was picked from dynamic actions of such an input is one slice.
    """
    modalities = "+".join(row.experience.decision.modalities) or "unknown"
    if row.experience.decision.dynamic_actions:
        return f"{modalities}: one of its dynamic actions"
    return f"{modalities}: {spec.actions[int(row.features.base_logits.argmax())]}"
