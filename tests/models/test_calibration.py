"""The reliability curve: worked by hand, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit_models.evaluation.calibration import errors_by_uncertainty, reliability


def test_reliability_by_hand() -> None:
    """Two bins: {0.1, 0.3} with rewards {0, 1}, and {0.9, 1.2 → 1} with rewards {1, 1}.

    Means 0.2 → 0.5 and 0.95 → 1; error (2·0.3 + 2·0.05)/4 = 0.175.
    """
    curve = reliability(np.array([0.1, 0.9, 0.3, 1.2]), np.array([0.0, 1.0, 1.0, 1.0]), bins=2)
    np.testing.assert_allclose(curve.predicted, [0.2, 0.95])
    np.testing.assert_allclose(curve.observed, [0.5, 1.0])
    np.testing.assert_array_equal(curve.count, [2, 2])
    assert curve.error == pytest.approx(0.175)


def test_predictions_that_mean_what_they_say_have_next_to_no_error() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.random(50_000)
    honest = (rng.random(50_000) < predicted).astype(np.float64)
    assert reliability(predicted, honest).error < 0.01
    assert reliability(predicted, 1.0 - honest).error > 0.4


def test_nothing_predicted_has_no_error_to_tell() -> None:
    assert np.isnan(reliability(np.zeros(0), np.zeros(0)).error)


@pytest.mark.parametrize(
    ("predicted", "rewards", "bins", "message"),
    [
        ([0.5, np.nan], [0.0, 1.0], 10, "predicted: row 1 is not finite"),
        ([0.5, 0.5], [0.0, 1.5], 10, r"rewards: row 1 holds 1\.5"),
        ([0.5], [0.0, 1.0], 10, r"predicted \(1,\) and rewards \(2,\)"),
        ([0.5], [1.0], 0, "bins 0"),
    ],
)
def test_bad_input_is_named(predicted: list[float], rewards: list[float], bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reliability(np.array(predicted), np.array(rewards), bins)


def test_errors_by_uncertainty_by_hand() -> None:
    """σ sorted: 0.1 (q 0.9, came 1), 0.2 (0.5, 0) | 0.3 (0.2, 1), 0.4 (0.8, 0).

    |error| 0.1, 0.5 | 0.8, 0.8: means 0.3 and 0.8. 2q(1 − q): 0.18, 0.5 | 0.32, 0.32: means 0.34 and 0.32.
    """
    found = errors_by_uncertainty(
        np.array([0.3, 0.1, 0.4, 0.2]), np.array([0.2, 0.9, 0.8, 0.5]), np.array([1.0, 1.0, 0.0, 0.0]), bins=2
    )
    np.testing.assert_allclose(found.sigma, [0.15, 0.35])
    np.testing.assert_allclose(found.error, [0.3, 0.8])
    np.testing.assert_allclose(found.noise, [0.34, 0.32])
    assert found.count.tolist() == [2, 2]


def test_fewer_predictions_than_bins_leave_none_empty() -> None:
    assert errors_by_uncertainty(np.ones(3), np.ones(3), np.ones(3)).count.tolist() == [1, 1, 1]
    assert errors_by_uncertainty(np.zeros(0), np.zeros(0), np.zeros(0)).sigma.shape == (0,)


def test_uncertainties_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma \(2,\), predicted \(1,\) and rewards \(1,\) must all be \[n\]"):
        errors_by_uncertainty(np.ones(2), np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="bins 0"):
        errors_by_uncertainty(np.ones(1), np.ones(1), np.ones(1), bins=0)
