"""The gate: differences worked by hand, its error rates in a world with a known answer, slices, loud users, travel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from plaudit_models.bandit.features import Float64, Floats
from plaudit_models.evaluation.e_process import as_json, log_gains, log_total
from plaudit_models.evaluation.gate import (
    Comparison,
    Differences,
    GateReport,
    GateRules,
    comparison_from_dict,
    differences,
    new_comparison,
)
from plaudit_models.evaluation.ope import LoggedRounds

RULES = GateRules()
N_KINDS = 10


def judge(
    log: LoggedRounds,
    candidate_probs: Floats,
    live_probs: Floats,
    q_hat: Floats,
    *,
    users: Sequence[str],
    slices: Sequence[str],
    rules: GateRules,
) -> GateReport:
    """The gate in one look: its report on decisions that live logged."""
    seen = differences(log, candidate_probs, live_probs, q_hat, logging_probs=live_probs, rules=rules)
    return new_comparison(rules).update(seen, users, slices).report()


@dataclass(frozen=True)
class World:
    """Ten equally likely kinds of context, four actions, P(reward) and two policies by kind, all ``[kinds, 4]``.

    Live mostly picks action 0, which is right in kinds 0-4 and second best in kinds 5-9; each policy keeps 0.005 of
    exploration per action. ``q_hat`` is a reward model that is off by up to 0.2.
    """

    rewards: Float64
    live: Float64
    candidate: Float64
    q_hat: Float64

    @property
    def gain(self) -> float:
        return float(((self.candidate - self.live) * self.rewards).sum(axis=1).mean())

    def log(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, LoggedRounds]:
        kind = rng.integers(0, N_KINDS, n)
        action = (rng.random(n)[:, None] > self.live[kind].cumsum(axis=1)).sum(axis=1)
        reward = (rng.random(n) < self.rewards[kind, action]).astype(np.float64)
        return kind, LoggedRounds(reward, action, self.live[kind, action])

    def seen(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, Differences]:
        kind, log = self.log(rng, n)
        live = self.live[kind]
        return kind, differences(log, self.candidate[kind], live, self.q_hat[kind], logging_probs=live, rules=RULES)


def world(gain: float) -> World:
    """A world whose candidate is better by exactly ``gain``: it moves 0.1 of its choices from action 0 to action 1 in
    kinds 0-4, where that is worse, and in kinds 5-9, where that is better, as much as makes up for it and the gain."""
    rewards = np.tile([0.9, 0.3, 0.1, 0.1], (N_KINDS, 1))
    rewards[5:] = [0.5, 0.9, 0.1, 0.1]
    live = np.tile([0.85, 0.14, 0.005, 0.005], (N_KINDS, 1))
    towards_one = np.array([-1.0, 1.0, 0.0, 0.0])
    moved = np.array([0.1] * 5 + [(0.1 * 0.6 + 2.0 * gain) / 0.4] * 5)
    candidate = live + moved[:, None] * towards_one
    q_hat = np.clip(rewards + np.random.default_rng(0).uniform(-0.2, 0.2, rewards.shape), 0.0, 1.0)
    made = World(rewards, live, candidate, q_hat)
    assert made.gain == pytest.approx(gain)
    assert (candidate > 0).all()
    return made


def anyone(n: int) -> list[str]:
    return [f"user {i}" for i in range(n)]


def compare(seen: Differences, slices: list[str] | None = None, rules: GateRules = RULES) -> Comparison:
    n = len(seen.low)
    return new_comparison(rules).update(seen, anyone(n), slices or [""] * n)


def constant(gain: float, n: int) -> Differences:
    return Differences(np.full(n, gain), np.full(n, gain), np.ones(n))


def test_differences_by_hand() -> None:
    """Slack 1; action 1 was logged by live at 0.1, reward 1; q̂ = [0.6, 0.2], π_c = [0.2, 0.8], π_l = [0.9, 0.1].

    Low: for the candidate q̂ is lowered to [0.6, 0.1/0.8 = 0.125]: 0.12 + 0.1 + 8·0.875 = 7.22. For live nothing
    changes: 0.54 + 0.02 + 0.8 = 1.36. Difference 5.86.
    High: for the candidate 1 − q̂ = [0.4, 0.8] is lowered to [0.4, 0.125]: 1 − (0.08 + 0.1 − 8·0.125) = 1.82.
    Difference 1.82 − 1.36 = 0.46.
    """
    log = LoggedRounds(np.array([1.0]), np.array([1]), np.array([0.1]))
    candidate, live, q_hat = np.array([[0.2, 0.8]]), np.array([[0.9, 0.1]]), np.array([[0.6, 0.2]])
    seen = differences(log, candidate, live, q_hat, logging_probs=live, rules=GateRules(slack=1.0))
    assert (seen.low[0], seen.high[0], seen.weight[0]) == pytest.approx((5.86, 0.46, 8.0))
    cut = differences(log, candidate, live, q_hat, logging_probs=live, rules=GateRules(slack=1.0, max_difference=3.0))
    assert (cut.low[0], cut.high[0]) == pytest.approx((3.0, 0.46))


def test_differences_are_unbiased_whatever_the_reward_model() -> None:
    made = world(gain=0.03)
    rng = np.random.default_rng(1)
    _, seen = made.seen(rng, 100_000)
    for values in (seen.low, seen.high):
        assert abs(values.mean() - 0.03) < 4 * values.std() / np.sqrt(100_000)


def test_differences_stay_in_bounds_where_the_logging_policy_is_not_quite_known() -> None:
    """Logged at 0.01 where 0.5 was thought: without the cut, low would be near −48 and high near 51."""
    candidate, live = np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]])
    for reward, q_hat in ((0.0, 0.9), (1.0, 0.1)):
        log = LoggedRounds(np.array([reward]), np.array([1]), np.array([0.01]))
        seen = differences(log, candidate, live, np.array([[0.5, q_hat]]), logging_probs=live, rules=RULES)
        assert -3.0 <= seen.low[0] <= 10.0
        assert -10.0 <= seen.high[0] <= 3.0


def promotions(gain: float, replicates: int, n: int = 5_000) -> Float64:
    """For each look of 100 decisions, the share of replicates in which gain is proven by then, shape ``[n / 100]``."""
    made = world(gain)
    proven = []
    for replicate in range(replicates):
        _, seen = made.seen(np.random.default_rng(1_000 + replicate), n)
        wealth = log_total(log_gains(seen.low, np.array([0.0]), RULES.bound)[:, 0].cumsum(axis=0))
        proven.append(np.maximum.accumulate(wealth[99::100]) >= -np.log(RULES.alpha))
    shares: Float64 = np.mean(proven, axis=0, dtype=np.float64)
    return shares


def test_no_gain_is_hardly_ever_promoted_and_three_points_are_always() -> None:
    """60 logs each. At α = 0.05 more than 8 of 60 false promotions have probability below 0.003."""
    assert promotions(gain=0.0, replicates=60)[-1] <= 8 / 60
    assert promotions(gain=0.03, replicates=60)[-1] >= 0.95


@pytest.mark.slow
def test_error_rates_of_the_whole_comparison_over_200_logs() -> None:
    """The comparison itself, with users, slices and a look every 100 decisions up to 5,000."""
    found: dict[float, list[Any]] = {}
    for gain in (0.0, 0.03):
        made = world(gain)
        found[gain] = []
        for replicate in range(200):
            rng = np.random.default_rng(5_000 + replicate)
            _, seen = made.seen(rng, 5_000)
            comparison = new_comparison(RULES)
            for start in range(0, 5_000, 100):
                look = slice(start, start + 100)
                part = Differences(seen.low[look], seen.high[look], seen.weight[look])
                comparison = comparison.update(part, anyone(100), [""] * 100)
                if comparison.finding() != "none":
                    break
            found[gain].append(comparison.finding())
    assert found[0.0].count("gain") / 200 <= 0.05
    assert found[0.03].count("gain") / 200 >= 0.99


def test_gain_is_promoted_with_its_evidence() -> None:
    _, seen = world(gain=0.06).seen(np.random.default_rng(1), 4_000)
    report = compare(seen).report()
    assert report.verdict == "promote"
    assert report.e_value_gain >= 20.0 > report.e_value_harm
    assert 0.0 < report.lower < report.gain < report.upper
    assert report.lower < 0.06 < report.upper
    assert report.n == 4_000
    assert "better than live" in report.reasons[0]
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == "promote"


def test_harm_is_rejected() -> None:
    _, seen = world(gain=-0.05).seen(np.random.default_rng(1), 4_000)
    report = compare(seen).report()
    assert report.verdict == "reject"
    assert report.upper < 0.0
    assert "worse than live" in report.reasons[0]


def test_a_margin_forgives_small_harm() -> None:
    _, seen = world(gain=-0.05).seen(np.random.default_rng(1), 4_000)
    assert compare(seen, rules=GateRules(margin=0.1)).finding() == "none"


def test_harm_on_a_slice_rejects_what_gains_over_all() -> None:
    """In kinds 0-4 the candidate loses 0.06, far more than the slice margin of 0.01; over all it gains 0.06."""
    kind, seen = world(gain=0.06).seen(np.random.default_rng(1), 20_000)
    slices = ["losers" if k < 5 else "winners" for k in kind]
    report = compare(seen, slices, GateRules(slice_margin=0.01)).report()
    assert report.e_value_gain >= 20.0
    assert report.verdict == "reject"
    losers = next(part for part in report.slices if part.name == "losers")
    assert losers.gain == pytest.approx(-0.06, abs=0.02)
    assert losers.harmed
    assert report.reasons[0].startswith("slice 'losers' worse by more than 0.01")


def test_later_slices_need_more_proof() -> None:
    """α/(k(k+1)) sums to α over all k, so the thresholds are 2/α, 6/α, 12/α."""
    report = compare(constant(0.0, 3), ["a", "b", "c"]).report()
    assert [part.threshold for part in report.slices] == pytest.approx([40.0, 120.0, 240.0])
    assert not any(part.harmed for part in report.slices)


def test_few_decisions_give_no_verdict() -> None:
    report = compare(constant(1.0, 99)).report()
    assert report.e_value_gain > 20.0
    assert (report.verdict, report.reasons) == (
        "insufficient",
        ("99 decisions counted, 100 are needed before any verdict",),
    )
    assert compare(constant(1.0, 100)).report().verdict == "promote"


def test_one_heavy_user_cannot_push_a_bad_candidate_through() -> None:
    """A third of the feedback is one client's and always praises the candidate; it counts for 1 %."""
    _, seen = world(gain=-0.05).seen(np.random.default_rng(2), 6_000)
    loud = np.arange(6_000) % 3 == 0
    praised = Differences(np.where(loud, 1.0, seen.low), np.where(loud, 1.0, seen.high), seen.weight)
    users = ["loud" if is_loud else f"user {i}" for i, is_loud in enumerate(loud)]

    def verdict(user_cap: float) -> str:
        comparison = new_comparison(GateRules(user_cap=user_cap)).update(praised, users, [""] * 6_000)
        return comparison.report().verdict

    assert verdict(user_cap=1.0) == "promote"
    assert verdict(user_cap=0.01) == "reject"
    report = new_comparison(RULES).update(praised, users, [""] * 6_000).report()
    assert (report.n, report.capped) == (4_059, 1_941)


