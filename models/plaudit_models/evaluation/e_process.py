"""Evidence about a mean that may be looked at after every event: betting e-processes.

Knows nothing about policies. If "the mean is at most m" is true, no bet on more can be expected to win; so a
bettor's wealth K is evidence against it. A true claim ever lets K exceed 1/α with probability at most α, no matter how
often one looks (Ville's inequality).

    K_t(m) = Σ_j share_j · Π_{i ≤ t} (1 + λ_j·(v_i − m)),   0 ≤ λ_j < 1 / (bound + 1),   v_i ≥ −bound,   m ≤ 1

Waudby-Smith, Ramdas: Estimating means of bounded random variables by betting, 2024, section 4. Wealth divided among
constant bets has nothing to tune and does not depend on the order within a batch. For off-policy values:
Karampatziakis, Mineiro, Ramdas: Off-policy confidence sequences, 2021; Waudby-Smith et al.: Anytime-valid off-policy
inference for contextual bandits, 2024.

The guarantee holds if each value's mean, given everything before it, is at most m. So a value must be computed with
what was known before it: a policy or reward model that changes on the way may be used only for events it has not seen.

Notation:
    n: number of values, g: number of claimed means, j: number of bets
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

import numpy as np

from plaudit_models.bandit.features import Float64, Floats

N_BETS: Final = 8
BOLDEST: Final = 0.9
"""The boldest bet risks this share of its wealth at once; each further bet risks half of the one before and starts with
half as much, because small effects leave time to make up for a small start."""

_FACTORS_AT_ONCE: Final = 16
"""A product of this many factors fits a float as long as each is below 10¹⁸."""
LOG_CEILING: Final = 700.0
"""exp of more does not fit a float."""


@dataclass(frozen=True, slots=True, eq=False)
class EProcess:
    """Wealth of the bettors against "the mean is at most m", for each m of ``means``.

    Attributes:
        bound: no value is below −bound. Values far above 0 are welcome: the bettors win on them.
        means: the claims m in [−1, 1], ascending, shape ``[g]``.
        log_wealth: shape ``[g, j]``.
        best: the largest log K(m) at any look so far, shape ``[g]``.
    """

    bound: float
    means: Float64
    log_wealth: Float64
    best: Float64

    def update(self, values: Floats) -> EProcess:
        """E-process after n further values, shape ``[n]``, looked at once. Raises ValueError if one is below −bound."""
        bad = np.flatnonzero(~((values >= -self.bound - 1e-9) & (values < np.inf)))
        if bad.size:
            raise ValueError(f"values[{bad[0]}]: {values[bad[0]]} is not finite and at least -{self.bound}")
        log_wealth = self.log_wealth + total_log_gains(values, self.means, self.bound)
        return replace(self, log_wealth=log_wealth, best=np.maximum(self.best, log_total(log_wealth)))

    def e_value(self, claim: int) -> float:
        """Strongest evidence so far against ``means[claim]``; above 1/α it refutes the claim at level α."""
        return math.exp(min(float(self.best[claim]), LOG_CEILING))

    def lower_bound(self, alpha: float) -> float:
        """Bound below the mean at every look at once, with probability 1 − α; −1 if nothing is refuted yet."""
        standing = np.flatnonzero(self.best < -math.log(alpha))
        first = int(standing[0]) if standing.size else len(self.means)
        return float(self.means[first - 1]) if first > 0 else -1.0


def open_e_process(bound: float, means: Floats) -> EProcess:
    """E-process before the first value: each bettor has wealth 1."""
    if not bound > 0.0 or (np.diff(means) <= 0.0).any() or np.abs(means).max() > 1.0:
        raise ValueError(f"bound {bound} must be positive and means ascending within [-1, 1]")
    return EProcess(bound, np.asarray(means, dtype=np.float64), np.zeros((len(means), N_BETS)), np.zeros(len(means)))


def as_json(value: Any) -> Any:
    """JSON-ready copy of evidence: dataclasses become objects of their fields; tuples and arrays become lists."""
    if is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [as_json(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def e_process_from_dict(raw: Mapping[str, Any]) -> EProcess:
    """Inverse of :func:`as_json`."""
    return EProcess(raw["bound"], np.array(raw["means"]), np.array(raw["log_wealth"]), np.array(raw["best"]))


def log_gains(values: Floats, means: Floats, bound: float) -> Float64:
    """log(1 + λ_j (v − m_g)) for each value, claim and bet, shape ``[..., g, j]`` for values of shape ``[...]``."""
    gains: Float64 = np.log1p(_bet_sizes(bound) * (values[..., None, None] - means[:, None]))
    return gains


def total_log_gains(values: Floats, means: Floats, bound: float) -> Float64:
    """Σ over the values of :func:`log_gains`, shape ``[g, j]``, at a seventh of its cost: logarithms of products."""
    bets = _bet_sizes(bound)
    stakes = np.tile(bets, len(means))
    rest = (1.0 - bets * means[:, None]).ravel()
    total, factor = np.zeros(len(rest)), np.empty(len(rest))
    for start in range(0, len(values), _FACTORS_AT_ONCE):
        product = np.ones(len(rest))
        for value in values[start : start + _FACTORS_AT_ONCE].tolist():
            np.multiply(stakes, value, out=factor)
            factor += rest
            product *= factor
        total += np.log(product)
    return total.reshape(len(means), N_BETS)


def _bet_sizes(bound: float) -> Float64:
    bets: Float64 = np.ldexp(BOLDEST / (bound + 1.0), -np.arange(N_BETS))
    return bets


def log_total(log_wealth: Float64) -> Float64:
    """log K, the total wealth of all bettors, from the wealth of each that began with 1; shape ``[..., j]`` →
    ``[...]``.
    """
    shares = 0.5 ** np.arange(1, N_BETS + 1)
    top = log_wealth.max(axis=-1, keepdims=True)
    total: Float64 = top[..., 0] + np.log(np.exp(log_wealth - top) @ (shares / shares.sum()))
    return total
