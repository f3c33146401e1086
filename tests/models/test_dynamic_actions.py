"""Candidates with their own text: hand-worked features, posterior and scores, exact retraction, symmetries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_models.bandit.dynamic_actions import (
    LEAST_FADE,
    ActionList,
    DynamicActionEvidence,
    DynamicActionHead,
    DynamicActionSpace,
    DynamicActionState,
    bounded_dynamic_step,
    dynamic_action_features,
    dynamic_action_head_from_bytes,
    dynamic_action_state_from_bytes,
    empty_dynamic_action_state,
    evidence_of_list,
    expected_rewards,
)
from plaudit_models.bandit.features import FeatureMismatch, Float64
from plaudit_models.bandit.improvement import HeadSettings
from plaudit_models.bandit.policy import divergence
from plaudit_models.bandit.reward_model import CorruptState, InvalidEvidence, RewardPrior

SPACE = DynamicActionSpace("trunk", "graph", embedding_size=3, pair_features=8, exclusivity=0.1)
PLAIN = DynamicActionSpace("trunk", "graph", embedding_size=2, pair_features=0)
FLAT = RewardPrior(precision=1.0, own_precision=1.0)
EVEN = ActionList(np.ones(2), np.zeros((2, 2)), np.zeros(2))
"""Two dynamic actions of base probability 1/2: φ = [1/2, 1] of both, without pair features."""


def random_list(seed: int, k: int = 5, scale: float = 2.0) -> ActionList:
    rng = np.random.default_rng(seed)
    embedding, vectors = rng.standard_normal(3), scale * rng.standard_normal((k, 3))
    return ActionList(embedding, vectors, vectors @ embedding)


def thumb(space: DynamicActionSpace, listed: ActionList, picked: int, reward: float) -> DynamicActionEvidence:
    known_mask = np.arange(len(listed.base_logits)) == picked
    return evidence_of_list(space, listed, reward * np.ones(len(known_mask)), known_mask)


def random_thumb(seed: int) -> DynamicActionEvidence:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 9))
    return thumb(SPACE, random_list(seed, k), int(rng.integers(k)), float(rng.random()))


def random_state(seed: int, n: int = 20) -> DynamicActionState:
    return empty_dynamic_action_state(SPACE).add([random_thumb(1000 * seed + i) for i in range(n)])


def assert_close(one: DynamicActionState, other: DynamicActionState, atol: float = 1e-10) -> None:
    for name in ("gram", "target", "weight"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=atol)


def reordered(listed: ActionList, order: list[int]) -> ActionList:
    return ActionList(listed.embedding, listed.vectors[order], listed.base_logits[order])


# --- features --------------------------------------------------------------------------------------------------------


def test_features_by_hand() -> None:
    """Base logits 0 and ln 3: P = [1/4, 3/4]; H/ln 2 = 0.811278, u³ = 0.533961.

    The waves of one pair have length √(m/2), so that pair features have length u³.
    """
    listed = ActionList(np.array([1.0, 0.0, 2.0]), np.array([[1.0, 5.0, 0.0], [0.0, 1.0, 1.0]]), np.log([1.0, 3.0]))
    phi = dynamic_action_features(SPACE, listed)
    np.testing.assert_allclose(phi[:, 0], [0.25, 0.75])
    np.testing.assert_allclose(phi[:, -1], 1.0)
    np.testing.assert_allclose(np.linalg.norm(phi[:, 1:-1], axis=1), 0.533961, atol=1e-6)


def test_pair_features_are_those_of_the_product_of_context_and_action() -> None:
    """e ⊙ g is [1, 0, 0] for both, whatever else they are."""
    first = ActionList(np.array([1.0, 0.0, 2.0]), np.array([[1.0, 5.0, 0.0], [1.0, 9.0, 0.0]]), np.zeros(2))
    second = ActionList(np.array([2.0, 3.0, 0.0]), np.array([[4.0, 0.0, 7.0]]), np.zeros(1))
    phi, other = dynamic_action_features(SPACE, first)[:, 1:-1], dynamic_action_features(SPACE, second)[:, 1:-1]
    np.testing.assert_allclose(phi[0], phi[1])
    np.testing.assert_allclose(phi[0] * LEAST_FADE, other[0])  # one candidate alone is sure


def test_pair_features_never_fade_to_nothing() -> None:
    listed = ActionList(np.ones(3), np.eye(3), np.array([50.0, 0.0, 0.0]))
    np.testing.assert_allclose(np.linalg.norm(dynamic_action_features(SPACE, listed)[:, 1:-1], axis=1), LEAST_FADE)


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (ActionList(np.ones(2), np.ones((2, 3)), np.zeros(2)), r"embedding: shape \(2,\) is not \(3,\)"),
        (ActionList(np.ones(3), np.ones((1, 3)), np.zeros(2)), r"vectors: shape \(1, 3\) is not \(2, 3\)"),
        (ActionList(np.ones(3), np.ones((0, 3)), np.zeros(0)), "the list is empty"),
        (ActionList(np.ones(3), np.ones((2, 3)), np.array([0.0, np.nan])), "base_logits: holds a value"),
        (ActionList(np.ones(3), np.full((2, 3), np.inf), np.zeros(2)), "vectors: holds a value"),
    ],
)
def test_lists_that_are_none_are_refused(listed: ActionList, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        dynamic_action_features(SPACE, listed)


def test_a_space_that_is_none_is_refused() -> None:
    for wrong in ({"embedding_size": 0}, {"pair_features": 3}, {"pair_features": -2}, {"exclusivity": 1.5}):
        with pytest.raises(ValueError, match="needs embedding_size"):
            replace(SPACE, **wrong)


# --- evidence and sums -----------------------------------------------------------------------------------------------


def test_one_thumb_by_hand() -> None:
    """φ = [1/2, 1], λ = 1: h = φ·φ = 1.25, h/(1 + h) = 5/9; q' = 1/2 + 5/9·(1 − 1/2) = 7/9 for both, as φ is the same;
    σ² = 5/9 of 5/4: 1 − (5/9)/(5/4) = 5/9 is known."""
    state = empty_dynamic_action_state(PLAIN).add([thumb(PLAIN, EVEN, picked=0, reward=1.0)])
    q, known = expected_rewards(state, FLAT, EVEN)
    np.testing.assert_allclose(q, [7 / 9, 7 / 9])
    np.testing.assert_allclose(known, [5 / 9, 5 / 9])
    assert state.weight == 1.0


def test_before_feedback_the_base_probability_is_the_expected_reward() -> None:
    listed = random_list(3)
    q, known = expected_rewards(empty_dynamic_action_state(SPACE), RewardPrior(), listed)
    np.testing.assert_allclose(q, np.exp(listed.base_logits) / np.exp(listed.base_logits).sum())
    np.testing.assert_allclose(known, 0.0, atol=1e-12)


def test_praise_counts_against_all_others_together_as_far_as_answers_are_exclusive() -> None:
    listed = random_list(1, k=5)
    evidence = thumb(SPACE, listed, picked=2, reward=0.5)
    np.testing.assert_allclose(np.sort(evidence.weights), [0.0125] * 4 + [1.0])  # 0.1·0.5 over four
    assert evidence.rewards @ evidence.weights == 0.5
    assert evidence.explicit_weight == 1.0
    assert len(thumb(SPACE, listed, picked=2, reward=0.0).weights) == 1


def test_a_correction_covers_every_dynamic_action() -> None:
    listed = random_list(1, k=4)
    evidence = evidence_of_list(SPACE, listed, np.eye(4)[1], np.ones(4, np.bool_), weight=0.5)
    assert evidence.rewards.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert evidence.weights.tolist() == [0.5] * 4
    assert evidence.explicit_weight == 2.0


def test_evidence_that_is_none_is_refused() -> None:
    listed, every = random_list(1, k=2), np.ones(2, np.bool_)
    with pytest.raises(InvalidEvidence, match=r"rewards: shape \(3,\) is not \(2,\)"):
        evidence_of_list(SPACE, listed, np.zeros(3), every)
    for wrong in (1.5, np.nan):
        with pytest.raises(InvalidEvidence, match=r"rewards: .* is not in"):
            evidence_of_list(SPACE, listed, np.array([wrong, 0.0]), every)
    for weight in (-1.0, np.inf):
        with pytest.raises(InvalidEvidence, match="weight: "):
            evidence_of_list(SPACE, listed, np.zeros(2), every, weight)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), st.integers(0, 10_000))
def test_what_is_subtracted_leaves_no_trace(seeds: list[int], base: int) -> None:
    before = random_state(base, n=3)
    evidence = [random_thumb(seed) for seed in seeds]
    assert_close(before.add(evidence).subtract(evidence), before)


@given(st.permutations(list(range(8))))
def test_order_does_not_matter(order: list[int]) -> None:
    evidence = [random_thumb(seed) for seed in range(8)]
    assert_close(
        empty_dynamic_action_state(SPACE).add(evidence),
        empty_dynamic_action_state(SPACE).add([evidence[i] for i in order]),
    )


@given(st.integers(0, 8))
def test_evidence_added_in_two_parts_is_the_whole(at: int) -> None:
    evidence, empty = [random_thumb(seed) for seed in range(8)], empty_dynamic_action_state(SPACE)
    assert_close(empty.add(evidence[:at]).add(evidence[at:]), empty.add(evidence))


def test_towards_goes_a_share_of_the_way() -> None:
    one, other = random_state(1), random_state(2)
    assert_close(one.towards(other, 0.0), one)
    assert_close(one.towards(other, 1.0), other)
    np.testing.assert_allclose(one.towards(other, 0.25).target, 0.75 * one.target + 0.25 * other.target)


@pytest.mark.parametrize(
    "other", [{"trunk_digest": "new"}, {"text_scorer_digest": "new"}, {"pair_features": 4}, {"exclusivity": 0.0}]
)
def test_other_spaces_are_refused(other: dict[str, object]) -> None:
    elsewhere = replace(SPACE, **other)  # type: ignore[arg-type]
    state, strange = random_state(1), empty_dynamic_action_state(elsewhere)
    field = next(iter(other))
    mixes: list[Callable[[], DynamicActionState]] = [
        lambda: state.towards(strange, 0.5),
        lambda: strange.add([random_thumb(1)]),
        lambda: strange.subtract([random_thumb(1)]),
    ]
    for mix in mixes:
        with pytest.raises(FeatureMismatch, match=field):
            mix()


# --- scores ----------------------------------------------------------------------------------------------------------


def test_one_thumb_up_scored_by_hand() -> None:
    """P = [0.8, 0.2], λ = 1 and no pair features: φ = [0.8, 1] and [0.2, 1]; a thumb up for the second.

    h = 1.04, K⁻¹φ₁ = φ₁/2.04, r − q = 0.8: θ = [1, 0] + 0.8/2.04·[0.2, 1] = [1.078431, 0.392157].
    q = [1.254902, 0.607843]; σ²: φφ − (φ·φ₁)²/2.04 = [1.64 − 1.16²/2.04, 1.04/2.04] = [0.980392, 0.509804].
    g = 1 − (0.8·0.980392/1.64 + 0.2·0.509804/1.04) = 0.423721; η g² = 0.017954;
    π_ref = 0.982046·[0.8, 0.2] + 0.008977 = [0.794614, 0.205386], ln π_ref = [−0.229899, −1.582864].
    q̂ = [1, 0.607843] after clipping; the best possible is believed, so room = 0.
    scores: ln π_ref + 0.423721·q̂/0.05 = [8.244514, 3.568250].
    """
    listed = ActionList(np.ones(2), np.zeros((2, 2)), np.log([0.8, 0.2]))
    settings = HeadSettings(temperature=0.05, prior=FLAT)
    head = DynamicActionHead(
        settings, empty_dynamic_action_state(PLAIN).add([thumb(PLAIN, listed, picked=1, reward=1.0)])
    )
    scores = head.scores(listed.embedding, listed.vectors, listed.base_logits)
    np.testing.assert_allclose(scores, [8.244514, 3.568250], atol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 7, 256])
def test_where_nothing_is_known_the_scores_are_the_base_policy_exactly(k: int) -> None:
    listed = random_list(k, k, scale=9.0)
    scores = DynamicActionHead(HeadSettings(), empty_dynamic_action_state(SPACE)).scores(
        listed.embedding, listed.vectors, listed.base_logits
    )
    shifted = listed.base_logits - listed.base_logits.max()
    assert (scores == shifted - np.log(np.exp(shifted).sum())).all()


def test_a_single_dynamic_action_is_always_picked() -> None:
    listed = random_list(1, k=1)
    scores = DynamicActionHead(HeadSettings(), random_state(1)).scores(
        listed.embedding, listed.vectors, listed.base_logits
    )
    assert scores.tolist() == [0.0]


@given(st.permutations(list(range(6))), st.integers(0, 1000))
def test_a_permutation_of_the_actions_permutes_the_scores(order: list[int], seed: int) -> None:
    listed, head = random_list(seed, k=6), DynamicActionHead(HeadSettings(), random_state(1))
    moved = reordered(listed, order)
    scores = head.scores(listed.embedding, listed.vectors, listed.base_logits)
    np.testing.assert_allclose(
        head.scores(moved.embedding, moved.vectors, moved.base_logits), scores[order], rtol=1e-9, atol=1e-9
    )


def test_what_is_learned_of_some_actions_is_known_of_new_ones() -> None:
    """Users like dynamic actions on the third coordinate of the product, which the base model knows nothing of."""
    space = replace(SPACE, pair_features=64, exclusivity=0.0)
    rng = np.random.default_rng(0)

    def draw() -> ActionList:
        embedding = np.sign(rng.standard_normal(3))
        return ActionList(embedding, np.sign(rng.standard_normal((4, 3))), np.zeros(4))

    def liked(listed: ActionList) -> Float64:
        wanted: Float64 = ((listed.embedding * listed.vectors)[:, 2] > 0).astype(np.float64)
        return wanted

    state = empty_dynamic_action_state(space)
    for _ in range(150):
        listed = draw()
        picked = int(rng.integers(4))
        state = state.add([thumb(space, listed, picked, liked(listed)[picked])])
    head = DynamicActionHead(HeadSettings(), state)
    fresh = [draw() for _ in range(100)]
    base = np.mean([liked(each).mean() for each in fresh])
    possible = np.mean([liked(each).max() for each in fresh])
    learned = np.mean([head.probabilities(each, 0.02) @ liked(each) for each in fresh])
    assert base < 0.6
    assert learned > possible - 0.1


def test_a_step_is_as_long_as_the_bound_allows() -> None:
    served, latest = empty_dynamic_action_state(SPACE), random_state(1, n=60)
    recent = [random_list(seed, k=2 + seed % 5) for seed in range(20)]
    settings = HeadSettings()

    def moved(state: DynamicActionState) -> float:
        heads = DynamicActionHead(settings, state), DynamicActionHead(settings, served)
        now, before = ([head.probabilities(each, 0.02) for each in recent] for head in heads)
        return float(np.mean([divergence(a[None], b[None]) for a, b in zip(now, before, strict=True)]))

    whole = bounded_dynamic_step(settings, served, latest, recent, floor=0.02, max_kl=100.0)
    assert (whole.state, whole.share) == (latest, 1.0)
    step = bounded_dynamic_step(settings, served, latest, recent, floor=0.02, max_kl=whole.kl / 10)
    assert 0.0 < step.share < 1.0
    assert 0.0 < step.kl <= whole.kl / 10
    assert step.kl_all == pytest.approx(moved(step.state))
    assert_close(step.state, served.towards(latest, step.share))


def test_a_step_needs_lists_a_floor_and_a_bound() -> None:
    state = random_state(1)
    for recent, floor, max_kl in (([], 0.1, 1.0), ([random_list(1)], 0.0, 1.0), ([random_list(1)], 0.1, 0.0)):
        with pytest.raises(ValueError, match=r"recent|floor"):
            bounded_dynamic_step(HeadSettings(), state, state, recent, floor=floor, max_kl=max_kl)


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_bytes_bring_everything_back() -> None:
    settings = HeadSettings(temperature=0.07, prior=RewardPrior(precision=2.0))
    head, listed = DynamicActionHead(settings, random_state(1)), random_list(9)
    back = dynamic_action_head_from_bytes(head.to_bytes())
    assert (back.settings, back.state.space) == (settings, SPACE)
    assert_close(back.state, head.state, atol=0.0)
    assert_close(dynamic_action_state_from_bytes(head.state.to_bytes()), head.state, atol=0.0)
    arguments = listed.embedding, listed.vectors, listed.base_logits
    assert (back.scores(*arguments) == head.scores(*arguments)).all()


def test_bytes_that_are_something_else_are_refused() -> None:
    whole = DynamicActionHead(HeadSettings(), random_state(1)).to_bytes()
    for raw in (b"", b"nothing of the kind", whole[:-8], random_state(1).to_bytes()):
        with pytest.raises(CorruptState, match="dynamic action head"):
            dynamic_action_head_from_bytes(raw)
