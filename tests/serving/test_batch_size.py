"""The measured batch cap, on a clock that the test winds."""

from __future__ import annotations

import pytest

from plaudit.serving.models.batch_size import batch_sizes, measure_best_batch


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_sizes(max_batch: int, sizes: list[int]) -> None:
    assert list(batch_sizes(max_batch)) == sizes


@pytest.mark.parametrize(
    ("took_s", "cap"),
    [
        # Per request: 1, .75, .6, .55 → the largest is the fastest by more than 1 %.
        ({1: 1.0, 2: 1.5, 4: 2.4, 8: 4.4}, 8),
        # Per request: 10, 9, 8, 8.1 → 4 is the fastest.
        ({1: 10.0, 2: 18.0, 4: 32.0, 8: 64.8}, 4),
        # Per request: 10, 9.98, 9.95, 9.92 → nothing is worth waiting for: 10 is within 1 % of 9.92.
        ({1: 10.0, 2: 19.96, 4: 39.8, 8: 79.36}, 1),
    ],
)
def test_the_smallest_size_that_is_about_the_fastest_per_request(took_s: dict[int, float], cap: int) -> None:
    now_s = 0.0

    def run(size: int) -> None:
        nonlocal now_s
        now_s += took_s[size]

    assert measure_best_batch(run, 8, overhead_s=0.0, clock_s=lambda: now_s) == cap


def test_the_first_evaluation_of_a_size_does_not_count() -> None:
    now_s = 0.0
    seen: set[int] = set()

    def run(size: int) -> None:
        nonlocal now_s
        now_s += size * 1.0 if size in seen else 100.0
        seen.add(size)

    assert measure_best_batch(run, 8, overhead_s=0.0, clock_s=lambda: now_s) == 1


def test_what_a_batch_costs_beside_the_model_is_shared_too() -> None:
    """Per request without it: 1 for all sizes, so 1. With 0.4 a batch: 1.4, 1.2, 1.1, 1.05 → 8 is 5 % faster than 4."""
    now_s = 0.0

    def run(size: int) -> None:
        nonlocal now_s
        now_s += size

    assert measure_best_batch(run, 8, overhead_s=0.0, clock_s=lambda: now_s) == 1
    assert measure_best_batch(run, 8, overhead_s=0.4, clock_s=lambda: now_s) == 8


def test_larger_sizes_are_not_tried_after_two_without_a_gain() -> None:
    now_s = 0.0
    tried = []

    def run(size: int) -> None:
        nonlocal now_s
        tried.append(size)
        now_s += size

    measure_best_batch(run, 64, overhead_s=0.0, clock_s=lambda: now_s)
    assert max(tried) == 4
