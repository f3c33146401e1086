"""Posterior of the fast reward model: what is expected of each action, and how surely.

Knows nothing about where evidence comes from, nor about graphs (:mod:`plaudit_models.bandit.head` writes the same).

Notation:
    as in :mod:`plaudit_models.bandit.reward_model`, and
    Λ        diagonal of the prior precisions of the regressors
    c_k      code of action k in x: its own base probability is c_kᵀx, or nearly
    Λ_k      Λ + (λ_own − λ) c_k c_kᵀ: the action's own base probability is believed more firmly
    G        Λ + S, one matrix for all actions

    K_k = G + (λ_own − λ) c_k c_kᵀ + Σ w x xᵀ over the action's own rows, so that by Woodbury's identity
    σ²(x, k) = xᵀG⁻¹x − κ_k (c_kᵀG⁻¹x)² − ‖M_k x‖²
with one row in M_k for each own row, and none for an action about which nothing was said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit_models.bandit.features import FeatureSpace, Float64, action_codes, along_codes, regressors
from plaudit_models.bandit.own_evidence import GramRows, Grams, OwnEvidence, leading_rows
from plaudit_models.bandit.reward_model import RewardPrior, RewardState, solved

MAX_VALUES: Final = 3 * 2**19
"""Values of all rows of M together: 6 MB of a head, and as many multiplications per answer, whatever was said. Beyond
it the rows that say least are left out, and a variance is a little too large."""

_AT_ONCE: Final = 1_024
"""Rows of several actions that are solved together."""

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FullVariance:
    """Variance of few actions: a triangle for each.

    Attributes:
        factor: shape ``[a, g, g]``; σ²(x, k) = ‖factor_k x‖².
    """

    factor: Float64

    def of(self, x: Float64) -> Float64:
        """σ², shape ``[b, a]``."""
        variance: Float64 = np.square(np.matmul(x, self.factor.transpose(0, 2, 1))).sum(axis=2).T
        return variance

    def of_one(self, x: Float64, actions: Int64) -> Float64:
        """σ² of one action a row, shape ``[b]``."""
        variance = np.empty(len(x))
        for k in np.unique(actions):
            rows = np.flatnonzero(actions == k)
            variance[rows] = np.square(x[rows] @ self.factor[k].T).sum(axis=1)
        return variance


@dataclass(frozen=True, slots=True, eq=False)
class SharedVariance:
    """Variance of many actions: what all share, less what is known of each.

    Attributes:
        space: of the regressors.
        whitening: W with WᵀW = G⁻¹, shape ``[g, g]``.
        counts: shape ``[a]``; 1 where an action begins with what all share, 0 where its rows are all of its variance.
        own_scale: κ, shape ``[a]``.
        rows: shape ``[r, g]``, in the order of their actions.
        actions: of the rows, shape ``[r]``.
        signs: of the rows' squares, shape ``[r]``.
    """

    space: FeatureSpace
    whitening: Float64
    counts: Float64
    own_scale: Float64
    rows: Float64
    actions: Int64
    signs: Float64

    def of(self, x: Float64) -> Float64:
        """σ², shape ``[b, a]``."""
        white = x @ self.whitening.T
        own = along_codes(self.space, white @ self.whitening)
        variance = np.square(white).sum(axis=1, keepdims=True) * self.counts - self.own_scale * np.square(own)
        if len(self.rows):
            squares = np.square(x @ self.rows.T) * self.signs
            starts = np.flatnonzero(np.diff(self.actions, prepend=-1))
            variance[:, self.actions[starts]] += np.add.reduceat(squares, starts, axis=1)
        positive: Float64 = np.maximum(variance, 0.0)
        return positive

    def of_one(self, x: Float64, actions: Int64) -> Float64:
        """σ² of one action a row, shape ``[b]``."""
        white = x @ self.whitening.T
        own = along_codes(self.space, white @ self.whitening)[np.arange(len(x)), actions]
        variance = np.square(white).sum(axis=1) * self.counts[actions] - self.own_scale[actions] * np.square(own)
        for k in np.unique(actions):
            rows, first = np.flatnonzero(actions == k), np.searchsorted(self.actions, [k, k + 1])
            squares = np.square(x[rows] @ self.rows[slice(*first)].T)
            variance[rows] += squares @ self.signs[slice(*first)]
        positive: Float64 = np.maximum(variance, 0.0)
        return positive


@dataclass(frozen=True, slots=True, eq=False)
class ActionsPosterior:
    """Posterior of the rewards of all actions.

    Attributes:
        space: of the features.
        prior: what was believed before.
        mean: E δ, shape ``[a, g]``.
        variance: how sure that is.
    """

    space: FeatureSpace
    prior: RewardPrior
    mean: Float64
    variance: FullVariance | SharedVariance

    def predict(self, features: Float64) -> tuple[Float64, Float64]:
        """Expected reward q and its variance σ², both ``[b, a]``, at ``features`` ``[b, f]``.

        q is linear in φ and may leave [0, 1]; σ² is in units of the reward noise: 1/m after m like events.
        """
        return self.expected(features), self.variance.of(regressors(self.space, features))

    def expected(self, features: Float64) -> Float64:
        """q alone, shape ``[b, a]``."""
        expected: Float64 = features[:, : self.space.n_actions] + regressors(self.space, features) @ self.mean.T
        return expected

    def known(self, features: Float64, actions: Int64) -> Float64:
        """Share of the prior variance that evidence has removed, in [0, 1], of one action a row, ``[b]``.

        The variance of one action costs as little as that, where :meth:`predict` has those of all.

        Args:
            features: shape ``[b, f]``.
            actions: shape ``[b]``.
        """
        before = self.prior_variance(features)[np.arange(len(features)), actions]
        known: Float64 = 1.0 - self.variance.of_one(regressors(self.space, features), actions) / before
        return np.clip(known, 0.0, 1.0)

    def prior_variance(self, features: Float64) -> Float64:
        """σ² before any evidence, ``[b, a]``, at ``features`` ``[b, f]``."""
        x = regressors(self.space, features)
        if not self.space.coded:
            own: Float64 = np.square(x) @ (1.0 / own_precisions(self.space, self.prior)).T
            return own
        total = np.square(x) @ (1.0 / precisions(self.space, self.prior))
        variance: Float64 = total[:, None] - prior_scale(self.prior) * np.square(along_codes(self.space, x))
        return variance


def precisions(space: FeatureSpace, prior: RewardPrior) -> Float64:
    """Λ, shape ``[g]``."""
    precision = np.full(space.n_regressors, prior.precision)
    precision[space.n_base_regressors : -1] = prior.embedding_precision
    return precision


def own_precisions(space: FeatureSpace, prior: RewardPrior) -> Float64:
    """Diagonals of Λ_k, shape ``[a, g]``, where the base probabilities are regressors themselves."""
    precision = np.repeat(precisions(space, prior)[None], space.n_actions, axis=0)
    precision[np.arange(space.n_actions), np.arange(space.n_actions)] = prior.own_precision
    return precision


def prior_scale(prior: RewardPrior) -> float:
    """What an action's own base probability has less of the prior variance than any other: Sherman and Morrison."""
    return 1.0 / prior.precision - 1.0 / prior.own_precision


