"""The Open Bandit Dataset's logs as plaudit_models.evaluation.ope takes them, and the policies that logged them.

Reads the samples in shared/data/bandit beside the repository (see the SOURCE.md there). Knows nothing about estimators.

Notation:
    n: impressions, a: items of the campaign, 3 positions on the page
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from plaudit_models.bandit.features import Float64
from plaudit_models.evaluation.ope import Int64, LoggedRounds

FOLDER: Final = Path(__file__).parents[3] / "shared/data/bandit"
CAMPAIGNS: Final = ("men", "women")
POSITIONS: Final = 3

_PRIOR_CLICKS: Final = 1.0
"""An item's predicted click rate is pulled to the position's as if it had been clicked once at that rate."""


@dataclass(frozen=True, slots=True, eq=False)
class Campaign:
    """Two logs of one campaign, each by a policy that ignores its user.

    Attributes:
        uniform, thompson: the logs; the reward is the click.
        uniform_position, thompson_position: from 0, shape ``[n]``.
        thompson_probs: how often the Thompson-sampling log shows each item, by position, shape ``[3, a]``. The
            policy moved while it logged; this is its average.
    """

    uniform: LoggedRounds
    thompson: LoggedRounds
    uniform_position: Int64
    thompson_position: Int64
    thompson_probs: Float64

    @property
    def uniform_probs(self) -> Float64:
        a = self.thompson_probs.shape[1]
        return np.full((POSITIONS, a), 1.0 / a)


def read_campaign(name: str, folder: Path = FOLDER) -> Campaign:
    with np.load(folder / f"{name}_random.npz", allow_pickle=False) as raw:
        uniform, uniform_position = _log(raw), raw["position"].astype(np.int64) - 1
    with np.load(folder / f"{name}_bts.npz", allow_pickle=False) as raw:
        thompson, thompson_position = _log(raw), raw["position"].astype(np.int64) - 1
        a = raw["affinity"].shape[1]
    shown = np.zeros((POSITIONS, a))
    np.add.at(shown, (thompson_position, thompson.action), 1.0)
    shown += 1.0 / a  # an item that was never shown may have been
    probs = shown / shown.sum(axis=1, keepdims=True)
    return Campaign(uniform, thompson, uniform_position, thompson_position, probs)


def click_rates(log: LoggedRounds, position: Int64, n_items: int, rows: Int64) -> Float64:
    """A plain reward model learned from ``rows`` of the log: shrunken click rates, shape ``[3, a]``."""
    clicks, views = np.zeros((POSITIONS, n_items)), np.zeros((POSITIONS, n_items))
    np.add.at(clicks, (position[rows], log.action[rows]), log.reward[rows])
    np.add.at(views, (position[rows], log.action[rows]), 1.0)
    mean = clicks.sum(axis=1, keepdims=True) / views.sum(axis=1, keepdims=True)
    mean = np.maximum(mean, 1.0 / len(rows))
    rates: Float64 = (clicks + _PRIOR_CLICKS) / (views + _PRIOR_CLICKS / mean)
    return rates


def out_of_fold(log: LoggedRounds, position: Int64, n_items: int, folds: int = 5) -> Float64:
    """q̂ that has not seen the impression it predicts, shape ``[n, a]``: every fifth in turn is left out."""
    q_hat = np.empty((len(log.action), n_items))
    rows = np.arange(len(log.action))
    for fold in range(folds):
        left_out = rows % folds == fold
        rates = click_rates(log, position, n_items, rows[~left_out])
        q_hat[left_out] = rates[position[left_out]]
    return q_hat


def _log(raw: np.lib.npyio.NpzFile) -> LoggedRounds:
    return LoggedRounds(
        raw["click"].astype(np.float64), raw["item_id"].astype(np.int64), raw["propensity"].astype(np.float64)
    )
