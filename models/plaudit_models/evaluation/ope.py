"""Off-policy evaluation: what another policy would have earned on decisions that are already logged.

Knows nothing about models or versions. All functions are pure.

Notation:
    n: number of logged decisions, a: number of actions
    w_i = π(a_i | x_i) / p_i, the importance weight of decision i, clipped at ``max_weight``
    τ: the switch's threshold

Estimators (Dudík, Langford, Li: Doubly Robust Policy Evaluation and Learning, 2011; SNIPS: Swaminathan, Joachims: The
Self-Normalized Estimator for Counterfactual Learning, 2015):
    DM     mean of Σ_k π(k | x_i) q̂(x_i, k)
    IPS    mean of w_i r_i
    SNIPS  Σ w_i r_i / Σ w_i
    DR     mean of Σ_k π(k | x_i) q̂(x_i, k) + w_i (r_i − q̂(x_i, a_i))
    SWITCH mean of w_i r_i 1(w_i ≤ τ) + Σ_k π(k | x_i) q̂(x_i, k) 1(π(k | x_i)/p(k | x_i) > τ)
    SWITCH-DR  DR with w_i = 0 where w_i > τ
(SWITCH: Wang, Agarwal, Dudík: Optimal and Adaptive Off-policy Evaluation in Contextual Bandits, 2017, section 4.)
IPS and DR are unbiased if the logged propensities are right, no weight is clipped and, for DR, q̂ has not seen the
decisions it is used on. For DR any such q̂ will do, which :func:`dr_outcomes_below` uses to keep outcomes bounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit_models.bandit.features import Float64, Floats
from plaudit_models.evaluation.e_process import EProcess, open_e_process

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's value. ``standard_error`` is of the mean over decisions, and infinite for fewer than two."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True, eq=False)
class LoggedRounds:
    """Logged decisions with what came of them.

    Attributes:
        reward: in [0, 1], shape ``[n]``.
        action: index of the action that was taken, shape ``[n]``.
        pscore: its logged propensity in (0, 1], shape ``[n]``.

    Raises:
        ValueError: any of the above does not hold, or n is 0.
    """

    reward: Float64
    action: Int64
    pscore: Float64

    def __post_init__(self) -> None:
        n = len(self.reward)
        if n == 0 or not self.reward.shape == self.action.shape == self.pscore.shape == (n,):
            raise ValueError(
                f"reward {self.reward.shape}, action {self.action.shape} and pscore {self.pscore.shape} must all be "
                f"[n] with n ≥ 1"
            )
        _require_all("reward", self.reward, (self.reward >= 0.0) & (self.reward <= 1.0), "in [0, 1]")
        _require_all("pscore", self.pscore, (self.pscore > 0.0) & (self.pscore <= 1.0), "in (0, 1]")
        _require_all("action", self.action, self.action >= 0, "an action index")


def importance_weights(log: LoggedRounds, evaluation_probs: Floats, max_weight: float = math.inf) -> Float64:
    """w, shape ``[n]``, for the policy whose probabilities are ``evaluation_probs`` ``[n, a]``."""
    _require_probs(log, evaluation_probs)
    taken = evaluation_probs[np.arange(len(log.action)), log.action]
    weights: Float64 = np.minimum(taken / log.pscore, max_weight)
    return weights


def effective_sample_size(weights: Floats) -> float:
    """(Σ w)² / Σ w²: how many equally weighted decisions are worth as much (Kish 1965). 0 if all weights are 0."""
    square_sum = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / square_sum if square_sum > 0.0 else 0.0


def dm_outcomes(evaluation_probs: Floats, q_hat: Floats) -> Float64:
    """Σ_k π(k | x_i) q̂(x_i, k) per decision, shape ``[n]``; both inputs ``[n, a]``."""
    outcomes: Float64 = (evaluation_probs * q_hat).sum(axis=1)
    return outcomes


def dr_outcomes(log: LoggedRounds, evaluation_probs: Floats, q_hat: Floats, max_weight: float = math.inf) -> Float64:
    """Doubly robust pseudo-outcome of each decision, shape ``[n]``; their mean is the DR estimate.

    Args:
        log: n decisions.
        evaluation_probs: π, shape ``[n, a]``.
        q_hat: predicted rewards, shape ``[n, a]``.
        max_weight: clips w.
    """
    if q_hat.shape != evaluation_probs.shape:
        raise ValueError(f"q_hat {q_hat.shape} and evaluation_probs {evaluation_probs.shape} must both be [n, a]")
    weights = importance_weights(log, evaluation_probs, max_weight)
    residual = log.reward - q_hat[np.arange(len(log.action)), log.action]
    return dm_outcomes(evaluation_probs, q_hat) + weights * residual


def dr_outcomes_below(
    log: LoggedRounds, evaluation_probs: Floats, q_hat: Floats, logging_probs: Floats, slack: float
) -> Float64:
    """Doubly robust pseudo-outcomes that are unbiased and never below −slack, shape ``[n]``.

    What can drag a DR outcome far down is a large weight on a prediction that did not come true. So q̂(x, k) is lowered
    to ``slack``·p(k | x)/π(k | x) where that is less, for all actions alike (Waudby-Smith et al.: Anytime-valid
    off-policy inference for contextual bandits, 2024). Upwards the outcomes reach 1 + the largest weight.

    Args:
        log: n decisions.
        evaluation_probs: π, shape ``[n, a]``.
        q_hat: predicted rewards in [0, 1], shape ``[n, a]``.
        logging_probs: p, shape ``[n, a]``. If they are not quite those that logged, outcomes stay unbiased but may fall
            below −slack.
        slack: > 0; larger keeps more of q̂.
    """
    ceiling = slack * logging_probs / np.maximum(evaluation_probs, np.finfo(np.float64).tiny)
    return dr_outcomes(log, evaluation_probs, np.minimum(q_hat, ceiling))


def dr_outcomes_above(
    log: LoggedRounds, evaluation_probs: Floats, q_hat: Floats, logging_probs: Floats, slack: float
) -> Float64:
    """The mirror image of :func:`dr_outcomes_below`: unbiased and never above 1 + slack."""
    complement = LoggedRounds(1.0 - log.reward, log.action, log.pscore)
    return 1.0 - dr_outcomes_below(complement, evaluation_probs, 1.0 - q_hat, logging_probs, slack)


def dm(evaluation_probs: Floats, q_hat: Floats) -> Estimate:
    """Direct method: believes the reward model."""
    return _mean(dm_outcomes(evaluation_probs, q_hat))


def ips(log: LoggedRounds, evaluation_probs: Floats, max_weight: float = math.inf) -> Estimate:
    """Inverse propensity scoring: believes the propensities."""
    return _mean(importance_weights(log, evaluation_probs, max_weight) * log.reward)


def snips(log: LoggedRounds, evaluation_probs: Floats, max_weight: float = math.inf) -> Estimate:
    """Self-normalised IPS; standard error by the delta method. Raises ValueError if all weights are 0."""
    weights = importance_weights(log, evaluation_probs, max_weight)
    if not weights.any():
        raise ValueError("evaluation_probs: the policy never takes an action that was logged; nothing to estimate from")
    value = float((weights * log.reward).sum() / weights.sum())
    spread = _mean(weights * (log.reward - value)).standard_error
    return Estimate(value, spread / float(weights.mean()))


def dr(log: LoggedRounds, evaluation_probs: Floats, q_hat: Floats, max_weight: float = math.inf) -> Estimate:
    """Doubly robust: right if either the propensities or the reward model is."""
    return _mean(dr_outcomes(log, evaluation_probs, q_hat, max_weight))


def switch(
    log: LoggedRounds, evaluation_probs: Floats, q_hat: Floats, logging_probs: Floats, threshold: float
) -> Estimate:
    """SWITCH: believes the propensities where weights are small and the reward model where they are large.

    Args:
        log: n decisions.
        evaluation_probs: π, shape ``[n, a]``.
        q_hat: predicted rewards, shape ``[n, a]``.
        logging_probs: p, shape ``[n, a]``.
        threshold: τ ≥ 0; 0 is the direct method, infinity IPS.
    """
    weights = _below(importance_weights(log, evaluation_probs), threshold)
    far = evaluation_probs > threshold * logging_probs
    return _mean(weights * log.reward + dm_outcomes(evaluation_probs * far, q_hat))


def switch_dr(log: LoggedRounds, evaluation_probs: Floats, q_hat: Floats, threshold: float) -> Estimate:
    """Doubly robust where w ≤ ``threshold``, the direct method elsewhere: 0 is DM, infinity DR."""
    weights = _below(importance_weights(log, evaluation_probs), threshold)
    residual = log.reward - q_hat[np.arange(len(log.action)), log.action]
    return _mean(dm_outcomes(evaluation_probs, q_hat) + weights * residual)


@dataclass(frozen=True, slots=True, eq=False)
class ConfidenceSequence:
    """An interval for a policy's value that may be looked at after every decision; immutable.

    At all looks at once the value is within ``interval(alpha)`` with probability 1 − α (Waudby-Smith et al.:
    Anytime-valid off-policy inference for contextual bandits, 2024). An interval's ends are of :data:`VALUES`.

    Attributes:
        slack: as in :func:`dr_outcomes_below`.
        low: bets that the value is more.
        high: bets that one minus the value is more.
    """

    slack: float
    low: EProcess
    high: EProcess

    def update(
        self, log: LoggedRounds, evaluation_probs: Floats, q_hat: Floats, logging_probs: Floats
    ) -> ConfidenceSequence:
        """Take in further decisions, then look once. ``q_hat`` must not have learned from them; shapes ``[n, a]``."""
        q_hat = np.clip(q_hat, 0.0, 1.0)
        below = dr_outcomes_below(log, evaluation_probs, q_hat, logging_probs, self.slack)
        above = dr_outcomes_above(log, evaluation_probs, q_hat, logging_probs, self.slack)
        return ConfidenceSequence(
            self.slack,
            self.low.update(np.maximum(below, -self.slack)),
            self.high.update(np.maximum(1.0 - above, -self.slack)),
        )

    def interval(self, alpha: float) -> tuple[float, float]:
        """(lower, upper), each with half of ``alpha``; (0, 1) before anything is known."""
        return max(0.0, self.low.lower_bound(alpha / 2.0)), min(1.0, 1.0 - self.high.lower_bound(alpha / 2.0))


VALUES: Final = np.union1d(np.geomspace(1e-4, 0.5, 120), 1.0 - np.geomspace(1e-4, 0.5, 120))
"""Values of a policy that a confidence sequence can tell apart: 7 % apart near 0 and near 1."""


def open_sequence(slack: float = 1.0) -> ConfidenceSequence:
    """Nothing seen. A small ``slack`` > 0 makes bolder bets, a large one keeps more of q̂."""
    return ConfidenceSequence(slack, open_e_process(slack, VALUES), open_e_process(slack, VALUES))


def _below(weights: Float64, threshold: float) -> Float64:
    return np.where(weights <= threshold, weights, 0.0)


def _mean(outcomes: Float64) -> Estimate:
    n = len(outcomes)
    error = float(outcomes.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(float(outcomes.mean()), error)


def _require_probs(log: LoggedRounds, probs: Floats) -> None:
    if probs.ndim != 2 or len(probs) != len(log.action) or int(log.action.max()) >= probs.shape[1]:
        raise ValueError(
            f"evaluation_probs: shape {probs.shape} does not fit {len(log.action)} decisions with actions up to "
            f"{int(log.action.max())}"
        )


def _require_all(name: str, values: npt.NDArray[np.generic], good_mask: npt.NDArray[np.bool_], what: str) -> None:
    if not good_mask.all():
        row = int(np.flatnonzero(~good_mask)[0])
        raise ValueError(f"{name}[{row}]: {values[row]} is not {what}")
