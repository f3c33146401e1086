"""Intervals against numbers worked by hand."""

from __future__ import annotations

import pytest

from plaudit_models.evaluation.intervals import wilson


def test_wilsons_interval_of_8_in_10() -> None:
    """(0.8 + 3.8415/20) / 1.38415 = 0.71674; 1.959964 / 1.38415 · √(0.016 + 0.0096037) = 0.22658."""
    assert wilson(0.8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)


@pytest.mark.parametrize(("mean", "bounds"), [(1.0, (0.20655, 1.0)), (0.0, (0.0, 0.79345))])
def test_one_reward_says_little(mean: float, bounds: tuple[float, ...]) -> None:
    assert wilson(mean, 1) == pytest.approx(bounds, abs=1e-5)


@pytest.mark.parametrize(("mean", "n", "named"), [(0.5, 0, "n 0"), (1.5, 3, "mean 1.5"), (float("nan"), 3, "mean nan")])
def test_what_has_no_interval_is_named(mean: float, n: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        wilson(mean, n)
