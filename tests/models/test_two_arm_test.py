"""The experiment of a candidate with a share of the users."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit_models.evaluation.e_process import as_json
from plaudit_models.evaluation.two_arm_test import (
    Propensities,
    TwoArmTestRules,
    new_two_arm_test,
    two_arm_test_from_dict,
    weights,
)

NAN = float("nan")


def test_weights_by_hand() -> None:
    """s = 0.25. Of the draw alone: 1/0.25 for the candidate's answers, −1/0.75 for live's. With c and l known:
    (0.9 − 0.1)/(0.25·0.9 + 0.75·0.1) = 0.8/0.3, and 0 where both would have given it, whichever did.
    """
    part, rules = np.array([True, False, True, True, False]), TwoArmTestRules(share=0.25)
    np.testing.assert_allclose(weights(part, None, rules), [4.0, -4 / 3, 4.0, 4.0, -4 / 3])
    propensities = Propensities(np.array([0.9, 0.9, 0.7, NAN, 0.0]), np.array([0.1, 0.1, 0.7, 0.5, 1.0]))
    np.testing.assert_allclose(weights(part, propensities, rules), [0.8 / 0.3, 0.8 / 0.3, 0.0, 4.0, -4 / 3])


@pytest.mark.parametrize(("c", "live"), [(1.5, 0.5), (-0.1, 0.5), (0.0, 0.0)])
def test_probabilities_out_of_range_are_refused(c: float, live: float) -> None:
    propensities = Propensities(np.array([c]), np.array([live]))
    with pytest.raises(ValueError, match="propensities"):
        weights(np.array([True]), propensities, TwoArmTestRules(share=0.5))


def test_first_wealth_by_hand() -> None:
    """The first guess is ½ (nothing seen), so one thumb up for the candidate at s = 0.5 is d = 1, with bound 2.

    The bettors j = 0…7 hold shares 2^−(j+1)/(1 − 2^−8) and stake λ_j = 0.9·2^−j/(2 + 1) = 0.3·2^−j each; wealth
    after d = 1 against "gain ≤ 0" is Σ share_j (1 + λ_j) = 1 + 0.15·Σ 4^−j/(1 − 2^−8)
    = 1 + 0.15·1.333313/0.996094 = 1.200780.
    """
    after = new_two_arm_test(TwoArmTestRules(share=0.5)).update(np.array([1.0]), np.array([True]), ["ada"])
    assert after.gain.e_value() == pytest.approx(1.200780, abs=1e-5)
    assert after.n == (0, 1)
    assert after.total == (0.0, 1.0)


def run(live: float, candidate: float, seed: int, n: int = 1500) -> str:
    rng = np.random.default_rng(seed)
    experiment = new_two_arm_test(TwoArmTestRules(share=0.25))
    for _ in range(n // 50):
        part = rng.random(50) < 0.25
        reward = (rng.random(50) < np.where(part, candidate, live)).astype(float)
        experiment = experiment.update(reward, part, [f"user {i}" for i in rng.integers(400, size=50)])
        if experiment.finding() != "none":
            break
    return experiment.finding()


def test_gain_and_harm_are_found_and_equals_are_left_alone() -> None:
    """20 experiments each; at level 0.05 for gain and for harm, more than 5 wrong findings of 20 have probability <
    0.05.
    """
    assert [run(0.75, 0.92, seed) for seed in range(20)].count("gain") >= 19
    assert [run(0.92, 0.75, seed) for seed in range(20)].count("harm") >= 19
    assert [run(0.8, 0.8, seed) for seed in range(20)].count("none") >= 15


def narrow_experiment(gain: float, seed: int, *, told: bool, n: int = 1500) -> str:
    """A candidate that differs from live on a fifth of the questions only, where live's answer pleases half the users.

    Both say one of two things; elsewhere they say the same, and it pleases three quarters.
    """
    rng = np.random.default_rng(seed)
    experiment = new_two_arm_test(TwoArmTestRules(share=0.25))
    for _ in range(n // 50):
        part, differ = rng.random(50) < 0.25, rng.random(50) < 0.2
        p_new = np.where(part, 0.95, 0.05)
        new = differ & (rng.random(50) < p_new)
        pleases = np.where(differ, np.where(new, 0.5 + gain, 0.5), 0.75)
        reward = (rng.random(50) < pleases).astype(float)
        c = np.where(differ, np.where(new, 0.95, 0.05), 1.0)
        live = np.where(differ, np.where(new, 0.05, 0.95), 1.0)
        propensities = Propensities(c, live) if told else None
        experiment = experiment.update(
            reward, part, [f"user {i}" for i in rng.integers(400, size=50)], propensities=propensities
        )
        if experiment.finding() != "none":
            break
    return experiment.finding()


def test_what_both_would_say_does_not_hide_a_gain_where_they_differ() -> None:
    """6 points over all, from a fifth of the questions: found in nearly every experiment when the propensities are
    told, and in few when the draw alone speaks. Without a gain, more than 5 wrong findings of 40 at level 0.05 + 0.05
    and 0 % power have probability 0.2; more than 9, 0.005.
    """
    told = [narrow_experiment(0.3, seed, told=True) for seed in range(20)].count("gain")
    untold = [narrow_experiment(0.3, seed, told=False) for seed in range(20)].count("gain")
    assert told >= 18
    assert untold <= told - 4
    assert [narrow_experiment(0.0, seed, told=True) for seed in range(40)].count("none") >= 31


def test_batches_do_not_matter_and_it_survives_json() -> None:
    rng = np.random.default_rng(0)
    reward, part = (rng.random(60) < 0.7).astype(float), rng.random(60) < 0.5
    users = [f"user {i}" for i in range(60)]
    whole = new_two_arm_test(TwoArmTestRules(share=0.5)).update(reward, part, users)
    parts = new_two_arm_test(TwoArmTestRules(share=0.5)).update(reward[:13], part[:13], users[:13])
    parts = two_arm_test_from_dict(as_json(parts)).update(reward[13:], part[13:], users[13:])
    np.testing.assert_allclose(parts.gain.by_answer.log_wealth, whole.gain.by_answer.log_wealth)
    np.testing.assert_allclose(parts.gain.by_draw.log_wealth, whole.gain.by_draw.log_wealth)
    np.testing.assert_allclose(parts.weighed, whole.weighed)
    assert parts.n == whole.n
    assert parts.total == pytest.approx(whole.total)


def test_one_user_counts_for_no_more_than_the_cap() -> None:
    experiment = new_two_arm_test(TwoArmTestRules(share=0.5, user_cap=0.01))
    experiment = experiment.update(np.ones(200), np.ones(200, np.bool_), ["flood"] * 200)
    assert sum(experiment.n) == 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_of_no_user_or_every_user_is_no_experiment(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        TwoArmTestRules(share=share)


def test_rewards_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="reward"):
        new_two_arm_test(TwoArmTestRules(share=0.5)).update(np.array([1.5]), np.array([True]), ["ada"])


def test_a_suspicion_by_hand() -> None:
    """Half of the users, never answered alike: w = ±2, d = 2·(0 − m) for the k-th thumb down of the candidate, and the
    guess m = 20/(40 + 4k) before it.

    Of 10, Σ d = −7.188 and Σ d² = 5.390. With one d = 2 beside them the mean of 11 is −0.472, its error
    √((9.390 − 11·0.472²)/10/11) = 0.251: −0.472 + 1.5·0.251 = −0.095 is below −0.03. Of 3 the mean is −0.186 and the
    error 0.73. As many thumbs up take the suspicion back.
    """
    rules = TwoArmTestRules(share=0.5, margin=0.03)
    few = new_two_arm_test(rules).update(np.zeros(3), np.ones(3, bool), ["u"] * 3, n_users=1)
    assert not new_two_arm_test(rules).suspected
    assert not few.suspected
    enough = few.update(np.zeros(7), np.ones(7, bool), ["u"] * 7, n_users=1)
    assert enough.moments == pytest.approx((10, -7.188, 5.390), abs=1e-3)
    assert enough.suspected
    assert two_arm_test_from_dict(as_json(enough)).suspected
    assert not enough.update(np.ones(10), np.ones(10, bool), ["u"] * 10, n_users=1).suspected


def test_before_the_candidate_has_served_nothing_is_suspected() -> None:
    """A tenth of the users, and only live has answered, to the delight of all: d = −(1 − m)/0.9, hardly scattered."""
    rules = TwoArmTestRules(share=0.1, margin=0.03)
    experiment = new_two_arm_test(rules).update(
        np.ones(30), np.zeros(30, bool), [f"u{i}" for i in range(30)], n_users=30
    )
    assert experiment.moments[1] / 30 < -0.03
    assert not experiment.suspected


def test_two_bettors_by_hand() -> None:
    """s = 0.5, so the bound is 2 and the stakes are λ_j = 0.3·2^−j as above. One thumb up for an answer with c = 0.6,
    l = 0.2: w = 0.4/0.4 = 1 and d = 0.5 by its propensities, w = 2 and d = 1 by the draw. Wealth is 1 + 0.200780·d, so
    both together own 1 + 0.200780·0.75.
    """
    propensities = Propensities(np.array([0.6]), np.array([0.2]))
    after = new_two_arm_test(TwoArmTestRules(share=0.5)).update(
        np.array([1.0]), np.array([True]), ["ada"], propensities=propensities
    )
    assert after.gain.e_value() == pytest.approx(1 + 0.200780 * 0.75, abs=1e-5)


def judged_by_version(seed: int, worse: float, n: int = 2_500) -> str:
    """Dynamic action and live answer alike half of the time, and users like the candidate less, whatever it says."""
    rng, c, live = np.random.default_rng(seed), np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    experiment = new_two_arm_test(TwoArmTestRules(share=0.25))
    for _ in range(n // 50):
        part, common = rng.random(50) < 0.25, rng.random(50) < 0.5
        answer = np.where(common, 1, np.where(part, 0, 2))
        reward = (rng.random(50) < np.where(part, 0.9 - worse, 0.9)).astype(float)
        users = [f"user {i}" for i in rng.integers(400, size=50)]
        experiment = experiment.update(reward, part, users, propensities=Propensities(c[answer], live[answer]))
        if experiment.finding() != "none":
            break
    return experiment.finding()


def test_harm_is_found_too_where_users_judge_the_version_and_not_its_answer() -> None:
    """12 points; of equals, more than 5 wrong findings of 20 at level 0.05 + 0.05 have probability 0.02."""
    assert [judged_by_version(seed, 0.12) for seed in range(20)].count("harm") >= 18
    assert [judged_by_version(seed, 0.0) for seed in range(20)].count("none") >= 15


def test_a_version_that_is_judged_whatever_it_answers_is_suspected_too() -> None:
    """Both would have answered alike, so its answers say nothing; the draw does."""
    part = np.arange(40) % 2 == 0
    alike = Propensities(np.ones(40), np.ones(40))
    users = [f"user {i}" for i in range(40)]
    after = new_two_arm_test(TwoArmTestRules(share=0.5)).update(1.0 - part, part, users, propensities=alike)
    assert after.moments == (40, 0.0, 0.0)
    assert after.suspected
