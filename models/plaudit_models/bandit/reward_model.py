"""Evidence of the fast reward model: Bayesian ridge regression of rewards on features, one per action, as sums.

Sums do not depend on order and can be subtracted, so a retracted or erased event leaves no trace beyond rounding. What
an event says of every action alike is summed once for all of them, so that memory grows with what was said of each
action, not with actions × features². Knows nothing about policies, users or where evidence comes from; what follows
from the evidence is in :mod:`plaudit_models.bandit.posterior`.

Notation:
    n: number of evidence rows, b: batch size, a: number of actions, f: number of features, g: number of regressors,
    x: regressors of φ, P: base probabilities (:mod:`plaudit_models.bandit.features`)

The reward of action k is r = P_k + δ_kᵀx plus noise, in units of the noise (Bishop, Pattern Recognition and Machine
Learning, 2006, eq. 3.50-3.51):
    prior      δ_k ~ N(0, Λ_k⁻¹), so that before any feedback the base model is believed
    posterior  δ_k ~ N(K_k⁻¹ t_k, K_k⁻¹),  K_k = Λ_k + A_k,  A_k = Σ w_k xxᵀ,  t_k = Σ w_k (r_k − P_k) x
    sums       A_k = S + B_k,  S = Σ s xxᵀ with s = min_k w_k,  B_k = Σ (w_k − s) xxᵀ, which is zero for most k

One likelihood for all that users say, Gaussian in r_k = θ_kᵀφ, so that it stays sums:
    thumb, rating r of action k    r_k = r with weight 1; every other action 0 with weight ρ r, because praise of one
                                   answer speaks against the others as far as the answers are exclusive (ρ)
    correction to k                r_k = 1, every other action 0, with weight 1
    preference of k over l         r_k = ¾, r_l = ¼ with weight 1: Bradley-Terry's log σ(γ(r_k − r_l)) to second order
                                   about r_k = r_l, in the same units (a thumb's log σ(γ(r − ½)) gives targets 0 and 1
                                   for γ = 4), each action against the other's mean, so that no sum couples two actions

So the mean of r_k − r_l under preferences of frequency p is p − ½, which is Bradley-Terry's logit(p)/4 to first order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from plaudit_models.bandit.features import FeatureSpace, Float64, Floats, regressors, require_same_space
from plaudit_models.bandit.own_evidence import OwnEvidence, no_own_evidence, weighted_gram

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

PREFERRED_REWARD: Final = 0.75
REJECTED_REWARD: Final = 0.25

_GRAM: Final = "gram"
_TARGET: Final = "target"
_WEIGHT: Final = "weight"
_SPACE: Final = "space"
_SHARED: Final = "shared"
_ROW_ACTIONS: Final = "row_actions"
_ROWS: Final = "rows"
_ROW_WEIGHTS: Final = "row_weights"
_TOTAL_ACTIONS: Final = "total_actions"
_TOTALS: Final = "totals"


class InvalidEvidence(ValueError):
    """Evidence that must not reach the sums; the message names the field, the row and the value."""


class CorruptState(ValueError):
    """Bytes that are no saved state."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Feedback on actions as evidence, one row per event.

    Attributes:
        space: the feature space of ``features``.
        features: φ, shape ``[n, f]``, finite.
        rewards: shape ``[n, a]``, in [0, 1] where ``known_mask`` is True, ignored elsewhere.
        known_mask: shape ``[n, a]``, True where the row says something about the action. A thumb speaks of one action,
            a correction of all.
        weights: shape ``[n]``, finite, ≥ 0; 1 is one ordinary event.

    Raises:
        InvalidEvidence: any of the above does not hold.
    """

    space: FeatureSpace
    features: Float64
    rewards: Float64
    known_mask: Bool
    weights: Float64

    def __post_init__(self) -> None:
        n, a = len(self.features), self.space.n_actions
        for name, array, shape in (
            ("features", self.features, (n, self.space.n_features)),
            ("rewards", self.rewards, (n, a)),
            ("known_mask", self.known_mask, (n, a)),
            ("weights", self.weights, (n,)),
        ):
            if array.shape != shape:
                raise InvalidEvidence(f"{name}: shape {array.shape} is not {shape}")
        _refuse("features", self.features, ~np.isfinite(self.features), "is not finite")
        _refuse("rewards", self.rewards, self.known_mask & ~_between(self.rewards, 0.0, 1.0), "is not in [0, 1]")
        _refuse(
            "weights", self.weights, ~_between(self.weights, 0.0, np.finfo(np.float64).max), "is not finite and ≥ 0"
        )

    def action_weights(self) -> Float64:
        """w, shape ``[n, a]``: how much each row says about each action; what is known or implied, 0 where nothing."""
        praise = np.where(self.known_mask, self.rewards, 0.0).sum(axis=1, keepdims=True)
        of_one_action = self.known_mask.sum(axis=1, keepdims=True) == 1
        implied = np.where(of_one_action, self.space.exclusivity * praise, 0.0)
        weights: Float64 = self.weights[:, None] * np.where(self.known_mask, 1.0, implied)
        return weights


def evidence_of_actions(
    space: FeatureSpace, features: Float64, actions: Int64, rewards: Floats, weights: Floats | None = None
) -> Evidence:
    """Evidence about one action a row, as a thumb or a rating gives it.

    Args:
        features: shape ``[n, f]``.
        actions: the action with feedback, shape ``[n]``.
        rewards: its reward in [0, 1], shape ``[n]``.
        weights: shape ``[n]``; 1 each if left out.
    """
    _refuse(
        "actions",
        actions,
        (actions < 0) | (actions >= space.n_actions),
        f"is not an action index below {space.n_actions}",
    )
    known_mask: Bool = actions[:, None] == np.arange(space.n_actions)
    weight = np.ones(len(actions)) if weights is None else np.asarray(weights, np.float64)
    return Evidence(space, features, np.where(known_mask, rewards[:, None], 0.0), known_mask, weight)


@dataclass(frozen=True, slots=True, eq=False)
class RewardState:
    """Everything the reward model has learned, as sums over evidence; immutable, every change is a new state.

    Attributes:
        space: the feature space of the sums.
        shared: S, shape ``[g, g]``: what was said of all actions alike.
        own: B_k by the index of the action, of those that have any.
        target: t, shape ``[a, g]``.
        weight: Σ w of what was said about each action, without what that implies, shape ``[a]``.
    """

    space: FeatureSpace
    shared: Float64
    own: Mapping[int, OwnEvidence]
    target: Float64
    weight: Float64

    @property
    def gram(self) -> Float64:
        """A, shape ``[a, g, g]``: large where there are many actions."""
        gram = np.repeat(self.shared[None], self.space.n_actions, axis=0)
        for k, own in self.own.items():
            gram[k] += own.gram
        return gram

    def add(self, evidence: Evidence) -> RewardState:
        """Raises FeatureMismatch if the evidence is of another feature space."""
        return self._with(evidence, sign=1.0)

    def subtract(self, evidence: Evidence) -> RewardState:
        """Undo :meth:`add` of the same evidence. Raises FeatureMismatch if it is of another feature space."""
        return self._with(evidence, sign=-1.0)

    def towards(self, other: RewardState, share: float) -> RewardState:
        """State at ``share`` of the way to ``other``: 0 is this one, 1 the other. Raises FeatureMismatch."""
        require_same_space(self.space, other.space)
        none = no_own_evidence(self.space.n_regressors)
        own: dict[int, OwnEvidence] = {}
        for k in sorted(self.own.keys() | other.own.keys()):
            between = self.own.get(k, none).towards(other.own.get(k, none), share)
            if between is not None:
                own[k] = between
        return RewardState(
            self.space,
            self.shared + share * (other.shared - self.shared),
            own,
            self.target + share * (other.target - self.target),
            self.weight + share * (other.weight - self.weight),
        )

    def to_bytes(self) -> bytes:
        """Safetensors, of the symmetric sums one half; :func:`state_from_bytes` is its inverse."""
        few = {k: own for k, own in self.own.items() if own.total is None}
        many = {k: own.total for k, own in self.own.items() if own.total is not None}
        g = self.space.n_regressors
        tensors = {
            _SHARED: half_of(self.shared[None]),
            _TARGET: self.target,
            _WEIGHT: self.weight,
            _ROW_ACTIONS: np.repeat(np.array(list(few), np.int64), [own.rank for own in few.values()]),
            _ROWS: np.concatenate([np.zeros((0, g)), *(own.rows for own in few.values())]),
            _ROW_WEIGHTS: np.concatenate([np.zeros(0), *(own.weights for own in few.values())]),
            _TOTAL_ACTIONS: np.array(list(many), np.int64),
            _TOTALS: half_of(np.stack(list(many.values())) if many else np.zeros((0, g, g))),
        }
        return bytes(save(tensors, metadata={_SPACE: json.dumps(asdict(self.space), sort_keys=True)}))

    def _with(self, evidence: Evidence, sign: float) -> RewardState:
        require_same_space(self.space, evidence.space)
        phi, weights = evidence.features, evidence.action_weights()
        x = regressors(self.space, phi)
        shared = weights.min(axis=1, initial=np.inf)
        excess = weights - shared[:, None]
        own = dict(self.own)
        for k in np.flatnonzero((excess > 0.0).any(axis=0)):
            rows = excess[:, k] > 0.0
            before = own.get(int(k), no_own_evidence(self.space.n_regressors))
            after = before.plus(x[rows], sign * excess[rows, k])
            if after is None:
                del own[int(k)]
            else:
                own[int(k)] = after
        residual = np.where(evidence.known_mask, evidence.rewards, 0.0) - phi[:, : self.space.n_actions]
        said = evidence.weights @ evidence.known_mask
        return RewardState(
            self.space,
            self.shared + sign * weighted_gram(x, shared),
            own,
            self.target + sign * (weights * residual).T @ x,
            self.weight + sign * said,
        )


def empty_state(space: FeatureSpace) -> RewardState:
    """No evidence."""
    a, g = space.n_actions, space.n_regressors
    return RewardState(space, np.zeros((g, g)), {}, np.zeros((a, g)), np.zeros(a))


def state_from_bytes(raw: bytes) -> RewardState:
    """State that :meth:`RewardState.to_bytes` wrote, in this version or the one before.

    Raises:
        CorruptState: the bytes are not a reward state.
    """
    try:
        tensors, metadata = load_with_metadata(raw)
        space = FeatureSpace(**json.loads(metadata[_SPACE]))
        if _GRAM in tensors:
            return _from_one_sum_per_action(space, tensors[_GRAM], tensors[_TARGET], tensors[_WEIGHT])
        shared, target, weight = tensors[_SHARED], tensors[_TARGET], tensors[_WEIGHT]
        actions, rows, row_weights = tensors[_ROW_ACTIONS], tensors[_ROWS], tensors[_ROW_WEIGHTS]
        total_actions, totals = tensors[_TOTAL_ACTIONS], tensors[_TOTALS]
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CorruptState(f"not a reward state: {type(error).__name__}: {error}") from error
    a, g = space.n_actions, space.n_regressors
    shapes = (shared.shape, target.shape, weight.shape, rows.shape[1:], totals.shape[1:])
    if shapes != ((1, g * (g + 1) // 2), (a, g), (a,), (g,), (g * (g + 1) // 2,)):
        raise CorruptState(f"not a reward state: sums of shapes {shapes} do not fit {a} actions and {g} regressors")
    none = no_own_evidence(g)
    own = {int(k): OwnEvidence(rows[actions == k], row_weights[actions == k]) for k in np.unique(actions)}
    own |= {
        int(k): replace(none, total=whole_of(half[None], g)[0]) for k, half in zip(total_actions, totals, strict=True)
    }
    return RewardState(space, whole_of(shared, g)[0], own, target, weight)


def _from_one_sum_per_action(space: FeatureSpace, half: Float64, target: Float64, weight: Float64) -> RewardState:
    """State as the version before wrote it: A_k and Σ w r φ of every action.

    Of more actions than regressors there is no way from their sums to ours. Such a state becomes an empty one of no
    feature space of any version, so that the evidence is learned anew from the store.
    """
    a, f = space.n_actions, space.n_features
    if (half.shape, target.shape, weight.shape) != ((a, f * (f + 1) // 2), (a, f), (a,)):
        raise CorruptState(f"not a reward state: gram of shape {half.shape} does not fit {a} actions and {f} features")
    if space.coded:
        return empty_state(replace(space, trunk_digest=""))
    gram, none = whole_of(half, f), no_own_evidence(f)
    residual = target - gram[np.arange(a), :, np.arange(a)]
    own = {k: replace(none, total=gram[k]) for k in range(a) if gram[k].any()}
    return RewardState(space, np.zeros((f, f)), own, residual, weight)


def load_with_metadata(raw: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of safetensors bytes. Raises one of KeyError, TypeError, ValueError and SafetensorError."""
    header_bytes = int.from_bytes(raw[:8], "little")
    metadata: dict[str, str] = json.loads(raw[8 : 8 + header_bytes])["__metadata__"]
    return load(raw), metadata


