"""Policy improvement on the reward model's posterior: the maths of the head, in closed form.

Knows nothing about graphs, events or users. :mod:`plaudit_models.bandit.head` writes the same maths as an ONNX graph.

Notation:
    b: batch size, a: number of actions, d: embedding size

The policy that maximises E[r] − β·KL(π ‖ π_ref) over the actions is π ∝ π_ref·exp(r/β) (Rafailov et al., Direct
Preference Optimization, 2023, eq. 4). Here, with P the base probabilities, q and σ² the reward model's posterior:

    c(x)         = 1 − H(P)/log a                        how sure the base policy is: 0 not at all, 1 entirely
    g(x)         = 1 − Σ_k P_k σ²(x, k) / σ₀²(x, k)      how much feedback tells about x: 0 nothing, 1 everything
    π_ref(x, k)  = (1 − η g²)·P_k + η g² / a             the anchor, loosened where feedback knows better
    q̂(x, k)      = clip(q(x, k), reward_low, 1)
    content(x)   = Σ_k P_k·clip(q̂(x, k) + τ c(x) σ(x, k), 0, 1)   what the base policy may well be worth
    room(x)      = 1 − max(content(x), max_k q̂(x, k))    the least that x has to gain
    agree(x)     = clip(Σ_k P_k q̂(x, k) / Σ_k P_k², 0, 1)   the base policy's worth, of what it makes of itself
    β(x)         = β·(1 + ν·4c(x)(1 − c(x))·agree(x)²)   the price of a nat of divergence
    score(x, k)  = log π_ref(x, k) + g(x)·(q̂(x, k) + κ·σ(x, k)·room(x)²) / β(x)

Where nothing is known of x, the policy is the base policy exactly. Optimism (κσ) is spent in proportion to what can be
gained, so a context whose users are content, or may be for all that a few thumbs say, is not explored, and one whose
answer they surely dislike is explored until an answer pleases. The square spends it early: where nothing pleases it
costs nothing, and where an answer pleases fairly well a doubtful one is not worth the try.

Divergence is dearer (ν) where the base policy is half sure and users are as content as it expects. There it shares its
answers out among users who want different things, and going over to the likelier answer for good gains few and turns
the others out. Where it is sure or knows nothing (c near 1 or 0), or users disagree with it, the price is β.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, Self, TypeVar

import numpy as np

from plaudit_models.bandit.features import Float64, Floats, features, log_softmax, sureness
from plaudit_models.bandit.policy import divergence, probabilities
from plaudit_models.bandit.posterior import posterior
from plaudit_models.bandit.reward_model import RewardPrior, RewardState

TINY: Final = 1e-8
"""No action's share of the anchor is less than this: below it, float32 cannot tell g from 0."""

BISECTIONS: Final = 16
"""The bounded step is found to 2⁻¹⁶ of the way: from no evidence, a few hundredths of a thumb out of thousands."""

AIM: Final = 0.87
"""Share of what a step may move the policy by that is aimed at: the middle of what is long enough."""

NEAR: Final = 0.75
"""A step is long enough when it moves the policy by this share of what it may."""


class Sums(Protocol):
    """Evidence as sums: every point between two of them is evidence too."""

    def towards(self, other: Self, share: float) -> Self: ...


