"""The trial of a candidate with a share of the users."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit_models.canary import CanaryRules, canary_from_dict, differences, new_canary


def test_differences_by_hand() -> None:
    """s = 0.25, m = 0.5: 1 is (1 − 0.5)/0.25 = 2 for the candidate and −0.5/0.75 for live; 0 is the opposite."""
    values = differences(
        np.array([1.0, 0.0, 1.0, 0.0]), np.array([True, True, False, False]), np.full(4, 0.5), CanaryRules(share=0.25)
    )
    np.testing.assert_allclose(values, [2.0, -2.0, -2 / 3, 2 / 3])


def test_first_wealth_by_hand() -> None:
    """The first guess is ½ (nothing seen), so one thumb up for the candidate at s = 0.5 is d = 1, with bound 2.

    The bettors j = 0…7 hold shares 2^−(j+1)/(1 − 2^−8) and stake λ_j = 0.9·2^−j/(2 + 1) = 0.3·2^−j each; wealth
    after d = 1 against "gain ≤ 0" is Σ share_j (1 + λ_j) = 1 + 0.15·Σ 4^−j/(1 − 2^−8)
    = 1 + 0.15·1.333313/0.996094 = 1.200780.
    """
    after = new_canary(CanaryRules(share=0.5)).update(np.array([1.0]), np.array([True]), ["ada"])
    assert after.gain.e_value(0) == pytest.approx(1.200780, abs=1e-5)
    assert after.n == (0, 1)
    assert after.total == (0.0, 1.0)


def run(live: float, candidate: float, seed: int, n: int = 1500) -> str:
    rng = np.random.default_rng(seed)
    trial = new_canary(CanaryRules(share=0.25))
    for _ in range(n // 50):
        part = rng.random(50) < 0.25
        reward = (rng.random(50) < np.where(part, candidate, live)).astype(float)
        trial = trial.update(reward, part, [f"user {i}" for i in rng.integers(400, size=50)])
        if trial.finding() != "none":
            break
    return trial.finding()


def test_gain_and_harm_are_found_and_equals_are_left_alone() -> None:
    """20 trials each; at level 0.05 for gain and for harm, more than 5 wrong findings of 20 have probability < 0.05."""
    assert [run(0.75, 0.92, seed) for seed in range(20)].count("gain") >= 19
    assert [run(0.92, 0.75, seed) for seed in range(20)].count("harm") >= 19
    assert [run(0.8, 0.8, seed) for seed in range(20)].count("none") >= 15


def test_batches_do_not_matter_and_it_survives_json() -> None:
    rng = np.random.default_rng(0)
    reward, part = (rng.random(60) < 0.7).astype(float), rng.random(60) < 0.5
    users = [f"user {i}" for i in range(60)]
    whole = new_canary(CanaryRules(share=0.5)).update(reward, part, users)
    parts = new_canary(CanaryRules(share=0.5)).update(reward[:13], part[:13], users[:13])
    parts = canary_from_dict(parts.to_dict()).update(reward[13:], part[13:], users[13:])
    np.testing.assert_allclose(parts.gain.log_wealth, whole.gain.log_wealth)
    assert (parts.n, parts.total) == (whole.n, pytest.approx(whole.total))


def test_one_user_counts_for_no_more_than_the_cap() -> None:
    trial = new_canary(CanaryRules(share=0.5, user_cap=0.01))
    trial = trial.update(np.ones(200), np.ones(200, np.bool_), ["flood"] * 200)
    assert sum(trial.n) == 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_of_nobody_or_everybody_is_no_trial(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        CanaryRules(share=share)


def test_rewards_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="reward"):
        new_canary(CanaryRules(share=0.5)).update(np.array([1.5]), np.array([True]), ["ada"])
