"""The reliability curve: worked by hand, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit_models.calibration import reliability


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
