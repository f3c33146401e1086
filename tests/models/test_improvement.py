"""The head's maths: hand-worked scores, behaviour without and with feedback, bounded steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_models.bandit.features import FeatureSpace, Float64, base_probabilities, features
from plaudit_models.bandit.improvement import NEAR, HeadSettings, bounded_step, head_scores
from plaudit_models.bandit.policy import divergence, divergences, probabilities
from plaudit_models.bandit.reward_model import RewardPrior, RewardState, empty_state, evidence_of_actions

FLOOR = 0.02
FLAT = RewardPrior(precision=1.0, own_precision=1.0)


def logits_of(top: int, n_actions: int = 4, margin: float = 8.0) -> Float64:
    """One context whose base model is sure of action ``top``."""
    return margin * np.eye(n_actions)[[top]]


def space_of(n_actions: int) -> FeatureSpace:
    return FeatureSpace("trunk", n_actions=n_actions, embedding_size=1)


def thumbs(state: RewardState, base_logits: Float64, action: int, reward: float, times: int = 1) -> RewardState:
    phi = features(state.space, np.zeros((1, 1)), base_logits).repeat(times, axis=0)
    return state.add(evidence_of_actions(state.space, phi, np.full(times, action), np.full(times, reward)))


def serve(state: RewardState, base_logits: Float64, settings: HeadSettings | None = None) -> Float64:
    scores = head_scores(settings or HeadSettings(), state, np.zeros((1, 1)), base_logits)
    probs: Float64 = probabilities(scores, np.ones(scores.shape, dtype=np.bool_), floor=0.0)[0]
    return probs


def test_one_thumb_up_by_hand() -> None:
    """Two actions, base probabilities 1/2 each, λ = 1: φ = [1/2, 1/2, 1], φ·φ = 1.5; a thumb up for action 0.

    q = [0.8, 0.5], σ² = [0.6, 1.5], σ₀² = [1.5, 1.5] (worked in test_reward_model).
    g = 1 − (0.5·0.6/1.5 + 0.5·1.5/1.5) = 0.3; the anchor stays even: (1 − 0.1·0.09)/2 + 0.1·0.09/2 = 0.5.
    c = 0, so nothing gets the benefit of the doubt: content = 0.65, less than 0.8; room = 0.2, room² = 0.04;
    q̂ + σ·room² = [0.8 + 0.774597·0.04, 0.5 + 1.224745·0.04] = [0.830984, 0.548990].
    scores: ln 0.5 + 0.3·[0.830984, 0.548990]/0.05 = −0.693147 + [4.985904, 3.293940] = [4.292757, 2.600793].
    """
    state = thumbs(empty_state(space_of(2)), np.zeros((1, 2)), action=0, reward=1.0)
    for doubt in (0.0, 1.0):
        settings = HeadSettings(temperature=0.05, optimism=1.0, benefit_of_doubt=doubt, prior=FLAT)
        scores = head_scores(settings, state, np.zeros((1, 1)), np.zeros((1, 2)))
        np.testing.assert_allclose(scores, [[4.292757, 2.600793]], atol=1e-5)


def test_one_thumb_down_where_the_base_policy_is_sure_by_hand() -> None:
    """P = [0.8, 0.2], λ = 1: φ = [0.8, 0.2, 1], h = φ·φ = 1.68; a thumb down for action 0.

    h/(1+h) = 0.626866: q = [0.8·(1 − 0.626866), 0.2] = [0.298507, 0.2], σ² = [0.626866, 1.68],
    σ = [0.791748, 1.296148].
    g = 1 − (0.8·0.626866/1.68 + 0.2) = 0.501493; η g² = 0.1·0.251495 = 0.025150;
    π_ref = 0.974850·[0.8, 0.2] + 0.012575 = [0.792455, 0.207545], ln π_ref = [−0.232620, −1.572407].
    H(P)/ln 2 = 0.721928, c = 0.278072; with τ = 1:
    content = 0.8·(0.298507 + 0.278072·0.791748) + 0.2·(0.2 + 0.278072·1.296148) = 0.414936 + 0.112085 = 0.527021.
    room = 0.472979, room² = 0.223709; q̂ + σ·room² = [0.475629, 0.489960].
    4c(1 − c) = 0.802992, agree = (0.8·0.298507 + 0.2·0.2)/(0.64 + 0.04) = 0.410008; with ν = 2:
    β(x) = 0.05·(1 + 2·0.802992·0.410008²) = 0.0634988.
    scores: ln π_ref + 0.501493·[0.475629, 0.489960]/0.0634988 = [3.523742, 2.297137].
    """
    context = np.log(np.array([[0.8, 0.2]]))
    state = thumbs(empty_state(space_of(2)), context, action=0, reward=0.0)
    settings = HeadSettings(temperature=0.05, optimism=1.0, benefit_of_doubt=1.0, caution=2.0, prior=FLAT)
    scores = head_scores(settings, state, np.zeros((1, 1)), context)
    np.testing.assert_allclose(scores, [[3.523742, 2.297137]], atol=1e-4)


def test_without_feedback_the_policy_is_the_base_policy() -> None:
    base_logits = np.array([[9.0, 0.0, -3.0, 1.0], [0.1, 0.2, 0.3, 0.0]])
    scores = head_scores(HeadSettings(), empty_state(space_of(4)), np.zeros((2, 1)), base_logits)
    served = probabilities(scores, np.ones((2, 4), dtype=np.bool_), floor=0.0)
    np.testing.assert_allclose(served, base_probabilities(base_logits), atol=1e-7)


def test_scores_stay_finite_where_the_base_model_thinks_an_action_impossible() -> None:
    state = thumbs(empty_state(space_of(4)), logits_of(0), action=0, reward=0.0, times=5)
    scores = head_scores(HeadSettings(), state, np.zeros((1, 1)), np.array([[0.0, -1e4, -50.0, 200.0]]))
    assert np.isfinite(scores).all()


def test_a_disliked_answer_gives_way_and_the_liked_one_wins() -> None:
    context = logits_of(0)
    state = thumbs(empty_state(space_of(4)), context, action=0, reward=0.0, times=12)
    disliked = serve(state, context)
    assert disliked[0] < 0.05
    np.testing.assert_allclose(disliked[1:], disliked[1], rtol=1e-6)  # nothing tells the untried ones apart
    state = thumbs(state, context, action=1, reward=0.0, times=2)
    assert serve(state, context)[1] < 0.5 * disliked[1]
    state = thumbs(state, context, action=2, reward=1.0, times=2)
    assert serve(state, context)[2] > 0.9


def test_content_users_and_other_contexts_are_not_explored() -> None:
    state = thumbs(empty_state(space_of(4)), logits_of(0), action=0, reward=0.0, times=12)
    for context in (1, 2, 3):
        state = thumbs(state, logits_of(context), action=context, reward=1.0, times=3)
    for context in (1, 2, 3):
        assert serve(state, logits_of(context))[context] > 0.99


def test_one_wrong_thumb_does_not_turn_a_good_answer_out() -> None:
    state = thumbs(empty_state(space_of(4)), logits_of(0), action=0, reward=0.0)
    assert serve(state, logits_of(0))[0] > 0.95


def test_doubts_that_users_share_are_left_as_they_are() -> None:
    """The base policy thinks that six in ten want 0 here and three want 1, and pleases wherever it is sure."""
    state, doubtful = empty_state(space_of(4)), np.log(np.array([[0.6, 0.3, 0.05, 0.05]]))
    for context in (0, 1, 2, 3):
        state = thumbs(state, logits_of(context), action=context, reward=1.0, times=100)
    cautious = HeadSettings(caution=8.0)
    assert serve(state, doubtful, HeadSettings(caution=0.0))[1] < 0.02
    assert serve(state, doubtful, cautious)[1] > 0.2
    assert serve(state, np.log(np.array([[0.9, 0.04, 0.03, 0.03]])), cautious)[0] > 0.95


def test_doubts_that_users_do_not_share_cost_no_more() -> None:
    """Action 0 pleases no user any more, whatever the base policy thinks of it, and 2 does in its place."""
    state, doubtful = empty_state(space_of(4)), np.log(np.array([[0.9, 0.08, 0.01, 0.01]]))
    state = thumbs(state, doubtful, action=0, reward=0.0, times=30)
    state = thumbs(state, doubtful, action=2, reward=1.0, times=30)
    served = serve(state, doubtful, HeadSettings(caution=8.0))
    assert served[2] > 0.99
    np.testing.assert_allclose(served, serve(state, doubtful, HeadSettings(caution=0.0)), atol=0.01)


def test_where_the_base_policy_knows_nothing_caution_changes_nothing() -> None:
    state = thumbs(empty_state(space_of(4)), np.zeros((1, 4)), action=1, reward=1.0, times=3)
    scores = [
        head_scores(HeadSettings(caution=caution), state, np.zeros((1, 1)), np.zeros((1, 4))) for caution in (0.0, 8.0)
    ]
    np.testing.assert_allclose(scores[0], scores[1])


def test_a_step_is_as_long_as_the_policy_shift_allows() -> None:
    context = logits_of(0)
    served = empty_state(space_of(4))
    latest = thumbs(served, context, action=0, reward=0.0, times=12)
    step = bounded_step(HeadSettings(), served, latest, np.zeros((1, 1)), context, floor=FLOOR, max_kl=0.1)
    assert 0.0 < step.share < 1.0
    assert NEAR * 0.1 <= step.kl <= 0.1
    assert step.kl == pytest.approx(step.kl_all, rel=0.02)  # the base policy is all but sure, so nearly all counts
    np.testing.assert_allclose(step.state.gram, step.share * latest.gram)


def test_steps_arrive() -> None:
    context = logits_of(0)
    served = empty_state(space_of(4))
    latest = thumbs(served, context, action=0, reward=0.0, times=12)
    shares: list[float] = []
    while not shares or shares[-1] < 1.0:
        step = bounded_step(HeadSettings(), served, latest, np.zeros((1, 1)), context, floor=FLOOR, max_kl=0.1)
        served = step.state
        shares.append(step.share)
        assert len(shares) < 50
    np.testing.assert_array_equal(served.gram, latest.gram)
    assert len(shares) > 3


def test_a_short_step_goes_all_the_way() -> None:
    context = logits_of(0)
    served = thumbs(empty_state(space_of(4)), context, action=0, reward=1.0, times=10)
    latest = thumbs(served, context, action=0, reward=1.0)
    step = bounded_step(HeadSettings(), served, latest, np.zeros((1, 1)), context, floor=FLOOR, max_kl=0.1)
    assert (step.share, step.state) == (1.0, latest)


def test_a_policy_that_answers_at_random_has_nothing_to_lose() -> None:
    served, even = empty_state(space_of(4)), np.zeros((1, 4))
    latest = thumbs(served, even, action=0, reward=1.0, times=12)
    step = bounded_step(HeadSettings(), served, latest, np.zeros((1, 1)), even, floor=FLOOR, max_kl=0.1)
    assert step.share == 1.0
    assert step.kl == pytest.approx(0.0, abs=1e-12)
    assert step.kl_all > 1.0


def test_a_step_needs_contexts_and_a_floor() -> None:
    state = empty_state(space_of(4))
    with pytest.raises(ValueError, match="recent context"):
        bounded_step(HeadSettings(), state, state, np.zeros((0, 1)), np.zeros((0, 4)), floor=FLOOR, max_kl=0.1)
    with pytest.raises(ValueError, match=r"floor 0\.0"):
        bounded_step(HeadSettings(), state, state, np.zeros((1, 1)), logits_of(0), floor=0.0, max_kl=0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("optimism", -1.0),
        ("benefit_of_doubt", -1.0),
        ("reference_mix", 1.0),
        ("caution", -1.0),
        ("reward_low", 0.1),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}.*needs"):
        HeadSettings(**{name: value})


def test_divergence_by_hand() -> None:
    """0.5·log(0.5/0.25) + 0.5·log(0.5/0.75) = 0.143841; an action that is never given adds nothing; itself is 0."""
    policy = np.array([[0.5, 0.5], [0.0, 1.0], [0.3, 0.7]])
    reference = np.array([[0.25, 0.75], [0.5, 0.5], [0.3, 0.7]])
    np.testing.assert_allclose(divergence(policy, reference), [0.143841, np.log(2.0), 0.0], atol=1e-6)


def test_divergences_of_lists_of_different_lengths_by_hand() -> None:
    """Each over its own list: ½·ln(½/¼) + ½·ln(½/¾), nothing to choose, and ¾·ln(¾/½) + ⅛·ln(⅛/¼) + ⅛·ln(⅛/¼)."""
    policies = [np.array([0.5, 0.5]), np.array([1.0]), np.array([0.75, 0.125, 0.125])]
    references = [np.array([0.25, 0.75]), np.array([1.0]), np.array([0.5, 0.25, 0.25])]
    expected = [0.143841, 0.0, 0.75 * np.log(1.5) - 0.25 * np.log(2.0)]
    np.testing.assert_allclose(divergences(policies, references), expected, atol=1e-6)


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 2**32 - 1))
def test_a_divergence_is_that_of_its_list_alone_whatever_stands_beside_it(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    policies, references = ([rng.dirichlet(np.ones(k)) for k in lengths] for _ in range(2))
    found = divergences(policies, references)
    alone = [float(np.sum(p * np.log(p / q))) for p, q in zip(policies, references, strict=True)]
    np.testing.assert_allclose(found, alone, atol=1e-12)
    assert (divergences(policies, policies) == 0.0).all()
