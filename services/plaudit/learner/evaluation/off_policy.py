"""Two policies on the same logged experiences, as :mod:`plaudit_models.evaluation.gate` compares them.

Used by the running comparison of head refreshes with the gated version, and by the gate of fine-tuned versions.

Notation:
    n: experiences, a: number of actions, k: actions of one experience
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from plaudit.core.errors import UnknownVersion
from plaudit.core.experience import DecisionHeader, Experience
from plaudit.core.ports.registry import VersionReader
from plaudit.learner.features.context import Context
from plaudit_models.bandit.policy import Float64
from plaudit_models.bundle import CorruptBundle
from plaudit_models.evaluation.gate import Comparison, differences
from plaudit_models.evaluation.ope import LoggedRounds
from plaudit_models.spec import ModelSpec

MIN_WEIGHT: Final = 0.5
"""Weight from which feedback counts as proof: that of what users say, not of what they do or leave undone."""

Values = Sequence[float] | Float64


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """An experience and its context on the trunk that it is compared on."""

    experience: Experience
    context: Context


def speaks_plainly(experience: Experience) -> bool:
    """Whether a user said something about the answer: explicit feedback, not implicit and not silence."""
    label = experience.label
    return label is not None and label.weight >= MIN_WEIGHT and experience.reward is not None


def counts_as_proof(experience: Experience) -> bool:
    """Whether off-policy evaluation can use the experience: a rated answer drawn at random from a known policy.

    A greedy answer would have been the same whatever its logged propensity is, so it says nothing about others.
    """
    return speaks_plainly(experience) and experience.probabilities is not None and not experience.decision.greedy


def can_answer(served: DecisionHeader, spec: ModelSpec) -> bool:
    """Whether the action set has any of the actions that the request allowed."""
    return not served.allowed_actions or any(spec.has_action(action) for action in served.allowed_actions)


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """Probabilities, or expected rewards, of a policy in each of n contexts.

    Attributes:
        actions: its action set.
        values: shape ``[n, a]``, in that order.
    """

    actions: Sequence[str]
    values: Float64

    def onto(self, actions: Sequence[str], missing: float = 0.0) -> Float64:
        """Values in the order of ``actions``, a superset of its own; ``missing`` for actions it does not have."""
        placed = np.full((len(self.values), len(actions)), missing)
        placed[:, [actions.index(action) for action in self.actions]] = self.values
        return placed


def logged_policies(rows: Sequence[Compared], registry: VersionReader, otherwise: Sequence[str]) -> Policy:
    """Probabilities of the versions that served, as stored with each experience, over all actions that any of them has.

    Args:
        otherwise: action set of versions that are gone: a refresh has that of the version it came from.
    """
    own = [_actions(registry, row.experience.decision.version, otherwise) for row in rows]
    actions = list(dict.fromkeys(action for each in dict.fromkeys(own) for action in each))
    values = np.zeros((len(rows), len(actions)))
    for i, (row, each) in enumerate(zip(rows, own, strict=True)):
        values[i, [actions.index(action) for action in each]] = row.experience.probabilities
    return Policy(actions, values)


def _actions(registry: VersionReader, version: int, otherwise: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(registry.manifest(version).spec.actions)
    except (UnknownVersion, CorruptBundle):
        return tuple(otherwise)


def compare(
    comparison: Comparison,
    rows: Sequence[Compared],
    *,
    candidate: Policy,
    baseline: Policy,
    logged: Policy,
    q_hat: Policy,
    n_users: int,
) -> Comparison:
    """The comparison with n more experiences of fixed actions, n ≥ 1, that :func:`counts_as_proof`.

    The action sets may differ. An action that was never offered counts as the worst there is where gain is to be
    proven, and as the best where harm is; one that the candidate does not have has probability 0.

    Args:
        candidate: its probabilities.
        baseline: those of what it is compared with.
        logged: those of what served.
        q_hat: predicted rewards that know nothing of these experiences.
        n_users: number of users before these experiences.
    """
    actions = list(dict.fromkeys([*candidate.actions, *baseline.actions, *logged.actions, *q_hat.actions]))
    return _updated(
        comparison,
        rows,
        [actions.index(row.experience.decision.action) for row in rows],
        candidate=candidate.onto(actions),
        baseline=baseline.onto(actions),
        logged=logged.onto(actions),
        q_hat=q_hat.onto(actions, missing=0.5),
        n_users=n_users,
    )


def compare_on_one_trunk(
    comparison: Comparison,
    rows: Sequence[Compared],
    *,
    candidate: Sequence[Values],
    baseline: Sequence[Values],
    logged: Sequence[Values],
    q_hat: Sequence[Values],
    n_users: int,
) -> Comparison:
    """Comparison as :func:`compare`, of policies with one trunk, so that each decides between the context's own
    actions.

    Takes decisions of every kind. All values are ``[k]``, in the order of the context's actions. A place in one list of
    dynamic actions means nothing in another: shorter lists are only filled up with places of probability 0.
    """
    return _updated(
        comparison,
        rows,
        [row.context.actions.index(row.experience.decision.action) for row in rows],
        candidate=_filled(candidate),
        baseline=_filled(baseline),
        logged=_filled(logged),
        q_hat=_filled(q_hat),
        n_users=n_users,
    )


def _updated(
    comparison: Comparison,
    rows: Sequence[Compared],
    places: Sequence[int],
    *,
    candidate: Float64,
    baseline: Float64,
    logged: Float64,
    q_hat: Float64,
    n_users: int,
) -> Comparison:
    decisions = [row.experience.decision for row in rows]
    rounds = LoggedRounds(
        reward=np.array([row.experience.reward for row in rows], np.float64),
        action=np.array(places, np.int64),
        pscore=np.array([decision.propensity for decision in decisions], np.float64),
    )
    seen = differences(rounds, candidate, baseline, q_hat, logging_probs=logged, rules=comparison.rules)
    return comparison.update(
        seen,
        [decision.user_id for decision in decisions],
        [slice_of(row) for row in rows],
        groups=[decision.user_group for decision in decisions],
        n_users=n_users,
    )


def _filled(values: Sequence[Values]) -> Float64:
    """Matrix ``[n, max k]`` with zeros behind the shorter rows."""
    whole = np.zeros((len(values), max(len(each) for each in values)))
    for row, each in zip(whole, values, strict=True):
        row[: len(each)] = each
    return whole


def slice_of(row: Compared) -> str:
    """Modalities that were given and the base policy's answer: both known before the decision.

    All decisions between dynamic actions with the same modalities are one slice.
    """
    modalities = "+".join(row.experience.decision.modalities) or "unknown"
    context = row.context
    if context.dynamic:
        return f"{modalities}: one of its dynamic actions"
    return f"{modalities}: {context.actions[int(context.features.base_logits.argmax())]}"