def test_gain_and_effective_n_by_hand() -> None:
    """Weights 1 and 3: (1 + 3)² / (1 + 9) = 1.6. Gain is the mean of low and high: (0.1 + 0.3 + 0.2 + 0.6)/4 = 0.3."""
    report = compare(Differences(np.array([0.1, 0.3]), np.array([0.2, 0.6]), np.array([1.0, 3.0]))).report()
    assert report.effective_n == pytest.approx(1.6)
    assert report.gain == pytest.approx(0.3)


def test_a_comparison_travels_as_json_and_goes_on() -> None:
    kind, seen = world(gain=0.03).seen(np.random.default_rng(1), 600)
    slices = [f"kind {k}" for k in kind]
    half, rest = (Differences(seen.low[s], seen.high[s], seen.weight[s]) for s in (slice(300), slice(300, 600)))
    before = new_comparison(RULES).update(half, anyone(300), slices[:300])
    back = comparison_from_dict(json.loads(json.dumps(as_json(before))))
    assert (
        back.update(rest, anyone(300), slices[300:]).report() == before.update(rest, anyone(300), slices[300:]).report()
    )


def test_a_fresh_comparison_has_nothing_to_say() -> None:
    report = new_comparison(RULES).report()
    assert (report.verdict, report.gain, report.lower, report.upper, report.n) == ("insufficient", 0.0, -1.0, 1.0, 0)


