"""Calibration of predicted rewards: the reliability curve. Knows nothing about what predicted them.

Notation:
    n: predictions, c: bins that hold any
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Observed rewards by bin of the predicted reward.

    Attributes:
        predicted: mean prediction of each bin, ascending, ``[c]``.
        observed: mean reward of each bin, ``[c]``.
        count: predictions in each bin, ``[c]``.
    """

    predicted: Float64
    observed: Float64
    count: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error, mean |predicted − observed| over all predictions (Guo et al., On Calibration of
        Modern Neural Networks, 2017, eq. 3); NaN if there were none.
        """
        n = int(self.count.sum())
        return float(self.count @ np.abs(self.predicted - self.observed) / n) if n else float("nan")


def reliability(predicted: Float64, rewards: Float64, bins: int = 10) -> Reliability:
    """Reliability curve over bins of equal width.

    Args:
        predicted: expected rewards, clipped to [0, 1] here, ``[n]``.
        rewards: observed rewards in [0, 1], ``[n]``.
        bins: largest number of bins; empty ones are left out.

    Raises:
        ValueError: the shapes differ, a value is not finite, a reward is not in [0, 1], or there is no bin.
    """
    if predicted.ndim != 1 or predicted.shape != rewards.shape:
        raise ValueError(f"predicted {predicted.shape} and rewards {rewards.shape} must both be [n]")
    if bins < 1:
        raise ValueError(f"bins {bins} must be at least 1")
    if not np.isfinite(predicted).all():
        raise ValueError(f"predicted: row {np.flatnonzero(~np.isfinite(predicted))[0]} is not finite")
    outside = np.flatnonzero(~((rewards >= 0.0) & (rewards <= 1.0)))
    if outside.size:
        raise ValueError(f"rewards: row {outside[0]} holds {rewards[outside[0]]}, which is not in [0, 1]")
    clipped = np.clip(predicted, 0.0, 1.0)
    bin_of = np.minimum((clipped * bins).astype(np.int64), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    held = count > 0
    sums = [np.bincount(bin_of, weights=values, minlength=bins)[held] for values in (clipped, rewards)]
    return Reliability(sums[0] / count[held], sums[1] / count[held], count[held].astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Uncertainty:
    """Errors of predictions by bin of their uncertainty.

    Attributes:
        sigma: mean σ of each bin, ascending, ``[c]``.
        error: mean |reward − prediction| of each bin, ``[c]``.
        noise: what that would be if thumbs came up with exactly the predicted probability, mean 2q(1 − q), ``[c]``.
        count: predictions in each bin, ``[c]``.
    """

    sigma: Float64
    error: Float64
    noise: Float64
    count: npt.NDArray[np.int64]


def errors_by_uncertainty(sigma: Float64, predicted: Float64, rewards: Float64, bins: int = 4) -> Uncertainty:
    """Bins of equally many predictions, from the surest to the least sure.

    Args:
        sigma: standard deviation of each prediction, ``[n]``.
        predicted: q, expected rewards, ``[n]``.
        rewards: observed rewards in [0, 1], ``[n]``.
        bins: largest number of bins; none is empty.

    Raises:
        ValueError: the shapes differ, or there is no bin.
    """
    if not (sigma.ndim == 1 and sigma.shape == predicted.shape == rewards.shape):
        raise ValueError(
            f"sigma {sigma.shape}, predicted {predicted.shape} and rewards {rewards.shape} must all be [n]"
        )
    if bins < 1:
        raise ValueError(f"bins {bins} must be at least 1")
    parts = [rows for rows in np.array_split(np.argsort(sigma, kind="stable"), bins) if len(rows)]
    error, noise = np.abs(rewards - predicted), 2.0 * predicted * (1.0 - predicted)
    sigmas, errors, noises = (np.array([each[rows].mean() for rows in parts]) for each in (sigma, error, noise))
    return Uncertainty(sigmas, errors, noises, np.array([len(rows) for rows in parts], np.int64))
