"""Shapley values against numbers worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.serving.engine.explain import shapley, subsets


def test_subsets_go_from_none_to_all() -> None:
    assert subsets(["a", "b"]) == [frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")]


def test_two_players() -> None:
    """v(∅) = 0.1, v(a) = 0.4, v(b) = 0.2, v(ab) = 0.9.

    φ_a = ½(v(a) − v(∅)) + ½(v(ab) − v(b)) = ½·0.3 + ½·0.7 = 0.5;
    φ_b = ½(v(b) − v(∅)) + ½(v(ab) − v(a)) = ½·0.1 + ½·0.5 = 0.3.
    """
    value = {frozenset(): 0.1, frozenset("a"): 0.4, frozenset("b"): 0.2, frozenset("ab"): 0.9}
    assert shapley(["a", "b"], value) == pytest.approx({"a": 0.5, "b": 0.3})


def test_three_players_of_whom_any_two_win() -> None:
    """A majority game: each is decisive in a third of the orders. One of them is a dummy in the second game."""
    majority = {some: float(len(some) >= 2) for some in subsets("abc")}
    assert shapley("abc", majority) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    dictator = {some: float("a" in some) for some in subsets("abc")}
    assert shapley("abc", dictator) == pytest.approx({"a": 1.0, "b": 0.0, "c": 0.0})


@given(st.lists(st.floats(-1.0, 1.0), min_size=16, max_size=16))
def test_together_they_are_the_whole(values: list[float]) -> None:
    value = dict(zip(subsets("abcd"), values, strict=True))
    assert sum(shapley("abcd", value).values()) == pytest.approx(values[-1] - values[0], abs=1e-9)