def test_judge_is_differences_and_one_look() -> None:
    made = world(gain=0.06)
    kind, log = made.log(np.random.default_rng(1), 3_000)
    policies = made.candidate[kind], made.live[kind], made.q_hat[kind]
    users, slices = anyone(3_000), [f"kind {k}" for k in kind]
    report = judge(log, *policies, users=users, slices=slices, rules=RULES)
    seen = differences(log, *policies, logging_probs=policies[1], rules=RULES)
    assert report == new_comparison(RULES).update(seen, users, slices).report()


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 differences, 2 users, 3 slices and 2 groups"):
        new_comparison(RULES).update(constant(0.0, 3), anyone(2), [""] * 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.0),
        ("margin", -0.1),
        ("slice_margin", 2.0),
        ("user_cap", 0.0),
        ("slack", 0.0),
        ("max_difference", 0.5),
    ],
)
def test_rules_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}.*needs"):
        GateRules(**{name: value})


def test_a_suspected_slice_holds_a_proven_gain_back() -> None:
    """Slice a: gains −0.1 and −0.3 in turn, mean −0.2, 50 decisions: error √(0.01·50/49/50) ≈ 0.0143, so

    −0.2 + 1.5·0.0143 < −0.03; its harm is not proven yet, as that takes more. Slice b gains 0.5 on 500.
    """
    in_a = np.arange(550) < 50
    gain = np.where(in_a, np.where(np.arange(550) % 2 == 0, -0.1, -0.3), 0.5)
    seen = Differences(gain, gain, np.ones(550))
    held = compare(seen, ["a" if a else "b" for a in in_a])
    report = held.report()
    part = report.slices[0]
    assert (part.gain, part.standard_error) == pytest.approx((-0.2, np.sqrt(0.01 / 49)))
    assert part.suspected
    assert not part.harmed
    assert report.e_value_gain >= 20.0
    assert report.verdict == "insufficient"
    assert "slice 'a' may be worse" in report.reasons[-1]
    cleared = held.update(Differences(np.full(400, 0.1), np.full(400, 0.1), np.ones(400)), anyone(400), ["a"] * 400)
    assert cleared.report().verdict == "promote"


