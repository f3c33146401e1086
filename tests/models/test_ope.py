"""Off-policy estimators: numbers worked by hand, and a world whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plaudit_models.evaluation.ope import (
    LoggedRounds,
    dm,
    dr,
    dr_outcomes,
    dr_outcomes_above,
    dr_outcomes_below,
    effective_sample_size,
    importance_weights,
    ips,
    open_sequence,
    snips,
    switch,
    switch_dr,
)

LOG = LoggedRounds(reward=np.array([1.0, 0.0, 1.0]), action=np.array([0, 1, 1]), pscore=np.array([0.5, 0.25, 0.8]))
PROBS = np.array([[0.75, 0.25], [0.5, 0.5], [0.2, 0.8]])
Q_HAT = np.array([[0.8, 0.4], [0.6, 0.2], [0.5, 0.9]])

REWARDS = np.array([[0.9, 0.2, 0.1], [0.3, 0.8, 0.5]])
LOGGING = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
EVALUATED = np.array([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
"""By kind of context; the evaluated policy is worth 0.39, see test_estimates_of_a_world_with_a_known_answer."""


def test_weights_by_hand() -> None:
    """0.75/0.5 = 1.5, 0.5/0.25 = 2, 0.8/0.8 = 1."""
    np.testing.assert_allclose(importance_weights(LOG, PROBS), [1.5, 2.0, 1.0])
    np.testing.assert_allclose(importance_weights(LOG, PROBS, max_weight=1.2), [1.2, 1.2, 1.0])


def test_effective_sample_size_by_hand() -> None:
    """(1.5 + 2 + 1)² / (2.25 + 4 + 1) = 20.25 / 7.25; equal weights count in full."""
    assert effective_sample_size(np.array([1.5, 2.0, 1.0])) == pytest.approx(20.25 / 7.25)
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7.0)
    assert effective_sample_size(np.zeros(3)) == 0.0


def test_dm_by_hand() -> None:
    """0.75·0.8 + 0.25·0.4 = 0.7; 0.5·0.6 + 0.5·0.2 = 0.4; 0.2·0.5 + 0.8·0.9 = 0.82; mean 0.64."""
    assert dm(PROBS, Q_HAT).value == pytest.approx(0.64)


def test_ips_by_hand() -> None:
    """w·r = 1.5, 0, 1; mean 2.5/3; deviations 2/3, −5/6, 1/6: variance (16 + 25 + 1)/36/2 = 7/12, error √(7/12/3)."""
    estimate = ips(LOG, PROBS)
    assert estimate.value == pytest.approx(2.5 / 3)
    assert estimate.standard_error == pytest.approx(math.sqrt(7 / 36))


def test_snips_by_hand() -> None:
    """2.5 / 4.5 = 5/9; w·(r − 5/9) = 2/3, −10/9, 4/9 with mean 0: variance (36 + 100 + 16)/81/2 = 76/81.

    The error is √(76/81/3) / (4.5/3).
    """
    estimate = snips(LOG, PROBS)
    assert estimate.value == pytest.approx(5 / 9)
    assert estimate.standard_error == pytest.approx(math.sqrt(76 / 243) / 1.5)


def test_dr_by_hand() -> None:
    """0.7 + 1.5·(1 − 0.8) = 1; 0.4 + 2·(0 − 0.2) = 0; 0.82 + 1·(1 − 0.9) = 0.92; mean 0.64."""
    np.testing.assert_allclose(dr_outcomes(LOG, PROBS, Q_HAT), [1.0, 0.0, 0.92])
    assert dr(LOG, PROBS, Q_HAT).value == pytest.approx(0.64)


def test_dr_with_clipped_weights_by_hand() -> None:
    """0.7 + 1.2·0.2 = 0.94; 0.4 − 1.2·0.2 = 0.16; 0.92."""
    np.testing.assert_allclose(dr_outcomes(LOG, PROBS, Q_HAT, max_weight=1.2), [0.94, 0.16, 0.92])


def test_switch_by_hand() -> None:
    """τ = 1.6: weights 1.5, 2, 1 keep the first and third. Logged by [.5, .5], [.75, .25], [.2, .8], the ratios are

    [1.5, .5], [.67, 2], [1, 1], so only action 1 of the second is predicted: 0.5·0.2 = 0.1.
    SWITCH: (1.5·1 + 0.1 + 1·1)/3. SWITCH-DR: DR's 1 and 0.92, DM's 0.4 for the second.
    """
    logging = np.array([[0.5, 0.5], [0.75, 0.25], [0.2, 0.8]])
    assert switch(LOG, PROBS, Q_HAT, logging, threshold=1.6).value == pytest.approx(2.6 / 3)
    assert switch_dr(LOG, PROBS, Q_HAT, threshold=1.6).value == pytest.approx((1.0 + 0.4 + 0.92) / 3)


def test_switches_at_their_ends() -> None:
    logging = np.array([[0.5, 0.5], [0.75, 0.25], [0.2, 0.8]])
    assert switch(LOG, PROBS, Q_HAT, logging, threshold=0.0) == dm(PROBS, Q_HAT)
    assert switch(LOG, PROBS, Q_HAT, logging, threshold=math.inf) == ips(LOG, PROBS)
    assert switch_dr(LOG, PROBS, Q_HAT, threshold=0.0) == dm(PROBS, Q_HAT)
    assert switch_dr(LOG, PROBS, Q_HAT, threshold=math.inf) == dr(LOG, PROBS, Q_HAT)


def test_a_confidence_sequence_covers_at_all_looks_at_once() -> None:
    """Value 0.39 in the world of the test below; 100 logs looked at 20 times. At α = 0.2 more than 32 of 100 misses

    have probability below 0.003.
    """
    missed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        sequence, bad = open_sequence(), False
        for _ in range(20):
            kind = rng.integers(0, 2, 50)
            action = (rng.random(50)[:, None] > LOGGING[kind].cumsum(axis=1)).sum(axis=1)
            reward = (rng.random(50) < REWARDS[kind, action]).astype(np.float64)
            log = LoggedRounds(reward, action, LOGGING[kind, action])
            sequence = sequence.update(log, EVALUATED[kind], np.full((50, 3), 0.5), LOGGING[kind])
            lower, upper = sequence.interval(alpha=0.2)
            bad |= not lower <= 0.39 <= upper
        assert upper - lower < 0.35
        missed += bad
    assert missed <= 32


def test_a_confidence_sequence_that_saw_nothing_says_nothing() -> None:
    assert open_sequence().interval(alpha=0.05) == (0.0, 1.0)


def test_outcomes_bounded_below_by_hand() -> None:
    """Decision 2 alone: π = [0.2, 0.8], p = [0.9, 0.1], action 1, weight 8, q̂ = [0.5, 0.9], slack 1.

    q̂ becomes [min(0.5, 4.5), min(0.9, 0.125)] = [0.5, 0.125]; the prediction is 0.2·0.5 + 0.8·0.125 = 0.2.
    Reward 0: 0.2 − 8·0.125 = −0.8, where plain DR says 0.82 − 7.2 = −6.38. Reward 1: 0.2 + 8·0.875 = 7.2.
    """
    policies = np.array([[0.2, 0.8]]), np.array([[0.5, 0.9]]), np.array([[0.9, 0.1]])
    for reward, expected in ((0.0, -0.8), (1.0, 7.2)):
        log = LoggedRounds(np.array([reward]), np.array([1]), np.array([0.1]))
        np.testing.assert_allclose(dr_outcomes_below(log, *policies, slack=1.0), [expected])


def test_outcomes_bounded_above_by_hand() -> None:
    """The same decision. 1 − q̂ becomes [min(0.5, 4.5), min(0.1, 0.125)] = [0.5, 0.1]: q̂ is kept, so plain DR:

    reward 1: 0.82 + 8·0.1 = 1.62, below 1 + slack = 2. With q̂ = [0.5, 0.4], 1 − q̂ = [0.5, 0.125] and reward 1 gives
    1 − (0.2·0.5 + 0.8·0.125 − 8·0.125) = 1.8, where plain DR says 0.42 + 8·0.6 = 5.22.
    """
    log = LoggedRounds(np.array([1.0]), np.array([1]), np.array([0.1]))
    evaluated, logging = np.array([[0.2, 0.8]]), np.array([[0.9, 0.1]])
    for q_hat, expected in (([0.5, 0.9], 1.62), ([0.5, 0.4], 1.8)):
        outcomes = dr_outcomes_above(log, evaluated, np.array([q_hat]), logging, slack=1.0)
        np.testing.assert_allclose(outcomes, [expected])


def test_estimates_of_a_world_with_a_known_answer() -> None:
    """Two kinds of context, equally likely, with P(reward) [0.9, 0.2, 0.1] and [0.3, 0.8, 0.5].

    The evaluated policy takes [0.1, 0.8, 0.1] and [0.2, 0.2, 0.6], so its value is
    (0.09 + 0.16 + 0.01 + 0.06 + 0.16 + 0.30) / 2 = 0.39. Logged by [0.6, 0.3, 0.1] and [0.2, 0.5, 0.3].
    q̂ = 0.5 everywhere is wrong, so DM says 0.5; the others must find 0.39 within 4 of their standard errors.
    """
    rng = np.random.default_rng(7)
    n = 40_000
    rewards, logging, evaluated = REWARDS, LOGGING, EVALUATED
    kind = rng.integers(0, 2, n)
    action = (rng.random(n)[:, None] > logging[kind].cumsum(axis=1)).sum(axis=1)
    reward = (rng.random(n) < rewards[kind, action]).astype(np.float64)
    log = LoggedRounds(reward, action, logging[kind, action])
    wrong_q = np.full((n, 3), 0.5)
    assert dm(evaluated[kind], wrong_q).value == pytest.approx(0.5)
    bounds = [
        bounded(log, evaluated[kind], rewards[kind], logging[kind], slack=1.0)
        for bounded in (dr_outcomes_below, dr_outcomes_above)
    ]
    assert bounds[0].min() >= -1.0 - 1e-9
    assert bounds[1].max() <= 2.0 + 1e-9
    for outcomes in bounds:
        assert abs(outcomes.mean() - 0.39) < 4 * outcomes.std() / math.sqrt(n)
    estimates = [
        ips(log, evaluated[kind]),
        snips(log, evaluated[kind]),
        dr(log, evaluated[kind], wrong_q),
        dr(log, evaluated[kind], rewards[kind]),
    ]
    for estimate in estimates:
        assert abs(estimate.value - 0.39) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.01
    assert estimates[3].standard_error < estimates[0].standard_error  # a right q̂ helps


@pytest.mark.parametrize(
    ("reward", "action", "pscore", "message"),
    [
        ([1.5], [0], [0.5], r"reward\[0\]: 1\.5 is not in \[0, 1\]"),
        ([math.nan], [0], [0.5], r"reward\[0\]: nan"),
        ([1.0], [0], [0.0], r"pscore\[0\]: 0\.0 is not in \(0, 1\]"),
        ([1.0], [-1], [0.5], r"action\[0\]: -1"),
        ([], [], [], "n ≥ 1"),
        ([1.0, 0.0], [0], [0.5], "must all be"),
    ],
)
def test_bad_logs_are_refused(reward: list[float], action: list[int], pscore: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoggedRounds(np.array(reward), np.array(action, dtype=np.int64), np.array(pscore))


def test_probabilities_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation_probs: shape \(2, 2\)"):
        ips(LOG, PROBS[:2])
    with pytest.raises(ValueError, match="q_hat"):
        dr(LOG, PROBS, Q_HAT[:, :1])
    with pytest.raises(ValueError, match="never takes"):
        snips(LOG, np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