State = TypeVar("State", bound=Sums)


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """Settings of a head: how boldly it follows the reward model.

    Attributes:
        temperature: β > 0, the price of a nat of divergence from the reference, in reward.
        optimism: κ ≥ 0, how many posterior standard deviations an untried action is given for free.
        benefit_of_doubt: τ ≥ 0, how many posterior standard deviations the base policy is given, where it is sure,
            before other answers are explored, so that a run of wrong thumbs does not set off a search.
        reference_mix: η in [0, 1), how far the anchor is loosened towards uniform where feedback knows better. Without
            it an action the base model thinks impossible could never win.
        caution: ν ≥ 0, how many times dearer divergence is where the base policy is half sure and users agree with it.
        reward_low: ≤ 0, the lowest expected reward believed. Below 0 because dislike of an action elsewhere is a hint
            here; bounded because it is no more than a hint.
        prior: of the reward model.
    """

    temperature: float = 0.03
    optimism: float = 3.0
    benefit_of_doubt: float = 0.7
    reference_mix: float = 0.1
    caution: float = 0.0
    reward_low: float = -0.2
    prior: RewardPrior = field(default_factory=RewardPrior)

    def __post_init__(self) -> None:
        if not (
            self.temperature > 0.0
            and self.optimism >= 0.0
            and self.benefit_of_doubt >= 0.0
            and 0.0 <= self.reference_mix < 1.0
            and self.caution >= 0.0
            and self.reward_low <= 0.0
        ):
            raise ValueError(
                f"{self}: needs temperature > 0, optimism ≥ 0, benefit_of_doubt ≥ 0, 0 ≤ reference_mix < 1, "
                f"caution ≥ 0 and reward_low ≤ 0"
            )


def head_scores(settings: HeadSettings, state: RewardState, embedding: Floats, base_logits: Floats) -> Float64:
    """Scores of the notation above.

    Args:
        settings: see :class:`HeadSettings`.
        state: the reward model's evidence.
        embedding: shape ``[b, d]``.
        base_logits: shape ``[b, a]``.

    Returns:
        Unnormalised log-probabilities, shape ``[b, a]``, finite.
    """
    belief, phi = posterior(state, settings.prior), features(state.space, embedding, base_logits)
    q, variance = belief.predict(phi)
    return improved(
        settings, log_softmax(base_logits), sureness(base_logits), q, variance, belief.prior_variance(phi), least=TINY
    )


def improved(
    settings: HeadSettings,
    log_base: Float64,
    sure: Float64,
    q: Float64,
    variance: Float64,
    prior_variance: Float64,
    *,
    least: float = 0.0,
) -> Float64:
    """Scores of the notation above, from what is believed.

    Args:
        settings: see :class:`HeadSettings`.
        log_base: log P, shape ``[b, a]``.
        sure: c, shape ``[b, 1]``.
        q: shape ``[b, a]``.
        variance: σ², shape ``[b, a]``.
        prior_variance: σ₀², shape ``[b, a]``.
        least: no action's share of the anchor is less.

    Returns:
        Unnormalised log-probabilities, shape ``[b, a]``; exactly ``log_base`` where the variance is the prior's and
        ``least`` is 0.
    """
    base = np.exp(log_base)
    known = np.clip(1.0 - (base * variance / prior_variance).sum(axis=1, keepdims=True), 0.0, 1.0)
    loosened = settings.reference_mix * np.square(known)
    with np.errstate(divide="ignore"):  # where nothing is known and nothing is the least
        uniform = np.log(loosened / log_base.shape[1] + least)
    reference = np.logaddexp(np.log1p(-loosened) + log_base, uniform)
    believed = np.clip(q, settings.reward_low, 1.0)
    spread = np.sqrt(variance)
    at_best = np.clip(believed + settings.benefit_of_doubt * sure * spread, 0.0, 1.0)
    content = (base * at_best).sum(axis=1, keepdims=True)
    room = 1.0 - np.maximum(content, believed.max(axis=1, keepdims=True))
    optimistic = believed + settings.optimism * spread * np.square(room)
    worth = (base * believed).sum(axis=1, keepdims=True) / np.square(base).sum(axis=1, keepdims=True)
    half_sure = 4.0 * sure * (1.0 - sure)
    price = settings.temperature * (1.0 + settings.caution * half_sure * np.square(np.clip(worth, 0.0, 1.0)))
    scores: Float64 = reference + known * optimistic / price
    return scores


@dataclass(frozen=True, slots=True, eq=False)
class Step(Generic[State]):
    """Head refresh that keeps its distance.

    Attributes:
        state: the evidence to build the head from.
        share: how much of the way from the served to the latest evidence it goes; 1 means all of it.
        kl: mean c·KL(new ‖ served) over the recent contexts, in nats: what the bound counts.
        kl_all: mean KL(new ‖ served) over them, in nats.
    """

    state: State
    share: float
    kl: float
    kl_all: float


