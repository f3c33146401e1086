"""Two policies on the same logged experiences, as :mod:`plaudit_models.evaluation.gate` compares them.

Used by the running comparison of head refreshes with the gated version, and by the gate of fine-tuned versions. Takes
decisions of every kind: each is compared over its own actions.

Notation:
    n: experiences, k: actions of one experience
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np

from plaudit.core.errors import UnknownVersion
from plaudit.core.experience import DecisionHeader, Experience, RaterLabel
from plaudit.core.ports.registry import VersionReader
from plaudit.learner.features.context import Context
from plaudit_models.bandit.policy import Float64
from plaudit_models.bundle import CorruptBundle
from plaudit_models.evaluation.gate import Comparison, Differences, GateRules, differences
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


@dataclass(frozen=True, slots=True)
class CountedRating:
    """Rating that a decision counts with as evidence.

    Attributes:
        rater: id of the user who gave it, under whose cap it counts.
        reward: of the served action, in [0, 1].
    """

    rater: str
    reward: float


def speaks_plainly(label: RaterLabel, action: str) -> bool:
    """Whether the rater said something about the answer: explicit feedback, not implicit and not silence."""
    return label.weight >= MIN_WEIGHT and action in label.rewards


def rating_of(experience: Experience) -> CountedRating | None:
    """The one rating that the decision counts with: that of the user who asked, else of the first who spoke; None if
    there is none, or the experience is set aside.

    Raters whose labels are not learned from are heard here, each under a cap: that they contradict others, or say much,
    is no reason to judge versions without them.
    """
    if experience.excluded or experience.outdated:
        return None
    decision = experience.decision
    plain = [each for each in experience.by_rater if speaks_plainly(each, decision.action)]
    if not plain:
        return None
    chosen = next((each for each in plain if each.rater == decision.user_id), plain[0])
    return CountedRating(chosen.rater, chosen.rewards[decision.action])


def counts_as_proof(experience: Experience) -> bool:
    """Whether off-policy evaluation can use the experience: a rated answer drawn at random from a known policy.

    A greedy answer would have been the same whatever its logged propensity is, so it says nothing about others.
    """
    known = experience.probabilities is not None and not experience.decision.greedy
    return known and rating_of(experience) is not None


def can_answer(served: DecisionHeader, spec: ModelSpec) -> bool:
    """Whether the action set has any of the actions that the request allowed."""
    return not served.allowed_actions or any(spec.has_action(action) for action in served.allowed_actions)


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """Probabilities, or expected rewards, of a policy in one context.

    Attributes:
        actions: what it decides between.
        values: shape ``[k]``, in that order.
    """

    actions: Sequence[str]
    values: Values

    def onto(self, actions: Sequence[str], missing: float = 0.0) -> Values:
        """Values in the order of ``actions``, a superset of its own; ``missing`` for actions it does not have."""
        if actions is self.actions:
            return self.values
        own = dict(zip(self.actions, self.values, strict=True))
        return [own.get(action, missing) for action in actions]


def logged_policies(rows: Sequence[Compared], registry: VersionReader, otherwise: Sequence[str]) -> list[Policy]:
    """Probabilities of the versions that served, as stored with each experience.

    Args:
        otherwise: action set of versions that are gone: a refresh has that of the version it came from.
    """
    return [
        Policy(
            row.experience.decision.dynamic_actions or _actions(registry, row.experience.decision.version, otherwise),
            row.experience.probabilities or (),
        )
        for row in rows
    ]


def _actions(registry: VersionReader, version: int, otherwise: Sequence[str]) -> Sequence[str]:
    try:
        return registry.manifest(version).spec.actions
    except (UnknownVersion, CorruptBundle):
        return otherwise


def compare(
    comparison: Comparison,
    rows: Sequence[Compared],
    *,
    candidate: Sequence[Policy],
    baseline: Sequence[Policy],
    logged: Sequence[Policy],
    q_hat: Sequence[Policy],
    n_users: int,
) -> Comparison:
    """The comparison with n more experiences, n ≥ 1, that :func:`counts_as_proof`.

    The actions of policies may differ. An action that was never offered counts as the worst there is where gain is to
    be proven, and as the best where harm is; one that the candidate does not have has probability 0.

    Args:
        candidate: its probabilities in each context.
        baseline: those of what it is compared with.
        logged: those of what served.
        q_hat: predicted rewards that know nothing of these experiences.
        n_users: number of users before these experiences.
    """
    ratings = _ratings(rows)
    seen = compared_differences(
        rows, candidate=candidate, baseline=baseline, logged=logged, q_hat=q_hat, rules=comparison.rules
    )
    return comparison.update(
        seen,
        [rating.rater for rating in ratings],
        [slice_of(row) for row in rows],
        groups=[row.experience.decision.user_group for row in rows],
        n_users=n_users,
    )


def compared_differences(
    rows: Sequence[Compared],
    *,
    candidate: Sequence[Policy],
    baseline: Sequence[Policy],
    logged: Sequence[Policy],
    q_hat: Sequence[Policy],
    rules: GateRules,
) -> Differences:
    """Differences ``[n]`` of candidate and baseline, each over all actions that any policy has in its context.

    A place in one list of dynamic actions means nothing in another: shorter rows are only filled up with places of
    probability 0, which count for nothing.
    """
    actions = [_union(of_row) for of_row in zip(candidate, baseline, logged, q_hat, strict=True)]
    taken = [of_row.index(row.experience.decision.action) for of_row, row in zip(actions, rows, strict=True)]
    rounds = LoggedRounds(
        reward=np.array([rating.reward for rating in _ratings(rows)], np.float64),
        action=np.array(taken, np.int64),
        pscore=np.array([row.experience.decision.propensity for row in rows], np.float64),
    )

    def filled(policies: Sequence[Policy], missing: float = 0.0) -> Float64:
        return _filled([policy.onto(own, missing) for policy, own in zip(policies, actions, strict=True)])

    return differences(
        rounds, filled(candidate), filled(baseline), filled(q_hat, 0.5), logging_probs=filled(logged), rules=rules
    )


def _ratings(rows: Sequence[Compared]) -> list[CountedRating]:
    """Ratings of experiences that :func:`counts_as_proof`."""
    ratings = [rating for row in rows if (rating := rating_of(row.experience)) is not None]
    if len(ratings) != len(rows):
        raise ValueError(f"{len(rows) - len(ratings)} of {len(rows)} experiences have no rating to count with")
    return ratings


def _union(policies: Sequence[Policy]) -> Sequence[str]:
    """Actions that any of the policies has."""
    first = policies[0].actions
    if all(policy.actions is first for policy in policies):
        return first
    return list(dict.fromkeys(chain.from_iterable(policy.actions for policy in policies)))


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
