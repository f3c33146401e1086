"""Caps on one user's share: hand-worked weights, and the invariant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_models.raters import UserTally, capped_weights


def test_weights_by_hand() -> None:
    """a has 6 of 10 events, the cap is 0.4: L = 0.4·(4 + L) gives L = 8/3, so a's events weigh 8/18 each."""
    weights = capped_weights([*"aaaaaabbcc"], cap=0.4)
    np.testing.assert_allclose(weights, [4 / 9] * 6 + [1.0] * 4)
    assert weights[:6].sum() / weights.sum() == pytest.approx(0.4)


def test_within_the_cap_everyone_counts_in_full() -> None:
    np.testing.assert_array_equal(capped_weights([*"aaaaaabbcc"], cap=0.6), np.ones(10))
    np.testing.assert_array_equal(capped_weights(["a", "a"], cap=1.0), np.ones(2))


def test_two_heavy_users_by_hand() -> None:
    """10 a, 5 b, and 1 each of c, d, e; cap 0.3: L = 0.3·(3 + 2L) gives L = 0.9/0.4 = 2.25."""
    weights = capped_weights([*"aaaaaaaaaabbbbbcde"], cap=0.3)
    np.testing.assert_allclose(weights, [0.225] * 10 + [0.45] * 5 + [1.0] * 3)


def test_with_too_few_users_for_the_cap_they_are_equals() -> None:
    np.testing.assert_allclose(capped_weights([*"aaaab"], cap=0.1), [0.25] * 4 + [1.0])
    np.testing.assert_array_equal(capped_weights([], cap=0.1), [])


@given(st.lists(st.integers(0, 8), min_size=1, max_size=80), st.floats(0.01, 1.0))
def test_nobody_exceeds_the_cap_if_that_is_possible(users: list[int], cap: float) -> None:
    names = [str(user) for user in users]
    weights = capped_weights(names, cap)
    assert ((weights > 0.0) & (weights <= 1.0)).all()
    shares = [weights[[n == name for n in names]].sum() / weights.sum() for name in set(names)]
    assert max(shares) <= max(cap, 1.0 / len(shares)) + 1e-9


def test_a_tally_admits_by_what_it_has_seen() -> None:
    """cap 0.25 allows max(1, t/4) events a user at the t-th event: a's second counts from t = 8 on."""
    admitted, tally = UserTally().admit([*"aaba"], cap=0.25)
    assert admitted.tolist() == [True, False, True, False]
    admitted, tally = tally.admit([*"cdea"], cap=0.25)
    assert admitted.tolist() == [True, True, True, True]
    assert tally == UserTally(seen=8, counted={"a": 2, "b": 1, "c": 1, "d": 1, "e": 1})


def test_a_loud_user_counts_for_his_share() -> None:
    """His last event is the 2,998th: 0.01·2998 allows 29."""
    users = ["loud" if i % 3 == 0 else f"u{i}" for i in range(3_000)]
    admitted, tally = UserTally().admit(users, cap=0.01)
    assert tally.counted["loud"] == 29
    assert admitted.sum() == 2_029


@pytest.mark.parametrize("cap", [0.0, 1.1, float("nan")])
def test_a_cap_is_a_share(cap: float) -> None:
    with pytest.raises(ValueError, match="cap"):
        capped_weights(["a"], cap)
    with pytest.raises(ValueError, match="cap"):
        UserTally().admit(["a"], cap)
