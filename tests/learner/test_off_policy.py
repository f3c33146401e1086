"""Two policies with different action sets on the same experiences, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.errors import UnknownVersion
from plaudit.core.events import Features
from plaudit.core.experience import DecisionHeader, Experience, Label, RaterLabel, mean_label
from plaudit.learner.evaluation.off_policy import (
    Compared,
    CountedRating,
    Policy,
    can_answer,
    compare,
    compared_differences,
    counts_as_proof,
    logged_policies,
    rating_of,
    slice_of,
)
from plaudit.learner.features.context import Context
from plaudit_models.evaluation.gate import Comparison, GateRules, differences, new_comparison
from plaudit_models.evaluation.ope import LoggedRounds
from plaudit_models.spec import ModelSpec
from support.builders import NOW_S, tiny_spec

SPEC = replace(tiny_spec(), actions=("cat", "dog", "fish"))
RULES = GateRules(min_events=1)


def an_experience(action: str = "cat", *, version: int = 1, reward: float = 1.0, **fields: Any) -> Experience:
    served = DecisionHeader("p", NOW_S, "ada", version, action, 0.5, (), False, ("text",))
    return Experience(1, served, Label({action: reward}, 1.0), (0.5, 0.25, 0.25), **fields)


def compared(experience: Experience) -> Compared:
    features = Features("t", np.zeros(4, np.float32), np.array([3.0, 0.0, 0.0], np.float32))
    return Compared(experience, Context(features, SPEC.actions))


@dataclass
class Registry:
    specs: Mapping[int, ModelSpec]

    def manifest(self, version: int) -> Any:
        if version not in self.specs:
            raise UnknownVersion(version, list(self.specs))
        return _Manifest(self.specs[version])


@dataclass
class _Manifest:
    spec: ModelSpec


def test_columns_move_to_where_their_action_is() -> None:
    policy = Policy(("cat", "dog"), [0.7, 0.3])
    np.testing.assert_array_equal(policy.onto(["dog", "fish", "cat"]), [0.3, 0.0, 0.7])
    np.testing.assert_array_equal(policy.onto(["dog", "fish", "cat"], missing=0.5), [0.3, 0.5, 0.7])
    np.testing.assert_array_equal(policy.onto(["cat", "dog"]), [0.7, 0.3])


def test_logged_policies_of_versions_with_different_actions_and_of_one_that_is_gone() -> None:
    other = replace(SPEC, actions=("bird", "cat", "dog"))
    rows = [*(compared(an_experience(version=v)) for v in (1, 2, 3)), picked(("a", "b"), "b", 1.0, (0.25, 0.75))]
    logged = logged_policies(rows, Registry({1: SPEC, 2: other}), SPEC.actions)  # type: ignore[arg-type]
    assert [tuple(each.actions) for each in logged] == [SPEC.actions, other.actions, SPEC.actions, ("a", "b")]
    assert [tuple(each.values) for each in logged] == [(0.5, 0.25, 0.25)] * 3 + [(0.25, 0.75)]


def test_a_candidate_with_a_new_action_is_given_no_credit_for_it() -> None:
    """It always says bird, which was never offered; live said cat, p = ½, and was right.

    Low: bird is worth 0 at worst. Live's upper value: 1 − q̂ = ½ for all, so ½·½ + ¼·½ + ¼·½ = ½ and the outcome is
    1 − (½ + 1·(0 − ½)) = 1. So low = −1. High: bird is worth 1 at best, live at least ½ + 1·(1 − ½) = 1, so 0.
    """
    logged = [Policy(SPEC.actions, [0.5, 0.25, 0.25])]
    after = compare(
        new_comparison(RULES),
        [compared(an_experience())],
        candidate=[Policy(("bird",), [1.0])],
        baseline=logged,
        logged=logged,
        q_hat=[Policy(("bird",), [0.9])],
        n_users=1,
    )
    assert after.report().gain == pytest.approx((-1.0 + 0.0) / 2)


def test_a_candidate_without_the_answer_that_was_given_is_judged_all_the_same() -> None:
    """It never says cat, which was wrong: live is worth ½ + 1·(0 − ½) = 0, the candidate the ½ that q̂ says."""
    logged = [Policy(SPEC.actions, [0.5, 0.25, 0.25])]
    after = compare(
        new_comparison(RULES),
        [compared(an_experience(reward=0.0))],
        candidate=[Policy(("dog", "fish"), [0.5, 0.5])],
        baseline=logged,
        logged=logged,
        q_hat=[Policy(("dog", "fish"), [0.5, 0.5])],
        n_users=1,
    )
    assert after.report().gain == pytest.approx(0.5)


def test_a_decision_counts_in_the_slice_of_its_input_and_in_that_of_its_users_group() -> None:
    policy = [Policy(SPEC.actions, [0.5, 0.25, 0.25])] * 3
    row = an_experience()
    rows = [
        replace(row, decision=replace(row.decision, user_id=user, user_group=label))
        for user, label in (("ada", "premium"), ("bob", ""), ("eve", "premium"))
    ]
    after = compare(
        new_comparison(RULES),
        [compared(each) for each in rows],
        candidate=policy,
        baseline=policy,
        logged=policy,
        q_hat=policy,
        n_users=3,
    )
    counted = {part.name: part.n for part in after.report().slices}
    assert counted == {"text: cat": 3, "user group premium": 2}


def test_what_counts() -> None:
    assert rating_of(an_experience()) == CountedRating("ada", 1.0)
    assert counts_as_proof(an_experience())
    implicit = replace(an_experience(), label=Label({"cat": 1.0}, 0.25))
    about_another = replace(an_experience(), label=Label({"dog": 1.0}, 1.0))
    for experience in (implicit, about_another, replace(an_experience(), label=None)):
        assert rating_of(experience) is None
        assert not counts_as_proof(experience)
    greedy = replace(an_experience(), decision=replace(an_experience().decision, greedy=True))
    assert not counts_as_proof(greedy)
    assert not counts_as_proof(replace(an_experience(), probabilities=None))


def rated_by(**thumbs: float) -> Experience:
    """Asked by Ada."""
    label = mean_label([RaterLabel(rater, {"cat": reward}, 1.0) for rater, reward in thumbs.items()])
    return replace(an_experience(), label=label)


def test_a_decision_counts_with_the_rating_of_who_asked_else_of_the_first() -> None:
    assert rating_of(rated_by(eve=0.0, ada=1.0)) == CountedRating("ada", 1.0)
    assert rating_of(rated_by(eve=0.0, bob=1.0)) == CountedRating("eve", 0.0)
    silent = mean_label([RaterLabel("ada", {"cat": 0.9}, 0.25), RaterLabel("eve", {"cat": 0.0}, 1.0)])
    assert rating_of(replace(an_experience(), label=silent)) == CountedRating("eve", 0.0)


def test_a_rater_who_is_not_learned_from_is_evidence_and_what_is_set_aside_is_none() -> None:
    refused = replace(rated_by(eve=0.0), refused=("eve",))
    assert not refused.counts
    assert rating_of(refused) == CountedRating("eve", 0.0)
    assert counts_as_proof(refused)
    assert rating_of(replace(refused, excluded=True)) is None
    assert rating_of(replace(refused, outdated=True)) is None


def test_one_rater_of_many_askers_decisions_has_one_share() -> None:
    """20 askers, all rated by Eve. With a cap of 0.1, her first counts, then the 20th: the one that makes 2 of 20."""
    rows = [
        compared(replace(rated_by(eve=1.0), decision=replace(an_experience().decision, user_id=f"user {i}")))
        for i in range(20)
    ]
    uniform = [Policy(SPEC.actions, (0.5, 0.25, 0.25))] * 20
    after = compare(
        new_comparison(GateRules(min_events=1, user_cap=0.1)),
        rows,
        candidate=uniform,
        baseline=uniform,
        logged=uniform,
        q_hat=uniform,
        n_users=100,
    )
    assert (after.n, after.report().raters, after.report().capped) == (2, 1, 18)


def test_a_request_that_allows_none_of_a_policys_actions() -> None:
    served = an_experience().decision
    assert can_answer(served, SPEC)
    assert can_answer(replace(served, allowed_actions=("bird", "dog")), SPEC)
    assert not can_answer(replace(served, allowed_actions=("bird",)), SPEC)


# --- answers that were picked from dynamic actions
# ------------------------------------------------------------------------


def picked(ids: tuple[str, ...], action: str, reward: float, probabilities: tuple[float, ...]) -> Compared:
    served = DecisionHeader(
        "p", NOW_S, "ada", 1, action, probabilities[ids.index(action)], (), False, ("text",), dynamic_actions=ids
    )
    experience = Experience(1, served, Label({action: reward}, 1.0), probabilities)
    features = Features("t", np.zeros(4, np.float32), np.zeros(len(ids), np.float32))
    return Compared(experience, Context(features, ids, vectors=np.zeros((len(ids), 4), np.float32)))


ROWS = [
    picked(("a", "b"), "b", 1.0, (0.25, 0.75)),
    picked(("b", "a", "c", "d"), "a", 0.0, (0.1, 0.4, 0.3, 0.2)),
    picked(("x",), "x", 1.0, (1.0,)),
]
BASELINE = [[0.9, 0.1], [0.7, 0.1, 0.1, 0.1], [1.0]]
Q_HAT = [[0.2, 0.9], [0.6, 0.3, 0.5, 0.1], [0.8]]


def listed_together(rows: list[int]) -> Comparison:
    def over(values: Sequence[Sequence[float]]) -> list[Policy]:
        return [Policy(ROWS[i].context.actions, values[i]) for i in rows]

    own = over([row.experience.probabilities or () for row in ROWS])
    return compare(
        new_comparison(RULES),
        [ROWS[i] for i in rows],
        candidate=own,
        baseline=over(BASELINE),
        logged=own,
        q_hat=over(Q_HAT),
        n_users=1,
    )


def test_each_answer_is_compared_over_its_own_dynamic_actions() -> None:
    """As if every list were compared alone, with nothing behind its last action."""
    alone = []
    for row, baseline, q_hat in zip(ROWS, BASELINE, Q_HAT, strict=True):
        served, own = row.experience.decision, np.array([row.experience.probabilities])
        log = LoggedRounds(
            np.array([row.experience.reward]),
            np.array([served.dynamic_actions.index(served.action)]),
            np.array([served.propensity]),
        )
        seen = differences(log, own, np.array([baseline]), np.array([q_hat]), logging_probs=own, rules=RULES)
        alone.append(float(seen.low[0] + seen.high[0]) / 2.0)
    assert listed_together([0, 1, 2]).gain_sum == pytest.approx(sum(alone))
    assert alone[0] > 0.0 > alone[1]  # right more often than the baseline, and wrong more often
    assert alone[2] == 0.0  # there was nothing to choose
    assert listed_together([1, 0, 2]).gain_sum == pytest.approx(sum(alone))


def test_both_kinds_of_decision_are_compared_at_once_by_hand() -> None:
    """A list of two and the model's three actions, each candidate sure of what was right, live of nothing; q̂ = ½.

    List: live ½·½ + ½·½ + 1·(1 − ½) = 1. Candidate: ½ + 2·(1 − ½) = 1½. Actions: live ½ + 1·½ = 1 again, and the
    candidate the same 1½. q̂ is nowhere so large that a bound needs it lowered. So the gain is ½ in both.
    """
    rows = [picked(("a", "b"), "b", 1.0, (0.5, 0.5)), compared(an_experience())]
    logged = [Policy(("a", "b"), [0.5, 0.5]), Policy(SPEC.actions, [0.5, 0.25, 0.25])]
    after = compare(
        new_comparison(RULES),
        rows,
        candidate=[Policy(("a", "b"), [0.0, 1.0]), Policy(("cat",), [1.0])],
        baseline=logged,
        logged=logged,
        q_hat=[Policy(("a", "b"), [0.5, 0.5]), Policy(SPEC.actions, [0.5] * 3)],
        n_users=1,
    )
    assert after.report().gain == pytest.approx(0.5)
    gains = {part.name: part.gain for part in after.report().slices}
    assert gains == pytest.approx({"text: one of its dynamic actions": 0.5, "text: cat": 0.5})


@st.composite
def a_list(draw: st.DrawFn) -> tuple[list[float], ...]:
    """Logged and candidate probabilities of k actions, q̂, and the probability that users like each."""
    k = draw(st.integers(1, 5))

    def some(low: float) -> list[float]:
        return draw(st.lists(st.floats(low, 1.0), min_size=k, max_size=k))

    logged, candidate = some(0.05), some(0.05)
    return (
        [p / sum(logged) for p in logged],
        [p / sum(candidate) for p in candidate],
        some(0.0),
        some(0.0),
    )


@given(st.lists(a_list(), min_size=1, max_size=3))
def test_over_ragged_lists_the_expected_gain_is_the_true_one_whatever_is_predicted(
    lists: list[tuple[list[float], ...]],
) -> None:
    """Σ over lists of Σ_k (π − p)(k)·r(k), as the mean over every answer that could be drawn and how it is liked.

    All answers of all lists stand in one comparison, so that short lists stand beside long ones.
    """
    rows, chance, logged, candidate, q_hat = [], [], [], [], []
    for p, pi, q, liked in lists:
        ids = tuple("abcde"[: len(p)])
        for i, action in enumerate(ids):
            for reward in (0.0, 1.0):
                rows.append(picked(ids, action, reward, tuple(p)))
                chance.append(p[i] * (liked[i] if reward else 1.0 - liked[i]))
                logged.append(Policy(ids, p))
                candidate.append(Policy(ids, pi))
                q_hat.append(Policy(ids, q))
    rules = GateRules(min_events=1, max_difference=1e6)
    seen = compared_differences(rows, candidate=candidate, baseline=logged, logged=logged, q_hat=q_hat, rules=rules)
    true_gain = sum(float((np.subtract(pi, p) * liked).sum()) for p, pi, _, liked in lists)
    assert seen.low @ np.array(chance) == pytest.approx(true_gain, abs=1e-6)
    assert seen.high @ np.array(chance) == pytest.approx(true_gain, abs=1e-6)


def test_decisions_on_dynamic_actions_of_one_kind_of_input_are_one_slice() -> None:
    assert {slice_of(row) for row in ROWS} == {"text: one of its dynamic actions"}
