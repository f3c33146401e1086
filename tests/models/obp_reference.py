"""What Open Bandit Pipeline's own estimators say about its own logged data; writes data/obp_reference.json.

Not a test: Open Bandit Pipeline pins versions that nothing else can live with, so it gets an environment of its own:

    uv venv --python 3.11 obp && uv pip install --python obp/bin/python --no-deps obp==0.5.7 pyieoe pingouin
    uv pip install --python obp/bin/python numpy pandas scikit-learn scipy pyyaml tqdm matplotlib seaborn torch
    PYTHONPATH=tests:models obp/bin/python tests/models/obp_reference.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from obp.ope.estimators import (  # type: ignore[import-not-found]
    DirectMethod,
    DoublyRobust,
    InverseProbabilityWeighting,
    SelfNormalizedInverseProbabilityWeighting,
    SwitchDoublyRobust,
)

from benchmarks.learning.bandit_log import CAMPAIGNS, read_campaign
from benchmarks.learning.ope import CLIP, LOGGED_BY, inputs, sample_inputs
from plaudit_models.bandit.features import Float64
from plaudit_models.evaluation.ope import Int64, LoggedRounds

OUT: Final = Path(__file__).parent / "data/obp_reference.json"
SAMPLE: Final = 400


def reference(log: LoggedRounds, probs: Float64, q_hat: Float64) -> dict[str, float]:
    """Estimates of the policy ``probs`` ``[n, a]``, by name."""
    given: dict[str, Any] = {
        "reward": log.reward,
        "action": log.action,
        "pscore": log.pscore,
        "action_dist": probs[:, :, None],
        "estimated_rewards_by_reg_model": q_hat[:, :, None],
        "position": np.zeros(len(log.action), int),
    }
    estimators = {
        "ips": InverseProbabilityWeighting(),
        "ips clipped": InverseProbabilityWeighting(lambda_=CLIP),
        "snips": SelfNormalizedInverseProbabilityWeighting(),
        "dm": DirectMethod(),
        "dr": DoublyRobust(),
        "dr clipped": DoublyRobust(lambda_=CLIP),
        "switch-dr": SwitchDoublyRobust(lambda_=CLIP),
    }
    return {name: float(estimator.estimate_policy_value(**given)) for name, estimator in estimators.items()}


def main() -> None:
    estimates: dict[str, dict[str, float]] = {}
    for name in CAMPAIGNS:
        for logged_by in LOGGED_BY:
            estimates[f"{name}, {logged_by} log"] = reference(*inputs(name, logged_by)[:3])
    men = read_campaign("men")
    sample = _sample(men.uniform, men.uniform_position, men.thompson_probs)
    estimates["sample"] = reference(*sample_inputs(sample))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"clip": CLIP, "sample": sample, "estimates": estimates}) + "\n", encoding="utf-8")


def _sample(log: LoggedRounds, position: Int64, probs: Float64) -> dict[str, Any]:
    """All clicks and the first impressions without one: small enough to travel with the tests."""
    rows = np.sort(np.argsort(-log.reward, kind="stable")[:SAMPLE])
    return {
        "source": "Open Bandit Dataset, small version, campaign men, uniform policy (st-tech/zr-obp, Apache-2.0)",
        "click": log.reward[rows].astype(int).tolist(),
        "item": log.action[rows].tolist(),
        "position": position[rows].tolist(),
        "propensity": log.pscore[rows].tolist(),
        "probs": probs.round(6).tolist(),
    }


if __name__ == "__main__":
    main()
