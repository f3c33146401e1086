"""Caps on one user's share, and what users make of one another: hand-worked numbers, and the invariants."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from plaudit_models.evaluation.inversion import Inversion
from plaudit_models.evaluation.raters import (
    MAX_RATERS,
    SETTLED,
    Rater,
    Raters,
    UserTally,
    fair_cap,
    raters_from_bytes,
)


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


def observe(raters: Raters, user: str, agrees: list[bool], *, known: float = 1.0, group: str = "") -> Raters:
    """Labels in turn about an answer that others like and one that they do not."""
    n = len(agrees)
    expected = np.resize([0.9, 0.1], n)
    rewards = ((expected > 0.5) == np.array(agrees, np.bool_)).astype(np.float64)
    return raters.observe([user] * n, rewards, expected, np.full(n, known), [group] * n)[0]


def crowd(n: int = 20, group: str = "") -> Raters:
    """n users who agree."""
    return crowd_with(Raters(), n, group)


def crowd_with(raters: Raters, n: int, group: str = "") -> Raters:
    for i in range(n):
        raters = observe(raters, f"user {group}{i}", [True] * 4, group=group)
    return raters


def test_reliability_by_hand() -> None:
    """Certainty 0.5. (q, y) = (0.9, 1), (0.1, 0), (0.9, 1): the first has no mean to differ from; the second differs by
    −0.8 and −1; the means then are (0.97·0.9 + 0.1)/1.97 = 0.973/1.97 and 0.97/1.97: the third by 0.8/1.97 and 1/1.97.
    """
    rater = observe(Raters(), "a", [True, True, True], known=0.5)["a"]
    agreement, rewards, expected = (0.5 * (x + x / 1.97**2) for x in (0.8, 1.0, 0.64))
    assert rater.agreement == pytest.approx(agreement)
    assert (rater.reward_spread, rater.expected_spread) == pytest.approx((rewards, expected))
    assert rater.reliability == pytest.approx(0.5 + 0.5 * (agreement + 3.2) / (np.sqrt(rewards * expected) + 4.0))
    assert Raters()["a"].reliability == pytest.approx(0.9)


def test_wealth_by_hand() -> None:
    """Liked by none: 0 of what others like, 1 of what they do not. No bets on the first two labels.

    Third: of 1.97 labels 1 was liked; with one of 0 more, ȳ₋ = 1/2.97, odds 1/1.97. Fourth: of 2.9109 labels 0.97, with
    one of 1 more ȳ₊ = 1.97/3.9109, odds 1.9409/1.97. Then one who agrees loses nine tenths, and starts anew.
    """
    evidence = observe(Raters(), "a", [False, False])["a"].inversion
    assert evidence.log_wealth == 0.0
    third = np.log(1.0 + 0.9 / 1.97)
    raters = observe(Raters(), "a", [False] * 3)
    assert raters["a"].inversion.log_wealth == pytest.approx(third)
    assert raters["a"].inversion.log_praise == 0.0
    raters = observe(Raters(), "a", [False] * 4)
    fourth = np.log(1.0 + 0.9 * 1.9409 / 1.97)
    assert raters["a"].inversion.log_wealth == pytest.approx(third + fourth)
    assert raters["a"].inversion.log_praise == pytest.approx(fourth)
    lost = observe(raters, "a", [True])["a"].inversion
    assert lost.log_wealth == pytest.approx(third + fourth + np.log(0.1))
    again = observe(raters, "a", [True, True, False])["a"].inversion
    assert 0.0 < again.log_wealth < np.log(2.0)


def test_many_users_at_once_are_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((3, 40, 5))
    together = Inversion(*np.zeros((5, 5)))
    for reward, expected, known in np.moveaxis(labels, 0, 1):
        together = together.update(reward, expected, known)
    for user in range(5):
        alone = Inversion()
        for reward, expected, known in labels[:, :, user].T:
            alone = alone.update_one(float(reward), float(expected), float(known))
        np.testing.assert_allclose([np.asarray(v)[user] for v in astuple(together)], astuple(alone), rtol=1e-12)


def test_a_user_who_always_says_the_opposite_is_quarantined() -> None:
    """Even odds and certain expectations: after 15 labels."""
    raters = observe(crowd(), "mallory", [False] * 14)
    assert raters["mallory"].trust_level == "heard"
    raters, caught = raters.observe(["mallory"], np.array([0.0]), np.array([0.9]), np.array([1.0]))
    assert caught == ("mallory",)
    assert raters["mallory"].trust_level == "quarantined"
    admitted, raters = raters.admit(["mallory", "user 1"], cap=1.0)
    assert admitted.tolist() == [False, True]


def test_who_lies_after_a_thousand_honest_thumbs_is_found_nearly_as_soon() -> None:
    raters = observe(crowd(), "eve", [True] * 1_000)
    assert observe(raters, "eve", [False] * 10)["eve"].trust_level == "heard"
    assert observe(raters, "eve", [False] * 24)["eve"].trust_level == "quarantined"


def test_who_dislikes_everything_is_unhappy_not_dishonest() -> None:
    """From the start, or after having liked what others like."""
    for before in (0, 100):
        raters = observe(crowd(), "ada", [True] * before)
        for i in range(300):
            raters, _ = raters.observe(["ada"], np.zeros(1), np.array([0.9, 0.1])[[i % 2]], np.ones(1))
        assert raters["ada"].trust_level == "heard"
        assert not raters["ada"].suspected


def test_a_severe_rater_is_borne() -> None:
    """A fifth for what is good, nothing for what is not."""
    raters = crowd()
    for i in range(300):
        raters, _ = raters.observe(["ada"], np.array([0.2 * (i % 2)]), np.array([0.1, 0.9])[[i % 2]], np.ones(1))
    assert raters["ada"].inversion.log_wealth < 0.0
    assert raters["ada"].reliability > 0.9


def test_thumbs_at_random_and_wrong_ones_now_and_then_are_borne() -> None:
    """100 users press at random 300 times each."""
    rng = np.random.default_rng(0)
    raters, caught = crowd(400), 0
    for i in range(100):
        raters = observe(raters, f"random {i}", (rng.random(300) < 0.5).tolist())
        raters = observe(raters, f"honest {i}", (rng.random(300) < 0.9).tolist())
        caught += raters[f"random {i}"].trust_level == "quarantined"
        assert raters[f"honest {i}"].trust_level == "heard"
    assert caught <= 10


def test_a_group_is_not_quarantined_but_told_of() -> None:
    """25 users of a group, 175 others, nobody in quarantine: one of them goes, no more. Then 16 of 191 others do: twice
    their share of 25 is 4.2, so four of the group.
    """
    raters = crowd_with(crowd(175), 20, "deaf")
    for i in range(5):
        raters = observe(raters, f"deaf {i}", [False] * 30, group="deaf")
    in_group = [raters[f"deaf {i}"] for i in range(5)]
    assert [r.trust_level for r in in_group] == ["quarantined", *["heard"] * 4]
    assert [r.suspected for r in in_group] == [False, *[True] * 4]
    for i in range(16):
        raters = observe(raters, f"mallory {i}", [False] * 30)
    for i in range(5):
        raters = observe(raters, f"deaf {i}", [False] * 2, group="deaf")
    assert [raters[f"deaf {i}"].trust_level for i in range(5)] == [*["quarantined"] * 4, "heard"]


def test_of_a_small_group_nobody_is_quarantined_by_itself() -> None:
    raters = crowd_with(crowd(100), 4, "deaf")
    raters = observe(raters, "bo", [False] * 40, group="deaf")
    assert (raters["bo"].trust_level, raters["bo"].suspected) == ("heard", True)
    assert raters.set_trust_level("bo", "quarantined")["bo"].trust_level == "quarantined"


def test_a_flood_of_fresh_ids_displaces_fresh_ids_alone() -> None:
    raters = Raters()
    for i in range(10):
        _, raters = raters.admit([f"user {i}"] * SETTLED, cap=1.0)
    _, raters = raters.admit([f"fresh {i}" for i in range(2 * MAX_RATERS)], cap=1.0)
    assert len(raters.users) == MAX_RATERS
    assert all(raters[f"user {i}"].n == SETTLED for i in range(10))


def say_the_opposite(raters: Raters, users: list[str], share_of_crowd: int) -> tuple[Raters, int]:
    """Each once, in turn with this many labels of settled users who agree; returns how many of theirs counted."""
    counted = 0
    for i, user in enumerate(users):
        admitted, raters = raters.admit([user], cap=1.0)
        counted += int(admitted[0])
        expected = (0.9, 0.1)[i % 2]
        raters, _ = raters.observe([user], np.array([1.0 - round(expected)]), np.array([expected]), np.ones(1))
        for j in range(share_of_crowd):
            raters = observe(raters, f"user {(i + j) % 20}", [True])
    return raters, counted


def test_a_new_name_for_every_thumb_gains_nothing_beside_settled_users() -> None:
    """As one user they are found after 15, once less than half of the latest labels are newcomers'."""
    _, raters = crowd().admit([f"user {i % 20}" for i in range(20 * SETTLED)], cap=1.0)
    raters = observe(raters, "user 1", [True] * 200)
    raters, counted = say_the_opposite(raters, [f"fresh {i}" for i in range(200)], share_of_crowd=2)
    assert counted < 20
    assert raters.refuses_newcomers
    assert raters_from_bytes(raters.to_bytes()) == raters
    for i in range(60):  # honest newcomers end it
        raters = observe(raters, f"honest {i}", [True, True])
    assert not raters.refuses_newcomers