def test_few_users_share_equally_instead_of_being_left_out() -> None:
    """8 users, cap 1 %. Where it is not known that they are 8, 39 of each count by 3,999 decisions, then a 40th of one.

    Where it is known, all count but one of seven users: an eighth of t < 8n is less than n.
    """
    users = [f"user {i % 8}" for i in range(4_000)]
    seen = constant(0.05, 4_000)
    strict = new_comparison(RULES).update(seen, users, [""] * 4_000).report()
    assert (strict.n, strict.raters) == (313, 8)
    assert "3687 of 4000 decisions are left out" in strict.reasons[-1]
    fair = new_comparison(RULES).update(seen, users, [""] * 4_000, n_users=8).report()
    assert fair.n == 3_993
    assert not any("left out" in reason for reason in fair.reasons)


def test_one_heavy_user_of_few_counts_as_one_of_them() -> None:
    """19 honest users know a bad candidate; the 20th sends half of the events and praises it.

    An equal share is 1/20, so the heavy user has 199 ≤ 0.05·3999 of the 2,199 that count.
    """
    loud = np.arange(4_000) % 2 == 0
    gains = np.where(loud, 1.0, np.where(np.arange(4_000) % 4 == 1, 0.2, -0.4))
    users = ["loud" if is_loud else f"user {i % 19}" for i, is_loud in enumerate(loud)]
    seen = Differences(gains, gains, np.ones(4_000))
    report = new_comparison(RULES).update(seen, users, [""] * 4_000, n_users=20).report()
    assert report.n == 2_199
    assert report.verdict == "insufficient"
    assert new_comparison(GateRules(user_cap=1.0)).update(seen, users, [""] * 4_000).report().verdict == "promote"


def test_more_users_than_the_cap_needs_change_nothing() -> None:
    users = ["loud"] * 1_000
    for n_users in (0, 100, 10_000):
        assert new_comparison(RULES).update(constant(1.0, 1_000), users, [""] * 1_000, n_users=n_users).n == 10


def test_no_thumbs_at_all_prove_nothing() -> None:
    untouched = new_comparison(RULES).update(constant(0.0, 0), [], [])
    assert untouched.report().verdict == "insufficient"


def test_all_thumbs_down_prove_neither_gain_nor_harm_between_equals() -> None:
    made = world(gain=0.0)
    kind, log = made.log(np.random.default_rng(3), 3_000)
    down = LoggedRounds(np.zeros(3_000), log.action, log.pscore)
    live = made.live[kind]
    report = judge(down, live, live, made.q_hat[kind], users=anyone(3_000), slices=[""] * 3_000, rules=RULES)
    assert report.verdict == "insufficient"
    assert report.gain == pytest.approx(0.0)


