"""Fast loop over dynamic actions, which come with the request: one Bayesian ridge that all dynamic actions share.

A dynamic action is known by its text alone, through its vector, so what is learned of one says something of every
other, and one that was never seen is scored like the rest. The same sums, posterior and policy as over a model's own
actions (:mod:`plaudit_models.bandit.reward_model`, :mod:`plaudit_models.bandit.improvement`), with features of the pair
of context and action in the place of a regression per action. Knows nothing about graphs, events or users.

Notation:
    k: dynamic actions of one request, d: embedding size, m: pair features, f: number of features, n: evidence rows,
    b: contexts

    φ(x, i) = [P_i, s(x)·z(e ⊙ g_i), 1],  f = m + 2
    P        softmax of the base logits e·g_i over the list
    s(x)     max(u(x)³, LEAST_FADE), u as in :mod:`plaudit_models.bandit.features`: faded where the base model is sure,
             but never to nothing, because besides P there is nothing else that tells one action from another
    z        the same random Fourier features as of an embedding, of the elementwise product of embedding and vector:
             what base logits are sums of, so that feedback may weigh each of its coordinates anew

The prior mean of θ is the unit vector of P: the reward expected before any feedback is what the base model thinks.
Praise of one action speaks against the others of its list as far as answers are exclusive: reward 0 with weight
ρ r / (k − 1) each, so that a long list says no more than a short one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from plaudit_models.bandit.features import (
    UNSURENESS_POWER,
    Float64,
    Floats,
    log_softmax,
    require_same_space,
    sureness,
    waves,
)
from plaudit_models.bandit.improvement import HeadSettings, Step, bounded, improved
from plaudit_models.bandit.own_evidence import weighted_gram
from plaudit_models.bandit.policy import divergences, probabilities
from plaudit_models.bandit.reward_model import (
    Bool,
    CorruptState,
    InvalidEvidence,
    RewardPosterior,
    RewardPrior,
    half_of,
    load_with_metadata,
    solved,
    whole_of,
)

LEAST_FADE: Final = 0.3
"""Pair features count for at least this share where the base model is sure."""

_GRAM: Final = "gram"
_TARGET: Final = "target"
_WEIGHT: Final = "weight"
_SPACE: Final = "space"
_SETTINGS: Final = "settings"
_FORMER_TEXT_SCORER_DIGEST: Final = "candidate_digest"
"""Key of ``text_scorer_digest`` in files written before 0.1.0."""


@dataclass(frozen=True, slots=True)
class DynamicActionSpace:
    """Which φ, of which trunk, and what praise of one action says of the others: as FeatureSpace for fixed actions.

    Attributes:
        trunk_digest: of the trunk that made the embeddings.
        text_scorer_digest: of the graph that made the vectors.
        embedding_size: d.
        pair_features: m, even; 0 leaves them out.
        exclusivity: ρ in [0, 1], how much praise of one action speaks against all others of its list together, as a
            share of an event.
    """

    trunk_digest: str
    text_scorer_digest: str
    embedding_size: int
    pair_features: int = 64
    exclusivity: float = 0.0

    def __post_init__(self) -> None:
        sizes_fit = self.embedding_size >= 1 and self.pair_features >= 0 and self.pair_features % 2 == 0
        if not (sizes_fit and 0.0 <= self.exclusivity <= 1.0):
            raise ValueError(
                f"{self}: needs embedding_size ≥ 1, an even number of pair_features ≥ 0 and exclusivity in [0, 1]"
            )

    @property
    def n_features(self) -> int:
        return self.pair_features + 2


@dataclass(frozen=True, slots=True, eq=False)
class ActionList:
    """One request: a context and what it may be answered with.

    Attributes:
        embedding: e, shape ``[d]``.
        vectors: g, shape ``[k, d]``.
        base_logits: shape ``[k]``.
    """

    embedding: Floats
    vectors: Floats
    base_logits: Floats


def dynamic_action_features(space: DynamicActionSpace, listed: ActionList) -> Float64:
    """φ of every action of the list, shape ``[k, f]``.

    Raises:
        ValueError: a shape is not the space's, the list is empty, or a value is not finite.
    """
    k, d = len(listed.base_logits), space.embedding_size
    for name, values, shape in (
        ("base_logits", listed.base_logits, (k,)),
        ("embedding", listed.embedding, (d,)),
        ("vectors", listed.vectors, (k, d)),
    ):
        if values.shape != shape:
            raise ValueError(f"{name}: shape {values.shape} is not {shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: holds a value that is not finite; leave that event out")
    if k == 0:
        raise ValueError("base_logits: the list is empty")
    blocks = [np.exp(_log_base(listed))[:, None]]
    m = space.pair_features
    if m:
        fade = max((1.0 - _sureness(listed)) ** UNSURENESS_POWER, LEAST_FADE)
        product = listed.embedding.astype(np.float64) * listed.vectors
        blocks.append(fade * np.sqrt(2.0 / m) * waves(product, m))
    blocks.append(np.ones((k, 1)))
    return np.concatenate(blocks, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class DynamicActionEvidence:
    """Feedback on the dynamic actions of one request as evidence.

    Attributes:
        space: of ``features``.
        features: φ of the actions that something is said or implied of, shape ``[n, f]``.
        rewards: in [0, 1], shape ``[n]``.
        weights: ≥ 0, shape ``[n]``; 1 is one ordinary event.
        explicit_weight: Σ of the weights without what is only implied.
    """

    space: DynamicActionSpace
    features: Float64
    rewards: Float64
    weights: Float64
    explicit_weight: float


def evidence_of_list(
    space: DynamicActionSpace, listed: ActionList, rewards: Floats, known_mask: Bool, weight: float = 1.0
) -> DynamicActionEvidence:
    """One label of the dynamic actions of a request.

    A thumb speaks of one, a correction of all, a preference of two (with the targets of reward_model.py).

    Args:
        rewards: shape ``[k]``, in [0, 1] where ``known_mask`` is True, ignored elsewhere.
        known_mask: shape ``[k]``, True where something is said of the action.
        weight: of the label.

    Raises:
        InvalidEvidence: any of the above does not hold.
        ValueError: as :func:`dynamic_action_features`.
    """
    phi = dynamic_action_features(space, listed)
    k = len(phi)
    for name, array in (("rewards", rewards), ("known_mask", known_mask)):
        if array.shape != (k,):
            raise InvalidEvidence(f"{name}: shape {array.shape} is not ({k},)")
    known_rewards = np.where(known_mask, rewards, 0.0).astype(np.float64)
    if not ((known_rewards >= 0.0) & (known_rewards <= 1.0)).all():  # False for NaN
        raise InvalidEvidence(f"rewards: {known_rewards} is not in [0, 1]")
    if not 0.0 <= weight < np.inf:
        raise InvalidEvidence(f"weight: {weight} is not finite and ≥ 0")
    n_known = int(known_mask.sum())
    implied = space.exclusivity * known_rewards.sum() / (k - 1) if n_known == 1 and k > 1 else 0.0
    weights = weight * np.where(known_mask, 1.0, implied)
    rows = weights > 0.0
    return DynamicActionEvidence(space, phi[rows], known_rewards[rows], weights[rows], weight * n_known)


@dataclass(frozen=True, slots=True, eq=False)
class DynamicActionState:
    """Everything learned about dynamic actions, as sums over evidence; immutable, every change is a new state.

    Attributes:
        space: the feature space of the sums.
        gram: A, shape ``[f, f]``.
        target: b, shape ``[f]``.
        weight: Σ w of what was said, without what that implies.
    """

    space: DynamicActionSpace
    gram: Float64
    target: Float64
    weight: float

    def add(self, evidence: Iterable[DynamicActionEvidence]) -> DynamicActionState:
        """Raises FeatureMismatch if some is of another feature space."""
        return self._with(evidence, sign=1.0)

    def subtract(self, evidence: Iterable[DynamicActionEvidence]) -> DynamicActionState:
        """Undo :meth:`add` of the same evidence. Raises FeatureMismatch as it does."""
        return self._with(evidence, sign=-1.0)

    def towards(self, other: DynamicActionState, share: float) -> DynamicActionState:
        """State at ``share`` of the way to ``other``: 0 is this one, 1 the other. Raises FeatureMismatch."""
        require_same_space(self.space, other.space)
        return DynamicActionState(
            self.space,
            self.gram + share * (other.gram - self.gram),
            self.target + share * (other.target - self.target),
            self.weight + share * (other.weight - self.weight),
        )

    def to_bytes(self) -> bytes:
        """Safetensors; :func:`dynamic_action_state_from_bytes` is its inverse."""
        return bytes(save(_tensors(self), metadata=_metadata(self)))

    def _with(self, evidence: Iterable[DynamicActionEvidence], sign: float) -> DynamicActionState:
        gram, target, weight = self.gram.copy(), self.target.copy(), self.weight
        for each in evidence:
            require_same_space(self.space, each.space)
            gram += sign * weighted_gram(each.features, each.weights)
            target += sign * ((each.weights * each.rewards) @ each.features)
            weight += sign * each.explicit_weight
        return DynamicActionState(self.space, gram, target, weight)


def empty_dynamic_action_state(space: DynamicActionSpace) -> DynamicActionState:
    """No evidence."""
    f = space.n_features
    return DynamicActionState(space, np.zeros((f, f)), np.zeros(f), 0.0)


def dynamic_action_state_from_bytes(raw: bytes) -> DynamicActionState:
    """Raises CorruptState if the bytes are not the state of a dynamic action head."""
    return _read(raw)[0]


@lru_cache(maxsize=4)
def dynamic_action_posterior(state: DynamicActionState, prior: RewardPrior) -> RewardPosterior:
    """Posterior of the one ridge (a = 1), as in :mod:`plaudit_models.bandit.reward_model`; the latest are cached."""
    f = state.space.n_features
    precision = np.full((1, f), prior.precision)
    precision[0, 1 : f - 1] = prior.embedding_precision
    precision[0, 0] = prior.own_precision
    information = state.target[None].copy()
    information[0, 0] += prior.own_precision
    return solved(state.gram[None], information, precision)


def expected_rewards(state: DynamicActionState, prior: RewardPrior, listed: ActionList) -> tuple[Float64, Float64]:
    """q, and how much of what could be known is known in [0, 1], of every action, both ``[k]``.

    Raises:
        ValueError: as :func:`dynamic_action_features`.
    """
    belief = dynamic_action_posterior(state, prior)
    phi = dynamic_action_features(state.space, listed)
    q, variance = belief.predict(phi)
    known = np.clip(1.0 - variance / belief.prior_variance(phi), 0.0, 1.0)
    return q[:, 0], known[:, 0]


def cautious_rewards(
    state: DynamicActionState, prior: RewardPrior, listed: ActionList, pessimism: float = 0.0
) -> Float64:
    """q − κ·σ of every action, ``[k]``: the reward model over context and text. Raises as
    :func:`dynamic_action_features`.
    """
    q, variance = dynamic_action_posterior(state, prior).predict(dynamic_action_features(state.space, listed))
    rewards: Float64 = (q - pessimism * np.sqrt(variance))[:, 0]
    return rewards


@dataclass(frozen=True, slots=True, eq=False)
class DynamicActionHead:
    """Head that scores the dynamic actions of a request.

    Attributes:
        settings: how boldly it follows the evidence.
        state: the evidence.
    """

    settings: HeadSettings
    state: DynamicActionState
    _belief: RewardPosterior = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_belief", dynamic_action_posterior(self.state, self.settings.prior))

    def scores(self, embedding: Floats, vectors: Floats, base_logits: Floats) -> Float64:
        """Scores of :mod:`plaudit_models.bandit.improvement` over the list.

        Args:
            embedding: shape ``[d]``.
            vectors: shape ``[k, d]``, k ≥ 1.
            base_logits: shape ``[k]``.

        Returns:
            Unnormalised log-probabilities, shape ``[k]``; log softmax(base_logits) exactly where there is no evidence.

        Raises:
            ValueError: as :func:`dynamic_action_features`.
        """
        listed = ActionList(embedding, vectors, base_logits)
        phi = dynamic_action_features(self.state.space, listed)
        log_base = _log_base(listed)
        if self.state.weight == 0.0 or len(phi) == 1:
            return log_base
        q, variance = self._belief.predict(phi)
        scores: Float64 = improved(
            self.settings,
            log_base[None],
            np.array([[_sureness(listed)]]),
            q.T,
            variance.T,
            self._belief.prior_variance(phi).T,
        )[0]
        return scores

    def scores_in(self, embeddings: Floats, vectors: Floats) -> Float64:
        """Scores of one list in each of b contexts, ``[b, k]``.

        Args:
            embeddings: shape ``[b, d]``, b ≥ 1.
            vectors: shape ``[k, d]``, k ≥ 1.
        """
        return np.stack([self.scores(embedding, vectors, vectors @ embedding) for embedding in embeddings])

    def probabilities(self, listed: ActionList, floor: float) -> Float64:
        """Probabilities that are served, shape ``[k]``; ``floor`` as in
        :func:`plaudit_models.bandit.policy.probabilities`.
        """
        return served_over(self.scores(listed.embedding, listed.vectors, listed.base_logits), floor)

    def to_bytes(self) -> bytes:
        """Settings and state as safetensors; :func:`dynamic_action_head_from_bytes` is its inverse."""
        metadata = _metadata(self.state) | {_SETTINGS: json.dumps(asdict(self.settings), sort_keys=True)}
        return bytes(save(_tensors(self.state), metadata=metadata))


def dynamic_action_head_from_bytes(raw: bytes) -> DynamicActionHead:
    """Raises CorruptState if the bytes are not a dynamic action head."""
    state, metadata = _read(raw)
    try:
        settings: dict[str, Any] = json.loads(metadata[_SETTINGS])
        return DynamicActionHead(HeadSettings(prior=RewardPrior(**settings.pop("prior")), **settings), state)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptState(f"not a dynamic action head: {type(error).__name__}: {error}") from error


def served_over(scores: Floats, floor: float) -> Float64:
    """Scores of one list → the probabilities that are served, both ``[k]``."""
    probs: Float64 = probabilities(scores[None], np.ones((1, len(scores)), np.bool_), floor)[0]
    return probs


def bounded_dynamic_step(
    settings: HeadSettings,
    served: DynamicActionState,
    latest: DynamicActionState,
    recent: Sequence[ActionList],
    *,
    floor: float,
    max_kl: float,
) -> Step[DynamicActionState]:
    """Bounded step as in :func:`plaudit_models.bandit.improvement.bounded_step`, over one or more recent lists.

    Raises:
        FeatureMismatch: the states are of different feature spaces.
        ValueError: there is no recent list, or floor or max_kl is not positive.
    """
    if not recent:
        raise ValueError("recent: at least one list is needed to measure how far a step goes")
    if not 0.0 < floor <= 1.0 or max_kl <= 0.0:
        raise ValueError(f"floor {floor} must be in (0, 1] and max_kl {max_kl} positive")

    def serve(state: DynamicActionState) -> list[Float64]:
        head = DynamicActionHead(settings, state)
        return [head.probabilities(listed, floor) for listed in recent]

    before = serve(served)
    counts = np.array([_sureness(listed) for listed in recent])

    def moved(state: DynamicActionState) -> tuple[float, float]:
        kl = divergences(serve(state), before)
        return float((counts * kl).mean()), float(kl.mean())

    return bounded(served, latest, moved, max_kl)


def _log_base(listed: ActionList) -> Float64:
    log_base: Float64 = log_softmax(listed.base_logits[None])[0]
    return log_base


def _sureness(listed: ActionList) -> float:
    """c(x) over the list; a list of one leaves nothing to be unsure of."""
    return float(sureness(listed.base_logits[None])[0, 0]) if len(listed.base_logits) > 1 else 1.0


def _tensors(state: DynamicActionState) -> dict[str, Float64]:
    return {_GRAM: half_of(state.gram[None])[0], _TARGET: state.target, _WEIGHT: np.array([state.weight])}


def _metadata(state: DynamicActionState) -> dict[str, str]:
    return {_SPACE: json.dumps(asdict(state.space), sort_keys=True)}


def _read(raw: bytes) -> tuple[DynamicActionState, dict[str, str]]:
    try:
        tensors, metadata = load_with_metadata(raw)
        fields = json.loads(metadata[_SPACE])
        if _FORMER_TEXT_SCORER_DIGEST in fields:
            fields["text_scorer_digest"] = fields.pop(_FORMER_TEXT_SCORER_DIGEST)
        space = DynamicActionSpace(**fields)
        half, target, weight = tensors[_GRAM], tensors[_TARGET], tensors[_WEIGHT]
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CorruptState(f"not the state of a dynamic action head: {type(error).__name__}: {error}") from error
    f = space.n_features
    if (half.shape, target.shape, weight.shape) != ((f * (f + 1) // 2,), (f,), (1,)):
        raise CorruptState(f"gram of shape {half.shape} does not fit {f} features")
    return DynamicActionState(space, whole_of(half[None], f)[0], target, float(weight[0])), metadata
