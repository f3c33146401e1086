"""Caps on one user's share, and what users make of one another: hand-worked numbers, and the invariants."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit_models.evaluation.raters import Raters, UserTally, fair_cap, raters_from_bytes


def test_a_tally_admits_by_what_it_has_seen() -> None:
    """cap 0.25 allows max(1, t/4) events a user at the t-th event: a's second counts from t = 8 on."""
    admitted, tally = UserTally().admit([*"aaba"], cap=0.25)
    assert admitted.tolist() == [True, False, True, False]
    admitted, tally = tally.admit([*"cdea"], cap=0.25)
    assert admitted.tolist() == [True, True, True, True]
    assert tally == UserTally(seen=8, counted={"a": 2, "b": 1, "c": 1, "d": 1, "e": 1})


def test_a_heavy_user_counts_for_their_share() -> None:
    """His last event is the 2,998th: 0.01·2998 allows 29."""
    users = ["loud" if i % 3 == 0 else f"u{i}" for i in range(3_000)]
    admitted, tally = UserTally().admit(users, cap=0.01)
    assert tally.counted["loud"] == 29
    assert admitted.sum() == 2_029


@pytest.mark.parametrize("cap", [0.0, 1.1, float("nan")])
def test_a_cap_is_a_share(cap: float) -> None:
    with pytest.raises(ValueError, match="cap"):
        UserTally().admit(["a"], cap)


# --- raters ----------------------------------------------------------------------------------------------------------


def observe(raters: Raters, user: str, agrees: list[bool], *, expected: float = 0.9, known: float = 1.0) -> Raters:
    for agree in agrees:
        raters, _ = raters.observe([user], np.array([float(agree)]), np.array([expected]), np.array([known]))
    return raters


def crowd(n: int = 20) -> Raters:
    """n users who agree."""
    raters = Raters()
    for i in range(n):
        raters = observe(raters, f"user {i}", [True] * 3)
    return raters


def test_reliability_by_hand() -> None:
    """q = 0.9, known 0.5: v = 0.5·0.8 = 0.4. Up, up, down: Σ s = 0.4, Σ v² = 0.48.

    Leaning (0.4 + 0.8·4)/(0.48 + 4) = 3.6/4.48, reliability ½ + 1.8/4.48. A stranger's is ½ + ½·0.8.
    """
    rater = observe(Raters(), "a", [True, True, False], known=0.5)["a"]
    assert (rater.agreement, rater.decided) == pytest.approx((0.4, 0.48))
    assert rater.reliability == pytest.approx(0.5 + 1.8 / 4.48)
    assert Raters()["a"].reliability == pytest.approx(0.9)


def test_wealth_by_hand() -> None:
    """v = 0.8, bet 0.8: disagreement wins a factor 1.64, agreement leaves 0.36, and below 1 the bettor starts anew."""
    raters = observe(Raters(), "a", [False, False])
    assert raters["a"].log_wealth == pytest.approx(2 * np.log(1.64))
    raters = observe(raters, "a", [True, True, True])
    assert raters["a"].log_wealth == pytest.approx(np.log(0.36))
    assert observe(raters, "a", [False])["a"].log_wealth == pytest.approx(np.log(1.64))


def test_a_user_who_always_says_the_opposite_is_quarantined_after_fourteen() -> None:
    """1.64¹⁴ = 1017 ≥ 1000 > 1.64¹³."""
    raters = observe(crowd(), "mallory", [False] * 13)
    assert raters["mallory"].trust_level == "heard"
    raters, caught = raters.observe(["mallory"], np.array([0.0]), np.array([0.9]), np.array([1.0]))
    assert caught == ("mallory",)
    assert raters["mallory"].trust_level == "quarantined"
    admitted, raters = raters.admit(["mallory", "user 1"], cap=1.0)
    assert admitted.tolist() == [False, True]


def test_who_flips_is_found_as_soon_as_who_never_was_honest() -> None:
    raters = observe(crowd(), "eve", [True] * 500)
    assert observe(raters, "eve", [False] * 13)["eve"].trust_level == "heard"
    assert observe(raters, "eve", [False] * 14)["eve"].trust_level == "quarantined"


def test_thumbs_at_random_and_wrong_ones_now_and_then_are_borne() -> None:
    """100 users press at random 300 times each: on average one alarm in 1000 presses or more, and most never."""
    rng = np.random.default_rng(0)
    raters, caught = crowd(400), 0
    for i in range(100):
        raters = observe(raters, f"random {i}", (rng.random(300) < 0.5).tolist())
        raters = observe(raters, f"honest {i}", (rng.random(300) < 0.9).tolist())
        caught += raters[f"random {i}"].trust_level == "quarantined"
        assert raters[f"honest {i}"].trust_level == "heard"
    assert caught <= 10


