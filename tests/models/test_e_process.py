"""Betting e-processes: wealth worked by hand, error rate under a true claim, coverage of the bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plaudit_models.evaluation.e_process import (
    as_json,
    e_process_from_dict,
    log_gains,
    log_total,
    open_e_process,
    total_log_gains,
)

ZERO = np.array([0.0])


def test_wealth_after_one_win_by_hand() -> None:
    """bound 1: the bets are λ = 0.45·2⁻ʲ with shares 2⁻ʲ⁻¹·256/255, j = 0..7.

    After v = 1, K(0) = 1 + 0.45·(256/255)·Σ 2·4⁻ʲ⁻¹ = 1 + 0.45·(256/255)·(2/3)(1 − 4⁻⁸) = 1.301172.
    """
    assert open_e_process(1.0, ZERO).update(np.array([1.0])).e_value(0) == pytest.approx(1.301172, abs=1e-6)


def test_wealth_after_a_win_and_a_loss_by_hand() -> None:
    """K(0) = Σ share·(1 − λ²) = 1 − 0.45²·(256/255)·(4/7)(1 − 8⁻⁸) = 0.883832; the best look was the one before."""
    bets = open_e_process(1.0, ZERO).update(np.array([1.0])).update(np.array([-1.0]))
    assert np.exp(log_total(bets.log_wealth))[0] == pytest.approx(0.883832, abs=1e-6)
    assert bets.e_value(0) == pytest.approx(1.301172, abs=1e-6)


def test_nothing_seen_proves_nothing() -> None:
    bets = open_e_process(1.0, np.linspace(-1, 1, 21)).update(np.array([]))
    assert bets.e_value(10) == 1.0
    assert bets.lower_bound(0.05) == -1.0


def test_order_within_a_batch_does_not_matter() -> None:
    values = np.random.default_rng(1).uniform(-2, 2, 1_000)
    forwards, backwards = (open_e_process(2.0, ZERO).update(v) for v in (values, values[::-1]))
    np.testing.assert_allclose(forwards.log_wealth, backwards.log_wealth)


def test_a_true_claim_is_refuted_at_most_as_often_as_promised() -> None:
    """Mean exactly 0, skewed both ways: 400 runs of 1,000 values, looked at after every value, α = 0.1.

    The expected rate is at most 0.1; 400 draws of a fair 0.1 exceed 0.15 with probability below 0.001.
    """
    rng = np.random.default_rng(3)
    for high in (1.0, 0.1):
        wins = rng.random((400, 1_000)) < 0.1 / (high + 0.1)
        values = np.where(wins, high, -0.1)
        wealth = log_total(log_gains(values, ZERO, 1.0).cumsum(axis=1)[:, :, 0])
        assert (wealth.max(axis=1) >= -np.log(0.1)).mean() <= 0.15


def test_bounds_hold_and_close_in() -> None:
    """The mean is 0.2; lower bounds at all looks stay below it and end within 0.05."""
    rng = np.random.default_rng(4)
    bets = open_e_process(1.0, np.linspace(-1, 1, 401))
    for _ in range(40):
        bets = bets.update(rng.choice([-0.3, 0.7], size=200))
        assert bets.lower_bound(0.05) < 0.2
    assert bets.lower_bound(0.05) > 0.15


def test_bettors_win_on_values_far_above_zero() -> None:
    """v = 9, bound 1: K(0) = 1 + 9·0.301172 = 3.710548."""
    assert open_e_process(1.0, ZERO).update(np.array([9.0])).e_value(0) == pytest.approx(3.710548, abs=1e-5)


def test_products_sum_up_to_the_same() -> None:
    values, means = np.random.default_rng(2).uniform(-3, 1_000, 70), np.linspace(-1, 1, 5)
    expected = log_gains(values, means, 3.0).sum(axis=0)
    np.testing.assert_allclose(total_log_gains(values, means, 3.0), expected, atol=1e-9)


def test_strong_evidence_does_not_overflow() -> None:
    assert np.isfinite(open_e_process(1.0, ZERO).update(np.ones(100_000)).e_value(0))


def test_an_e_process_travels_as_json() -> None:
    bets = open_e_process(1.0, np.linspace(-1, 1, 5)).update(np.array([0.3, -0.2, 0.9]))
    back = e_process_from_dict(json.loads(json.dumps(as_json(bets))))
    np.testing.assert_array_equal(back.update(np.ones(2)).best, bets.update(np.ones(2)).best)


@pytest.mark.parametrize("value", [-1.5, np.nan, np.inf])
def test_values_out_of_bounds_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"values\[1\]"):
        open_e_process(1.0, ZERO).update(np.array([0.0, value]))


def test_claims_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        open_e_process(1.0, np.array([0.5, 0.0]))