@dataclass(frozen=True, slots=True)
class RewardPrior:
    """Precision of the prior: how firmly the base probabilities are believed before any feedback.

    Attributes:
        precision: λ of every feature, in events: that many events' worth of belief that the feature does not matter.
        own_precision: λ of the action's own base probability. Higher than ``precision``, because that the base model is
            right where it is sure is better founded than that no other answer pleases; it keeps one wrong thumb
            from turning a good answer out.
        embedding_precision: λ of the embedding features. Low, because together they have length 1 at most, and tell
            contexts apart where the base probabilities do not.
    """

    precision: float = 1.0
    own_precision: float = 3.0
    embedding_precision: float = 0.1

    def __post_init__(self) -> None:
        if min(self.precision, self.own_precision, self.embedding_precision) <= 0.0:
            raise ValueError(f"{self}: precisions must be positive")


@dataclass(frozen=True, slots=True, eq=False)
class RewardPosterior:
    """Posterior of the reward model.

    Attributes:
        mean: posterior means of θ, shape ``[a, f]``.
        factor: shape ``[a, f, f]``; σ²(φ, k) = ‖factor_k φ‖².
        prior_precision: λ, shape ``[a, f]``; the variance before any evidence is Σ φ² / λ_k.
    """

    mean: Float64
    factor: Float64
    prior_precision: Float64

    def predict(self, features: Float64) -> tuple[Float64, Float64]:
        """Expected reward q and its variance σ², both ``[b, a]``, at ``features`` ``[b, f]``.

        q is linear in φ and may leave [0, 1]; σ² is in units of the reward noise: 1/m after m like events.
        """
        projected = np.matmul(features, self.factor.transpose(0, 2, 1))
        variance = np.square(projected).sum(axis=2).T
        return features @ self.mean.T, variance

    def prior_variance(self, features: Float64) -> Float64:
        """σ² before any evidence, ``[b, a]``, at ``features`` ``[b, f]``."""
        variance: Float64 = np.square(features) @ (1.0 / self.prior_precision).T
        return variance


