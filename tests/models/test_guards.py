"""The guards of an experiment on failures and late answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plaudit_models.evaluation.e_process import as_json
from plaudit_models.evaluation.guards import BUCKETS, Arm, GuardRules, bucket, guards_from_dict, new_guards, upper_s


def took(*durations_s: float, failed: int = 0) -> Arm:
    counts = [0] * BUCKETS
    for duration_s in durations_s:
        counts[bucket(duration_s)] += 1
    return Arm(failed, tuple(counts))


def test_buckets_by_hand() -> None:
    """0.25 ms · 2^(i/4): 1 ms is two octaves up, the upper end of bucket 8; anything longer is in the next one."""
    assert [bucket(s) for s in (0.0, 0.00025, 0.00026, 0.001, 0.00101, 1e9)] == [0, 0, 1, 8, 9, BUCKETS - 1]
    assert upper_s(8) == pytest.approx(0.001)


def test_first_wealth_by_hand() -> None:
    """s = ½, no margin; the first guess is 0.1/10 = 0.01. One failure by the candidate is e = 0.99/0.5 = 1.98.

    Bettors stake λ_j = 0.9·2^−j/(2 + 1) and own 2^−(j+1)/(1 − 2^−8) each, so wealth is
    1 + 1.98·0.3·Σ 4^−j/2/(1 − 2^−8) = 1 + 1.98·0.15·1.333313/0.996094 = 1.397544.
    """
    after = new_guards(GuardRules(share=0.5, error_margin=0.0)).update(Arm(), Arm(failed=1))
    assert math.exp(after.errors.best[0]) == pytest.approx(1.397544, abs=1e-5)


def run(live: float, candidate: float, seed: int, *, reports: int = 60, share: float = 0.1) -> str | None:
    """What is found in reports of 50 requests, of which each arm fails that share."""
    rng = np.random.default_rng(seed)
    guards = new_guards(GuardRules(share=share))
    for _ in range(reports):
        asked = rng.binomial(50, share)
        failed = rng.binomial(50 - asked, live), rng.binomial(asked, candidate)
        guards = guards.update(
            took(*[0.004] * (50 - asked - failed[0]), failed=failed[0]),
            took(*[0.004] * (asked - failed[1]), failed=failed[1]),
        )
        if guards.finding():
            break
    return guards.finding()


def test_a_candidate_that_fails_is_found_and_equals_are_left_alone() -> None:
    assert [run(0.0, 0.2, seed) for seed in range(20)] == ["errors"] * 20
    assert [run(0.05, 0.05, seed) for seed in range(20)] == [None] * 20
    assert [run(0.2, 0.0, seed) for seed in range(20)] == [None] * 20


def test_a_candidate_that_always_fails_is_found_by_a_dozen_answers() -> None:
    guards = new_guards(GuardRules(share=0.1)).update(took(*[0.004] * 108), Arm(failed=12))
    assert guards.finding() == "errors"
    assert "answers failed: 12 of 12 (100.00%) by the candidate, 0 of 108 (0.00%) by live" in guards.reason("errors")


def latency(candidate_s: float, *, reports: int = 40) -> str | None:
    rng = np.random.default_rng(0)
    guards = new_guards(GuardRules(share=0.1))
    for _ in range(reports):
        live = 0.010 * rng.lognormal(0.0, 0.3, size=45)
        candidate = candidate_s * rng.lognormal(0.0, 0.3, size=5)
        guards = guards.update(took(*live), took(*candidate))
    return guards.finding()


def test_late_answers_are_found_and_a_little_later_is_not_slow() -> None:
    """The 95th percentile is at 10·e^(0.3·1.645) = 16.4 ms, so that slow begins at about 33 to 40 ms."""
    assert latency(0.060) == "latency"
    assert latency(0.012) is None
    assert latency(0.010) is None


def test_nothing_is_slow_before_live_is_known() -> None:
    """What is slow is told by earlier reports: a first one that holds both proves nothing, whatever it holds."""
    guards = new_guards(GuardRules(share=0.5)).update(took(*[0.001] * 1000), took(*[1.0] * 1000))
    assert guards.slow.e_value(0) == 1.0
    assert guards.update(took(*[0.001] * 100), took(*[1.0] * 100)).finding() == "latency"


def test_it_survives_json_and_counts_add_up() -> None:
    rules = GuardRules(share=0.25)
    guards = new_guards(rules).update(took(*[0.001] * 60, failed=1), took(0.002, failed=2))
    again = guards_from_dict(as_json(guards)).update(took(0.003), took(0.5))
    straight = guards.update(took(0.003), took(0.5))
    np.testing.assert_array_equal(again.errors.log_wealth, straight.errors.log_wealth)
    np.testing.assert_array_equal(again.slow.log_wealth, straight.slow.log_wealth)
    assert (again.live, again.candidate, again.rules) == (straight.live, straight.candidate, rules)
    assert (again.live.asked, again.candidate.asked) == (62, 4)
    assert again.candidate.quantile_s(0.5) == pytest.approx(upper_s(bucket(0.002)))


def test_more_buckets_than_there_are() -> None:
    with pytest.raises(ValueError, match="81 buckets"):
        new_guards(GuardRules(share=0.5)).update(Arm(0, (1,) * 81), Arm())