def test_what_live_never_answers_counts_as_worst_for_gain_and_as_best_for_harm() -> None:
    """Action 1 was never offered (p = 0), so nothing is known of it: q̂ = 0.9 is not believed either way.

    Dynamic action [0, 1], live [1, 0] with reward 1 for action 0 at p = 1: low = 0 − 1, high = 1 − 1.
    """
    log = LoggedRounds(np.array([1.0]), np.array([0]), np.array([1.0]))
    live = np.array([[1.0, 0.0]])
    seen = differences(log, np.array([[0.0, 1.0]]), live, np.array([[0.9, 0.9]]), logging_probs=live, rules=RULES)
    assert (seen.low[0], seen.high[0]) == pytest.approx((-1.0, 0.0))


def mixed_world(n: int, *, small: int, seed: int = 0) -> tuple[Differences, list[str]]:
    """Every ``small``-th decision is of group de-DE, which loses 0.4; the others, en-US, gain 0.3."""
    rng = np.random.default_rng(seed)
    groups = ["de-DE" if i % small == 0 else "en-US" for i in range(n)]
    mean = np.array([-0.4 if group == "de-DE" else 0.3 for group in groups])
    gain = np.clip(mean + rng.choice([-0.5, 0.5], n), -1.0, 1.0)
    return Differences(gain, gain, np.ones(n)), groups


def test_a_gain_over_all_that_one_user_group_pays_for_is_no_gain() -> None:
    """All decisions are of one kind of input, so nothing but the group tells them apart."""
    seen, groups = mixed_world(400, small=10)
    blind = new_comparison(RULES).update(seen, anyone(400), ["a"] * 400)
    assert blind.report().verdict == "promote"
    held = new_comparison(RULES).update(seen, anyone(400), ["a"] * 400, groups=groups)
    assert held.report().verdict == "insufficient"
    assert "slice 'user group de-DE' may be worse" in held.report().reasons[-1]
    seen, groups = mixed_world(4_000, small=10)
    report = new_comparison(RULES).update(seen, anyone(4_000), ["a"] * 4_000, groups=groups).report()
    assert report.verdict == "reject"
    assert [part.name for part in report.slices] == ["a", "user group de-DE", "user group en-US"]
    assert [part.threshold for part in report.slices] == [40.0, 120.0, 240.0]
    assert [part.harmed for part in report.slices] == [False, True, False]


def test_group_labels_without_end_do_not_grow_the_state_nor_hold_a_gain_back() -> None:
    labels = [f"g{i % 500}" for i in range(2_000)]
    gain = np.where(np.arange(2_000) % 500 < 10, -0.2, 0.3)
    seen = Differences(gain, gain, np.ones(2_000))
    report = new_comparison(RULES).update(seen, anyone(2_000), [""] * 2_000, groups=labels).report()
    assert len(report.slices) == 16
    assert report.untested == (500 - 16) * 4
    assert "1936 decisions are of further user groups" in report.reasons[-1]
    assert report.verdict == "promote"  # 4 decisions of a group are too few to suspect anything


def test_groups_are_kept_and_taken_up_again() -> None:
    seen, groups = mixed_world(400, small=4)
    before = new_comparison(RULES).update(seen, anyone(400), ["a"] * 400, groups=groups)
    raw = json.loads(json.dumps(as_json(before)))
    assert comparison_from_dict(raw).report() == before.report()


@pytest.mark.slow
def test_harm_is_wrongly_found_on_a_group_in_five_percent_at_most() -> None:
    """Every group of every kind loses exactly the margin: 3 kinds × 4 groups, a look every 50, 200 runs of 1,000."""
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        held = new_comparison(replace(RULES, margin=1.0, slice_margin=0.03))
        for _ in range(20):
            gain = rng.choice([-0.53, 0.47], 50)
            kinds, groups = rng.integers(3, size=50), rng.integers(4, size=50)
            held = held.update(
                Differences(gain, gain, np.ones(50)),
                anyone(50),
                [f"k{k}" for k in kinds],
                groups=[f"g{g}" for g in groups],
            )
            if held.finding() == "harm":
                found += 1
                break
    assert found <= 17  # at most 5 %: more than 17 of 200 then have probability below 0.02
