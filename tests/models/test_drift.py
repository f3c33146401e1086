"""Changes of what users want, against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_models.evaluation.drift import (
    ALARM,
    MARGIN,
    MAX_EPOCHS,
    MAX_SLICES,
    MAX_TALLY,
    STEADY,
    TRIED,
    Drift,
    DriftDetector,
    Range,
    drift_detector_from_bytes,
    explains_best,
    stake,
)


def said(
    detector: DriftDetector,
    rewards: Sequence[float],
    *,
    first: int = 1,
    expected: float = 0.9,
    known: float = 1.0,
    name: str = "cat",
    users: Sequence[str] | None = None,
    cap: float = 1.0,
) -> DriftDetector:
    n = len(rewards)
    return detector.observe(
        [name] * n,
        range(first, first + n),
        users or [""] * n,
        np.array(rewards),
        np.full(n, expected),
        np.full(n, known),
        cap,
    )


def until_alarm(expected: float, after: int = 0) -> int:
    """Labels until the alarm where none pleases, after so many that do."""
    won = math.log1p(stake(expected) * (expected - MARGIN))
    n = 1
    while n * won < math.log(ALARM) + 0.5 * math.log(max(1.0, (after + n) / STEADY)):
        n += 1
    return n


def test_disappointment_raises_the_alarm_after_as_many_labels_as_the_bet_says() -> None:
    """The stake is min(0.2/0.1, 0.9/0.2, 1.2) = 1.2, and ln 100 / ln(1 + 1.2·(0.9 − 0.1)) = 4.605 / 0.6729 = 6.84."""
    n = until_alarm(0.9)
    assert n == 7
    before = said(DriftDetector(), [1.0] * 50)
    assert said(before, [0.0] * (n - 1), first=51).pending == ()
    found = said(before, [0.0] * n, first=51).pending
    assert found == (Drift("cat", 51, (Range(0, 51),)),)


def test_a_change_is_dated_where_the_bettor_last_had_nothing_to_lose() -> None:
    """Two thumbs down, then enough thumbs up to lose what they won, then the change."""
    n = until_alarm(0.9)
    detector = said(DriftDetector(), [1.0] * 10 + [0.0] * 2 + [1.0] * 10 + [0.0] * n)
    assert [drift.since for drift in detector.pending] == [23]


def test_what_is_expected_of_little_evidence_does_not_count() -> None:
    assert said(DriftDetector(), [0.0] * 100, known=0.7).slices == {}


def test_labels_compared_with_what_is_about_to_go_do_not_count() -> None:
    """All come in one batch, so each is compared with what was expected before the change was found."""
    n = until_alarm(0.9)
    detector = said(DriftDetector(), [1.0] * 50 + [0.0] * 5 * n)
    assert len(detector.pending) == 1
    detector = said(detector.settled(), [1.0] * 50 + [0.0] * n, first=51 + 5 * n)
    assert len(detector.pending) == 1, "it goes on afterwards"


def test_slices_are_followed_apart() -> None:
    detector = said(DriftDetector(), [0.0] * 5)
    detector = said(detector, [0.0] * 5, name="dog", first=9)
    assert detector.pending == ()
    assert said(detector, [0.0] * 3, first=17).pending[0].slice == "cat"


def test_one_user_counts_for_no_more_than_a_share() -> None:
    one = said(DriftDetector(), [0.0] * 100, users=["mallory"] * 100, cap=0.05)
    assert one.pending == ()
    many = said(DriftDetector(), [0.0] * 100, users=[f"user {i}" for i in range(100)], cap=0.05)
    assert many.pending


def test_a_former_epoch_is_offered_and_gone_again_if_it_was_wrong() -> None:
    n = until_alarm(0.9)
    liked = [1.0] * 100
    detector = said(DriftDetector(), liked + [0.0] * n)
    detector = said(detector.settled(), liked + [0.0] * n, first=101 + n)
    first, second = (Range(0, 101),), (Range(101, 201 + n),)
    assert detector.pending == (Drift("cat", 201 + n, second, (first,)),)
    detector = detector.settled(first)
    wrong = said(detector, [0.0] * n, first=201 + 2 * n)
    assert wrong.pending == (Drift("cat", 201 + n, first),), "only what was brought back goes"
    right = said(detector, [1.0] * (TRIED + 1) + [0.0] * n, first=201 + 2 * n)
    ended = (*first, Range(201 + n, 202 + 2 * n + TRIED))
    assert right.pending == (Drift("cat", 202 + 2 * n + TRIED, ended, (second,)),)


def test_an_epoch_in_which_little_was_liked_is_not_remembered() -> None:
    n = until_alarm(0.9)
    detector = said(DriftDetector(), [0.0, 0.0, 1.0, 1.0, 1.0] * 4, expected=0.2)
    detector = said(detector, [0.0] * 2 * n, first=21).settled()
    detector = said(detector, [0.0] * 2 * n, first=100)
    assert all(drift.former == () for drift in detector.pending)


def test_epochs_and_slices_are_bounded() -> None:
    n = until_alarm(0.9)
    detector = DriftDetector()
    for turn in range(MAX_EPOCHS + 3):
        detector = said(detector, [1.0] * 50 + [0.0] * n, first=1 + 100 * turn).settled()
    offered = said(detector, [1.0] * 50 + [0.0] * n, first=5_000).pending[0].former
    assert len(offered) == MAX_EPOCHS
    n_slices = MAX_SLICES + 10
    names, ones = [f"slice {number}" for number in range(n_slices)], np.ones(n_slices)
    detector = detector.observe(names, range(10_000, 10_000 + n_slices), names, ones, ones, ones)
    assert len(detector.slices) == MAX_SLICES
    assert "slice 9" not in detector.slices


def test_former_epochs_that_explain_the_labels_as_well_as_nothing_does() -> None:
    assert explains_best([], 0.1) is None
    assert explains_best([0.3, 0.12], 0.1) == 1
    assert explains_best([0.3, 0.16], 0.1) is None
    assert explains_best([0.1, 0.1], 0.1) == 0, "the latest of equals"


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0), st.booleans()),
        max_size=80,
    )
)
def test_saved_and_read_again_or_in_other_batches_it_finds_the_same(rows: list[tuple[str, float, float, bool]]) -> None:
    def observe(detector: DriftDetector, at: int) -> DriftDetector:
        name, reward, expected, known = rows[at]
        return detector.observe([name], [at], ["u"], np.array([reward]), np.array([expected]), np.array([float(known)]))

    one_by_one = DriftDetector()
    for at in range(len(rows)):
        one_by_one = drift_detector_from_bytes(observe(one_by_one, at).to_bytes())
    names, rewards, expected, known = zip(*rows, strict=True) if rows else ((), (), (), ())
    together = DriftDetector().observe(
        names, range(len(rows)), ["u"] * len(rows), np.array(rewards), np.array(expected), np.array(known, np.float64)
    )
    assert one_by_one == together


def test_the_alarm_rises_with_the_square_root_of_the_labels() -> None:
    """After 9,989 labels: ln(100·√100) / 0.9555 = 6.908 / 0.6729 = 10.27, where a young slice takes 6.84."""
    n = 9_989
    before = said(DriftDetector(), [1.0] * n)
    assert until_alarm(0.9, n) == 11
    assert said(before, [0.0] * 10, first=n + 1).pending == ()
    assert said(before, [0.0] * 11, first=n + 1).pending != ()


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_the_square_of_a_bet_does_not_grow_where_rewards_are_as_expected(expected: float, spread: float) -> None:
    """By the two-point rewards that have the mean and, spread out to 0 and 1, the largest variance that there is."""
    low, high = expected * (1.0 - spread), expected + (1.0 - expected) * spread
    chance = 0.5 if high == low else (expected - low) / (high - low)
    wealth = [1.0 + stake(expected) * (expected - reward - MARGIN) for reward in (low, high)]
    assert min(wealth) >= 0.1 - 1e-12, "no label costs more than MOST"
    assert (1.0 - chance) * wealth[0] ** 2 + chance * wealth[1] ** 2 <= 1.0 + 1e-12


@pytest.mark.parametrize("rate", [0.95, 0.6, 0.5])
def test_false_alarms_are_no_more_than_their_bound_where_expectations_are_right(rate: float) -> None:
    """20 slices of 10,000 labels each: no more than 20·0.01·(1 + ln 100) = 1.1 are expected, and more than 4 are hardly
    ever seen (Poisson: 0.6 %). Where the alarm neither rises nor the square is bounded, it is 8."""
    n_slices, n = 20, 10_000
    rewards = (np.random.default_rng(0).random(n_slices * n) < rate).astype(np.float64)
    names = [f"slice {number % n_slices}" for number in range(n_slices * n)]
    q, known = np.full(len(names), rate), np.ones(len(names))
    found = DriftDetector().observe(names, range(len(names)), [""] * len(names), rewards, q, known).pending
    assert len(found) <= 4


def test_thousands_of_slices_and_a_bet_of_thousands_of_users_take_few_bytes() -> None:
    """The detectors are saved with every batch."""
    names, ones = [f"slice {number}" for number in range(MAX_SLICES)], np.ones(MAX_SLICES)
    calm = DriftDetector().observe(names, range(MAX_SLICES), names, ones, ones, ones)
    assert len(calm.to_bytes()) < 40 * MAX_SLICES
    n = 5 * MAX_TALLY
    rewards = [0.8, 0.79] * (
        n // 2
    )  # disappoints by no more than the margin, so that a bet neither wins nor loses much
    long = said(DriftDetector(), rewards, users=[f"user {number}" for number in range(n)])
    assert len(long.to_bytes()) < 20 * MAX_TALLY


def test_rewards_that_are_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        DriftDetector().observe(["a"], [1], ["u"], np.array([1.0, 0.0]), np.array([1.0]), np.array([1.0]))