@lru_cache(maxsize=4)
def posterior(state: RewardState, prior: RewardPrior) -> ActionsPosterior:
    """Posterior of the notation above; the latest are cached."""
    space = state.space
    a, g = space.n_actions, space.n_regressors
    if a * g * g > MAX_VALUES:
        return _shared_posterior(state, prior)
    full = solved(state.gram, state.target, own_precisions(space, prior))
    return ActionsPosterior(space, prior, full.mean, FullVariance(full.factor))


def _shared_posterior(state: RewardState, prior: RewardPrior) -> ActionsPosterior:
    space, target = state.space, state.target
    precision = precisions(space, prior)
    whitening = np.linalg.inv(np.linalg.cholesky(np.diag(precision) + state.shared))
    inverse = whitening.T @ whitening
    n_base = space.n_base_regressors
    codes = action_codes(space.n_actions) if space.coded else np.eye(n_base)
    along = codes @ inverse[:n_base] if space.coded else inverse[:n_base]
    firmer = prior.own_precision - prior.precision
    own_scale = firmer / (1.0 + firmer * np.einsum("kp,kp->k", codes, along[:, :n_base]))
    mean = target @ inverse - (own_scale * np.einsum("kg,kg->k", target, along))[:, None] * along
    counts = np.ones(space.n_actions)
    variance_scale, rows = own_scale.copy(), dict[int, Float64]()
    limit = _largest_rank([own.rank for own in state.own.values()], MAX_VALUES // space.n_regressors)
    shared = _SharedInverse(inverse, along, own_scale)
    by_prior = np.sqrt(precision)
    for k, own in state.own.items():
        if own.total is not None:
            total = own.total + state.shared + np.diag(precision)
            total[:n_base, :n_base] += firmer * np.outer(codes[k], codes[k])
            factor = np.linalg.inv(np.linalg.cholesky(total))
            mean[k] = factor.T @ (factor @ target[k])
            if len(factor) <= limit:
                rows[k], counts[k], variance_scale[k] = factor, 0.0, 0.0
            else:
                leading = leading_rows(Grams(own.total[None]), limit, by_prior)[0]
                rows[k] = shared.solved(np.array([k]), leading[None], np.ones((1, limit)))[0]
    for some in _of_like_size(state.own):
        size = max(state.own[k].rank for k in some)
        own_rows, noise = np.zeros((len(some), size, space.n_regressors)), np.ones((len(some), size))
        for i, k in enumerate(some):
            own = state.own[k]
            own_rows[i, : own.rank], noise[i, : own.rank] = own.rows, 1.0 / own.weights
        solved_rows = shared.solved(np.array(some), own_rows, noise)
        mean[some] -= np.einsum("kng,kn->kg", solved_rows, np.einsum("kng,kg->kn", solved_rows, target[some]))
        if size > limit:
            solved_rows = leading_rows(GramRows(solved_rows), limit, 1.0 / by_prior)
        rows |= {k: each[: state.own[k].rank] for k, each in zip(some, solved_rows, strict=True)}
    ordered = sorted(rows)
    actions = np.repeat(np.array(ordered, np.int64), [len(rows[k]) for k in ordered])
    variance = SharedVariance(
        space,
        _single(whitening),
        counts,
        _single(variance_scale),
        _single(np.concatenate([np.zeros((0, space.n_regressors)), *(rows[k] for k in ordered)])),
        actions,
        np.where(counts[actions] == 1.0, -1.0, 1.0),
    )
    return ActionsPosterior(space, prior, mean, variance)


@dataclass(frozen=True, slots=True, eq=False)
class _SharedInverse:
    """What all actions share: G⁻¹ ``[g, g]``, C G⁻¹ ``[a, g]`` and κ ``[a]``."""

    inverse: Float64
    along: Float64
    own_scale: Float64

    def solved(self, actions: Int64, rows: Float64, noise: Float64) -> Float64:
        """M of n actions, ``[n, k, g]``, from rows of that shape and their noise 1/w, ``[n, k]``.

        Rows of zeros stay zeros.
        """
        along, scale = self.along[actions], self.own_scale[actions]
        projected = (rows @ along[:, :, None])[:, :, 0]
        turned = rows @ self.inverse - (scale[:, None] * projected)[:, :, None] * along[:, None, :]
        inner = turned @ rows.transpose(0, 2, 1) + noise[:, :, None] * np.eye(rows.shape[1])
        solved_rows: Float64 = np.linalg.inv(np.linalg.cholesky((inner + inner.transpose(0, 2, 1)) / 2.0)) @ turned
        return solved_rows


def _of_like_size(own: Mapping[int, OwnEvidence]) -> Iterator[list[int]]:
    """Actions with rows, about as many each, so that they can be filled up with zeros and solved together."""
    by_size: dict[int, list[int]] = {}
    for k, each in own.items():
        if each.total is None:
            by_size.setdefault((4 * each.rank).bit_length(), []).append(k)
    for actions in by_size.values():
        at_once = max(1, _AT_ONCE // max(own[k].rank for k in actions))
        yield from (actions[start : start + at_once] for start in range(0, len(actions), at_once))


def _single(values: Float64) -> Float64:
    """Values that a head's float32 constants hold exactly: differences of large squares are the same in both then."""
    return values.astype(np.float32).astype(np.float64)


def _largest_rank(ranks: list[int], room: int) -> int:
    """Largest rank, at least 1, to which every action's may be cut so that all of them have room together."""
    low, high = 1, max([1, *ranks])
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(rank, middle) for rank in ranks) <= room:
            low = middle
        else:
            high = middle - 1
    return low