def bounded_step(
    settings: HeadSettings,
    served: RewardState,
    latest: RewardState,
    embedding: Floats,
    base_logits: Floats,
    *,
    floor: float,
    max_kl: float,
) -> Step[RewardState]:
    """Go from the served evidence towards the latest, as far as the policy moves by no more than ``max_kl``.

    The step is taken in the evidence, where every point between is itself a reward state: at share 0 the served policy
    stays as it is, and what is left out now is still in ``latest`` at the next refresh. The divergence is that of the
    probabilities that are served, floor included, with every action allowed. The bound counts it in proportion to how
    sure the base policy is of a context: where it answers at random, there is nothing that a step could spoil.

    Args:
        settings: see :class:`HeadSettings`.
        served: the evidence that the serving head was built from.
        latest: all evidence.
        embedding: of recent contexts, shape ``[b, d]``, b ≥ 1.
        base_logits: of the same, shape ``[b, a]``.
        floor: ε in (0, 1], the logged exploration floor; it must be positive for the divergence to be bounded.
        max_kl: largest mean c·KL(new ‖ served) over the recent contexts, in nats.

    Raises:
        FeatureMismatch: the states are of different feature spaces.
        ValueError: there is no recent context, or floor or max_kl is not positive.
    """
    if len(base_logits) == 0:
        raise ValueError("base_logits: at least one recent context is needed to measure how far a step goes")
    if not 0.0 < floor <= 1.0 or max_kl <= 0.0:
        raise ValueError(f"floor {floor} must be in (0, 1] and max_kl {max_kl} positive")
    everything_allowed = np.ones(base_logits.shape, dtype=np.bool_)

    def serve(state: RewardState) -> Float64:
        return probabilities(head_scores(settings, state, embedding, base_logits), everything_allowed, floor)

    before = serve(served)
    counts = sureness(base_logits)[:, 0]

    def divergences(state: RewardState) -> tuple[float, float]:
        """Divergences of a state's policy from the served one: what the bound counts, and all."""
        after = serve(state)
        kl = divergence(after, before)
        return float((counts * kl).mean()), float(kl.mean())

    return bounded(served, latest, divergences, max_kl)


def bounded(
    served: State, latest: State, divergences: Callable[[State], tuple[float, float]], max_kl: float
) -> Step[State]:
    """Longest step from ``served`` towards ``latest`` that the bound allows, found by bisection.

    Args:
        divergences: of a state's policy from the served one: what the bound counts, and all, in nats.
        max_kl: in nats.
    """
    kl, kl_all = divergences(latest)
    if kl <= max_kl:
        return Step(latest, 1.0, kl, kl_all)
    best = Step(served, 0.0, 0.0, 0.0)
    low, high, kl_low, kl_high = 0.0, 1.0, 0.0, kl
    for tried in range(BISECTIONS):
        # Every third time in the middle, so that the way is found however the divergence grows along it.
        middle = low == 0.0 or tried % 3 == 2
        share = _below(low, high, kl_high, max_kl) if middle else _where_due(low, high, kl_low, kl_high, max_kl)
        state = served.towards(latest, share)
        kl, kl_all = divergences(state)
        if kl > max_kl:
            high, kl_high = share, kl
            continue
        low, kl_low, best = share, kl, Step(state, share, kl, kl_all)
        if kl >= NEAR * max_kl:
            break
    return best


def _below(low: float, high: float, kl_high: float, max_kl: float) -> float:
    """Share that is well below the one known to be too large, or the middle of two by order of magnitude."""
    return math.sqrt(low * high) if low else high * (AIM * max_kl / kl_high) ** 2


def _where_due(low: float, high: float, kl_low: float, kl_high: float, max_kl: float) -> float:
    """Share at which the divergence is due to be as large as it may, if it grows like a power of the share."""
    if not 0.0 < kl_low < AIM * max_kl:
        return math.sqrt(low * high)
    slope = math.log(AIM * max_kl / kl_low) / math.log(kl_high / kl_low)
    due: float = low * (high / low) ** slope
    return due