def test_where_nothing_is_known_no_rater_is_suspected() -> None:
    rater = observe(crowd(), "a", [False] * 1_000, known=0.0)["a"]
    assert rater.trust_level == "heard"
    assert rater.reliability == pytest.approx(0.9)


def test_if_all_users_disagree_no_user_is_suspected() -> None:
    """At most a fifth is ever quarantined, and of two users none is."""
    raters = Raters()
    for i in range(50):
        raters = observe(raters, f"user {i}", [False] * 30)
    assert sum(rater.trust_level == "quarantined" for rater in raters.users.values()) == 10
    assert observe(observe(Raters(), "a", [True] * 50), "b", [False] * 50)["b"].trust_level == "heard"


def test_a_million_thumbs_count_for_a_share() -> None:
    """At cap 0.05 of 1,010,000 events: 50,500 would be the most; the rest is refused, and shows as a flood."""
    raters = Raters()
    admitted, raters = raters.admit([f"user {i % 1_000}" for i in range(10_000)], cap=0.05)
    assert admitted.all()
    admitted, raters = raters.admit(["loud"] * 1_000_000, cap=0.05)
    assert admitted.sum() == 50_500
    assert raters["loud"].floods
    assert not raters["user 1"].floods


def test_all_thumbs_down_from_every_rater_are_evidence() -> None:
    """Once the reward model has learned it, it is what is expected, and no rater disagrees."""
    raters = crowd()
    for i in range(20):
        raters = observe(raters, f"user {i}", [False] * 50, expected=0.05)
    assert all(rater.trust_level == "heard" for rater in raters.users.values())


def test_events_without_a_user_are_never_quarantined() -> None:
    assert observe(crowd(), "", [False] * 100)[""].trust_level == "heard"


def test_people_decide() -> None:
    raters = observe(crowd(), "eve", [False] * 20)
    assert raters["eve"].trust_level == "quarantined"
    trusted = observe(raters.set_trust_level("eve", "trusted"), "eve", [False] * 100)
    assert trusted["eve"].trust_level == "trusted"
    assert trusted.admit(["eve"], cap=1.0)[0].all()
    forgiven = raters.set_trust_level("eve", "heard")
    assert (forgiven["eve"].trust_level, forgiven["eve"].log_wealth) == ("heard", 0.0)
    assert not raters.set_trust_level("user 1", "quarantined").admit(["user 1"], cap=1.0)[0].any()
    assert "eve" not in raters.without("eve").users


def test_raters_travel_as_json() -> None:
    raters = observe(crowd(), "eve", [False] * 20)
    _, raters = raters.admit(["eve", "bob"], cap=0.5)
    assert raters_from_bytes(raters.to_bytes()) == raters
    assert raters_from_bytes(None) == Raters()


def test_only_the_latest_are_remembered_besides_those_in_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_models.evaluation.raters.MAX_RATERS", 25)
    raters = observe(crowd(), "eve", [False] * 14)
    for i in range(30):
        raters = observe(raters, f"new {i}", [True])
    assert len(raters.users) == 25
    assert raters["eve"].trust_level == "quarantined"
    assert "new 29" in raters.users
    assert "user 0" not in raters.users


def test_the_cap_where_there_are_few_users() -> None:
    assert fair_cap(0.01, 4) == 0.25
    assert fair_cap(0.01, 500) == 0.01
    assert fair_cap(0.01, 0) == 0.01
    assert fair_cap(0.1, 20, shares=5.0) == 0.25
    assert fair_cap(0.1, 2, shares=5.0) == 1.0


@pytest.mark.parametrize(
    ("rewards", "expected", "known", "message"),
    [
        ([1.5], [0.5], [1.0], r"rewards\[0\]: 1\.5 is not in \[0, 1\]"),
        ([np.nan], [0.5], [1.0], r"rewards\[0\]: nan"),
        ([1.0], [np.nan], [1.0], r"expected\[0\] is not finite"),
        ([1.0], [0.5], [-0.1], r"known\[0\]: -0\.1"),
        ([1.0, 1.0], [0.5], [1.0], "1 users, 2 rewards"),
    ],
)
def test_bad_labels_are_refused(rewards: list[float], expected: list[float], known: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Raters().observe(["a"], np.array(rewards), np.array(expected), np.array(known))
