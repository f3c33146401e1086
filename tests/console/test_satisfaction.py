"""Means and intervals against numbers worked by hand."""

from __future__ import annotations

import pytest

from plaudit.console.satisfaction import LabelledAnswer, by_version, mean_of, over_time


def _answers(version: int, *rewards: float, from_s: float = 0.0) -> list[LabelledAnswer]:
    return [LabelledAnswer(version, from_s + i, reward) for i, reward in enumerate(rewards)]


def test_wilsons_interval_of_8_in_10() -> None:
    mean = mean_of([1.0] * 8 + [0.0] * 2)
    assert mean is not None
    assert (mean.n, mean.mean) == (10, 0.8)
    # (0.8 + 3.8415/20) / 1.38415 = 0.71674; 1.959964 / 1.38415 · √(0.016 + 0.0096037) = 0.22658
    assert (mean.low, mean.high) == pytest.approx((0.49016, 0.94332), abs=1e-5)


@pytest.mark.parametrize(("reward", "bounds"), [(1.0, (0.20655, 1.0)), (0.0, (0.0, 0.79345))])
def test_one_thumb_says_little(reward: float, bounds: tuple[float, ...]) -> None:
    mean = mean_of([reward])
    assert mean is not None
    assert (mean.low, mean.high) == pytest.approx(bounds, abs=1e-5)


def test_nothing_has_no_mean() -> None:
    assert mean_of([]) is None
    assert by_version([]) == {}
    assert over_time([], {}, points=10) == {}


def test_versions_are_judged_apart() -> None:
    means = by_version(_answers(1, 1.0, 0.0) + _answers(2, 0.5))
    assert {version: (mean.n, mean.mean) for version, mean in means.items()} == {1: (2, 0.5), 2: (1, 0.5)}


def test_every_point_stands_for_as_many_answers() -> None:
    rewarded = _answers(1, *[1.0] * 30, *[0.0] * 30)
    curve = over_time(rewarded, {}, points=4)[1]
    assert [point.mean.n for point in curve] == [15, 15, 15, 15]
    assert [point.mean.mean for point in curve] == [1.0, 1.0, 0.0, 0.0]
    assert [point.place for point in curve] == [7.0, 22.0, 37.0, 52.0]
    assert [point.time_s for point in curve] == [7.0, 22.0, 37.0, 52.0]


def test_a_remainder_is_shared_out_instead_of_making_a_point_that_means_little() -> None:
    curve = over_time(_answers(1, *[1.0] * 29), {}, points=100)[1]
    assert [point.mean.n for point in curve] == [14, 15]


def test_refreshes_are_on_the_curve_of_their_family_in_the_order_of_all_answers() -> None:
    rewarded = sorted(
        _answers(1, *[1.0] * 10) + _answers(3, *[0.0] * 10, from_s=10.0) + _answers(2, *[1.0] * 10, from_s=20.0),
        key=lambda one: one.time_s,
    )
    curves = over_time(rewarded, {1: 1, 2: 1, 3: 3}, points=1_000)
    assert [point.place for point in curves[1]] == [4.5, 24.5]
    assert [point.mean.mean for point in curves[3]] == [0.0]