def test_where_most_raters_are_new_nobody_is_refused_for_it() -> None:
    raters, counted = say_the_opposite(crowd(), [f"fresh {i}" for i in range(200)], share_of_crowd=0)
    assert counted == 200
    assert not raters.refuses_newcomers


def test_raters_that_the_release_before_saved_keep_trust_and_counts() -> None:
    users = b'["eve", 7, 2, -3.0, 5.0, 7.5, "quarantined"], ["ada", 1, 0, 0.4, 0.4, 0.0, "heard"]'
    raters = raters_from_bytes(b'{"seen": 9, "users": [' + users + b"]}")
    assert raters.seen == 9
    assert raters["eve"] == Rater(n=7, refused=2, trust_level="quarantined")
    assert raters["ada"] == Rater(n=1)


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


def test_events_without_a_user_are_never_quarantined() -> None:
    assert observe(crowd(), "", [False] * 100)[""].trust_level == "heard"


def test_people_decide() -> None:
    raters = observe(crowd(), "eve", [False] * 30)
    assert raters["eve"].trust_level == "quarantined"
    trusted = observe(raters.set_trust_level("eve", "trusted"), "eve", [False] * 100)
    assert trusted["eve"].trust_level == "trusted"
    assert trusted.admit(["eve"], cap=1.0)[0].all()
    forgiven = raters.set_trust_level("eve", "heard")
    assert (forgiven["eve"].trust_level, forgiven["eve"].inversion) == ("heard", Inversion())
    assert not raters.set_trust_level("user 1", "quarantined").admit(["user 1"], cap=1.0)[0].any()
    assert "eve" not in raters.without("eve").users


def test_raters_travel_as_json() -> None:
    raters = observe(crowd(), "eve", [False] * 30)
    _, raters = raters.admit(["eve", "bob"], cap=0.5)
    assert raters_from_bytes(raters.to_bytes()) == raters
    assert raters_from_bytes(None) == Raters()


def test_only_the_latest_are_remembered_besides_those_in_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_models.evaluation.raters.MAX_RATERS", 25)
    raters = observe(crowd(), "eve", [False] * 20)
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