def solved(gram: Float64, information: Float64, precision: Float64) -> RewardPosterior:
    """Means K⁻¹ (b + λ m) and factors of K⁻¹ for K = diag(λ) + A, one ridge a row.

    Args:
        gram: A, shape ``[a, f, f]``.
        information: b + λ m, shape ``[a, f]``.
        precision: λ, shape ``[a, f]``.
    """
    total = gram + precision[:, :, None] * np.eye(gram.shape[1])
    factor = np.linalg.inv(np.linalg.cholesky(total))
    mean = np.einsum("kgf,kg->kf", factor, np.einsum("kgf,kf->kg", factor, information))
    return RewardPosterior(mean, factor, precision)


def half_of(gram: Float64) -> Float64:
    """Upper triangles of symmetric matrices: ``[a, f, f]`` → ``[a, f (f + 1) / 2]``."""
    row, column = np.triu_indices(gram.shape[1])
    return np.ascontiguousarray(gram[:, row, column])  # safetensors would save any other layout scrambled


def whole_of(half: Float64, n_features: int) -> Float64:
    """Inverse of :func:`half_of`."""
    row, column = np.triu_indices(n_features)
    gram = np.empty((len(half), n_features, n_features))
    gram[:, row, column] = half
    gram[:, column, row] = half
    return gram


def _between(values: Floats, low: float, high: float) -> Bool:
    between: Bool = (values >= low) & (values <= high)  # False for NaN
    return between


def _refuse(name: str, values: npt.NDArray[np.generic], bad_mask: Bool, why: str) -> None:
    if bad_mask.any():
        where = tuple(int(i) for i in np.argwhere(bad_mask)[0])
        raise InvalidEvidence(f"{name}{list(where)}: {values[where]} {why}")
