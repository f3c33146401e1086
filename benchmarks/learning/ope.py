"""Off-policy evaluation on real logs: two policies of one shop estimate each other's click rate.

The truth is the click rate of the other log, itself known to about ±15 % (28-57 clicks). The estimates are compared
with Open Bandit Pipeline's (tests/models/obp_reference.py), and with the truth.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.learning.bandit_log import CAMPAIGNS, FOLDER, out_of_fold, read_campaign
from benchmarks.measure import Measure
from plaudit_models.bandit.features import Float64
from plaudit_models.evaluation import ope
from plaudit_models.evaluation.ope import Estimate, LoggedRounds

LOGGED_BY: Final = ("uniform", "thompson")
REFERENCE: Final = Path(__file__).parents[2] / "tests/models/data/obp_reference.json"
CLIP: Final = 3.0
_LOOKS: Final = 16


def run(shuffles: int, quick: bool) -> list[Measure]:
    """Measures of one log of each kind; neither ``shuffles`` nor ``quick`` changes anything."""
    del shuffles, quick
    if not FOLDER.exists():
        return [Measure("logs found", 0.0, goal=1.0, note=f"{FOLDER} is not there")]
    theirs = json.loads(REFERENCE.read_text(encoding="utf-8"))["estimates"]
    measures, apart, uncovered = [], 0.0, 0
    for campaign in CAMPAIGNS:
        for logged_by in LOGGED_BY:
            log, probs, q_hat, logging_probs, truth = inputs(campaign, logged_by)
            ours = estimates(log, probs, q_hat, CLIP)
            reference = theirs[f"{campaign}, {logged_by} log"]
            apart = max(apart, *(abs(ours[name] - value) for name, value in reference.items()))
            lower, upper = _sequence(log, probs, q_hat, logging_probs)
            uncovered += not lower <= truth.value <= upper
            name = f"{campaign}: {'thompson from uniform' if logged_by == 'uniform' else 'uniform from thompson'}"
            all_estimates = ours | {"switch": ope.switch(log, probs, q_hat, logging_probs, CLIP).value}
            dr = ope.dr(log, probs, q_hat)
            measures.append(
                Measure(
                    f"{name}, |DR - truth| in standard errors",
                    abs(dr.value - truth.value) / math.hypot(dr.standard_error, truth.standard_error),
                    goal=3.0,
                    direction="at_most",
                    note=(
                        f"clicks per 1000: truth {_milli(truth)}, DR {_milli(dr)}, 95 % sequence {1e3 * lower:.1f} to "
                        f"{1e3 * upper:.1f}, effective n "
                        f"{ope.effective_sample_size(ope.importance_weights(log, probs)):.0f} of {len(log.action)}"
                    ),
                )
            )
            measures += [
                Measure(f"{name}, error of {estimator}", value / truth.value - 1.0, note="relative")
                for estimator, value in all_estimates.items()
            ]
    return [
        Measure("largest distance to Open Bandit Pipeline", apart, goal=1e-6, direction="at_most"),
        Measure("confidence sequences that miss the truth", uncovered, goal=0.0, direction="at_most", note="of 4"),
        *measures,
    ]


def inputs(campaign_name: str, logged_by: str) -> tuple[LoggedRounds, Float64, Float64, Float64, Estimate]:
    """One log, the other log's policy, q̂, the logging policy (``[n, a]`` each), and the other log's click rate."""
    campaign = read_campaign(campaign_name)
    if logged_by == "uniform":
        log, position, other = campaign.uniform, campaign.uniform_position, campaign.thompson
        probs, logging_probs = campaign.thompson_probs, campaign.uniform_probs
    else:
        log, position, other = campaign.thompson, campaign.thompson_position, campaign.uniform
        probs, logging_probs = campaign.uniform_probs, campaign.thompson_probs
    n = len(other.reward)
    truth = Estimate(float(other.reward.mean()), float(other.reward.std(ddof=1)) / math.sqrt(n))
    q_hat = out_of_fold(log, position, probs.shape[1])
    return log, probs[position], q_hat, logging_probs[position], truth


def sample_inputs(sample: dict[str, Any]) -> tuple[LoggedRounds, Float64, Float64]:
    """The log of the sample that travels with the tests, the policy to estimate ``[n, a]`` and q̂ ``[n, a]``."""
    log = LoggedRounds(
        np.array(sample["click"], np.float64), np.array(sample["item"]), np.array(sample["propensity"], np.float64)
    )
    position, probs = np.array(sample["position"]), np.array(sample["probs"])
    probs /= probs.sum(axis=1, keepdims=True)
    return log, probs[position], out_of_fold(log, position, probs.shape[1])


def estimates(log: LoggedRounds, probs: Float64, q_hat: Float64, clip: float) -> dict[str, float]:
    """Estimates by the names that tests/models/obp_reference.py gives Open Bandit Pipeline's."""
    return {
        "ips": ope.ips(log, probs).value,
        "ips clipped": ope.ips(log, probs, clip).value,
        "snips": ope.snips(log, probs).value,
        "dm": ope.dm(probs, q_hat).value,
        "dr": ope.dr(log, probs, q_hat).value,
        "dr clipped": ope.dr(log, probs, q_hat, clip).value,
        "switch-dr": ope.switch_dr(log, probs, q_hat, clip).value,
    }


def _sequence(log: LoggedRounds, probs: Float64, q_hat: Float64, logging_probs: Float64) -> tuple[float, float]:
    sequence = ope.open_sequence()
    for rows in np.array_split(np.arange(len(log.action)), _LOOKS):
        part = LoggedRounds(log.reward[rows], log.action[rows], log.pscore[rows])
        sequence = sequence.update(part, probs[rows], q_hat[rows], logging_probs[rows])
    return sequence.interval(alpha=0.05)


def _milli(estimate: Estimate) -> str:
    return f"{1e3 * estimate.value:.2f} ± {1e3 * estimate.standard_error:.2f}"
