"""Fast reward model: Bayesian ridge regression of rewards on features, one per action, in closed form.

Its state is sums over evidence. Sums do not depend on order and can be subtracted, so a retracted or erased event
leaves no trace beyond rounding. Knows nothing about policies, users or where evidence comes from.

Notation:
    n: number of evidence rows, b: batch size, a: number of actions, f: number of features

For action k with feature weights θ_k (Bishop, Pattern Recognition and Machine Learning, 2006, eq. 3.50-3.51, in units
of the reward noise):
    prior      θ_k ~ N(m_k, diag(λ_k)⁻¹),  m_k = the unit vector of action k's own base probability
    posterior  θ_k ~ N(K_k⁻¹ (b_k + λ_k m_k), K_k⁻¹),  K_k = diag(λ_k) + A_k,  A_k = Σ w_k φφᵀ,  b_k = Σ w_k r_k φ
With that prior mean, the reward expected before any feedback is what the base model thinks of the action: q(x, k) =
P_base(k | x).

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
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from plaudit_models.bandit.features import FeatureSpace, Float64, Floats, require_same_space

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

PREFERRED_REWARD: Final = 0.75
REJECTED_REWARD: Final = 0.25

_GRAM: Final = "gram"
_TARGET: Final = "target"
_WEIGHT: Final = "weight"
_SPACE: Final = "space"


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
        gram: A, shape ``[a, f, f]``.
        target: b, shape ``[a, f]``.
        weight: Σ w of what was said about each action, without what that implies, shape ``[a]``.
    """

    space: FeatureSpace
    gram: Float64
    target: Float64
    weight: Float64

    def add(self, evidence: Evidence) -> RewardState:
        """Raises FeatureMismatch if the evidence is of another feature space."""
        return self._with(evidence, sign=1.0)

    def subtract(self, evidence: Evidence) -> RewardState:
        """Undo :meth:`add` of the same evidence. Raises FeatureMismatch if it is of another feature space."""
        return self._with(evidence, sign=-1.0)

    def towards(self, other: RewardState, share: float) -> RewardState:
        """State at ``share`` of the way to ``other``: 0 is this one, 1 the other. Raises FeatureMismatch."""
        require_same_space(self.space, other.space)
        return RewardState(
            self.space,
            self.gram + share * (other.gram - self.gram),
            self.target + share * (other.target - self.target),
            self.weight + share * (other.weight - self.weight),
        )

    def to_bytes(self) -> bytes:
        """Safetensors, of the symmetric sums one half; :func:`state_from_bytes` is its inverse."""
        tensors = {_GRAM: half_of(self.gram), _TARGET: self.target, _WEIGHT: self.weight}
        return bytes(save(tensors, metadata={_SPACE: json.dumps(asdict(self.space), sort_keys=True)}))

    def _with(self, evidence: Evidence, sign: float) -> RewardState:
        require_same_space(self.space, evidence.space)
        phi, weights = evidence.features, evidence.action_weights()
        # What a row says about every action alike is summed once for all of them.
        shared = weights.min(axis=1)
        gram = self.gram + sign * weighted_gram(phi, shared)
        for k in np.flatnonzero((weights > shared[:, None]).any(axis=0)):
            rows = weights[:, k] > shared
            gram[k] += sign * weighted_gram(phi[rows], weights[rows, k] - shared[rows])
        rewarded = weights * np.where(evidence.known_mask, evidence.rewards, 0.0)
        said = evidence.weights @ evidence.known_mask
        target, weight = self.target + sign * rewarded.T @ phi, self.weight + sign * said
        return RewardState(self.space, gram, target, weight)


def empty_state(space: FeatureSpace) -> RewardState:
    """No evidence."""
    a, f = space.n_actions, space.n_features
    return RewardState(space, np.zeros((a, f, f)), np.zeros((a, f)), np.zeros(a))


def state_from_bytes(raw: bytes) -> RewardState:
    """Raises CorruptState if the bytes are not a reward state."""
    try:
        tensors, metadata = load_with_metadata(raw)
        space = FeatureSpace(**json.loads(metadata[_SPACE]))
        half, target, weight = tensors[_GRAM], tensors[_TARGET], tensors[_WEIGHT]
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CorruptState(f"not a reward state: {type(error).__name__}: {error}") from error
    a, f = space.n_actions, space.n_features
    if (half.shape, target.shape, weight.shape) != ((a, f * (f + 1) // 2), (a, f), (a,)):
        raise CorruptState(f"gram of shape {half.shape} does not fit {a} actions and {f} features")
    return RewardState(space, whole_of(half, f), target, weight)


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
        factor: shape ``[a, f, f]``; σ²(x, k) = ‖factor_k φ‖².
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

    def known(self, features: Float64, actions: Int64) -> Float64:
        """Share of the prior variance that evidence has removed, in [0, 1], of one action a row, ``[b]``.

        The variance of one action costs as little as that, where :meth:`predict` has those of all.

        Args:
            features: shape ``[b, f]``.
            actions: shape ``[b]``.
        """
        known = np.empty(len(features))
        for k in np.unique(actions):
            rows = np.flatnonzero(actions == k)
            phi = features[rows]
            projected = phi @ self.factor[k].T
            prior = np.square(phi) @ (1.0 / self.prior_precision[k])
            known[rows] = 1.0 - np.einsum("bf,bf->b", projected, projected) / prior
        clipped: Float64 = np.clip(known, 0.0, 1.0)
        return clipped


@lru_cache(maxsize=4)
def posterior(state: RewardState, prior: RewardPrior) -> RewardPosterior:
    """Posterior of the notation above, through the Cholesky factor of K; the latest are cached."""
    a, f = state.space.n_actions, state.space.n_features
    own = np.arange(a)
    precision = np.full((a, f), prior.precision)
    precision[:, a : f - 1] = prior.embedding_precision
    precision[own, own] = prior.own_precision
    information = state.target.copy()
    information[own, own] += prior.own_precision
    return solved(state.gram, information, precision)


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


def weighted_gram(features: Float64, weights: Float64) -> Float64:
    """Σ w φφᵀ, ``[f, f]``, symmetric to the last bit, so that one half of it can be stored."""
    gram: Float64 = (weights[:, None] * features).T @ features
    return (gram + gram.T) / 2.0


def _between(values: Floats, low: float, high: float) -> Bool:
    between: Bool = (values >= low) & (values <= high)  # False for NaN
    return between


def _refuse(name: str, values: npt.NDArray[np.generic], bad_mask: Bool, why: str) -> None:
    if bad_mask.any():
        where = tuple(int(i) for i in np.argwhere(bad_mask)[0])
        raise InvalidEvidence(f"{name}{list(where)}: {values[where]} {why}")
