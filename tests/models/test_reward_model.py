"""Bayesian ridge: hand-worked posteriors, exact retraction, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plaudit_models.bandit.features import FeatureMismatch, FeatureSpace
from plaudit_models.bandit.posterior import posterior
from plaudit_models.bandit.reward_model import (
    CorruptState,
    Evidence,
    InvalidEvidence,
    RewardPrior,
    RewardState,
    empty_state,
    evidence_of_actions,
    state_from_bytes,
)

SPACE = FeatureSpace("trunk", n_actions=2, embedding_size=4)
PHI = np.array([[0.5, 0.5, 1.0]])  # base probabilities 1/2, 1/2, and the constant
FLAT = RewardPrior(precision=1.0, own_precision=1.0)


def random_evidence(seed: int, n: int) -> Evidence:
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    phi = np.stack([p, 1.0 - p, np.ones(n)], axis=1)
    return evidence_of_actions(SPACE, phi, rng.integers(0, 2, n), rng.random(n), rng.random(n))


def evidence_of_correction(space: FeatureSpace, right_action: int) -> Evidence:
    """Reward 1 for the right action and 0 for the other."""
    return Evidence(space, PHI, np.eye(2)[[right_action]], np.ones((1, 2), np.bool_), np.ones(1))


def assert_close(one: RewardState, other: RewardState, atol: float = 1e-12) -> None:
    for field in ("gram", "target", "weight"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=0, atol=atol)


def test_before_feedback_the_base_probability_is_the_expected_reward() -> None:
    """q = φ·m = P_base; σ² = 0.5²/4 + 0.5²/1 + 1²/1 = 1.3125 with λ = 1 and 4 for the action's own probability."""
    phi = np.array([[0.5, 0.5, 1.0], [0.9, 0.1, 1.0]])
    q, variance = posterior(empty_state(SPACE), RewardPrior(precision=1.0, own_precision=4.0)).predict(phi)
    np.testing.assert_allclose(q, [[0.5, 0.5], [0.9, 0.1]], atol=1e-12)
    np.testing.assert_allclose(variance[0], [1.3125, 1.3125])


def test_one_thumb_up_by_hand() -> None:
    """With λ = 1 and one event, Sherman-Morrison: q' = q + h/(1+h)·(r − q) and σ² = h/(1+h), where h = φ·φ.

    h = 0.25 + 0.25 + 1 = 1.5, h/(1+h) = 0.6; q' = 0.5 + 0.6·(1 − 0.5) = 0.8 and σ² = 0.6. Action 1 stays as it was.
    """
    state = empty_state(SPACE).add(evidence_of_actions(SPACE, PHI, np.array([0]), np.array([1.0])))
    q, variance = posterior(state, FLAT).predict(PHI)
    np.testing.assert_allclose(q, [[0.8, 0.5]])
    np.testing.assert_allclose(variance, [[0.6, 1.5]])
    np.testing.assert_allclose(state.weight, [1.0, 0.0])


def test_a_weight_counts_as_that_many_events() -> None:
    """Weight 2 is h = 2·1.5 = 3: q' = 0.5 + 3/4·(0 − 0.5) = 0.125."""
    state = empty_state(SPACE).add(evidence_of_actions(SPACE, PHI, np.array([0]), np.array([0.0]), np.array([2.0])))
    q, _ = posterior(state, FLAT).predict(PHI)
    np.testing.assert_allclose(q[0, 0], 0.125)


def test_a_correction_is_a_thumb_for_every_action() -> None:
    corrected = empty_state(SPACE).add(evidence_of_correction(SPACE, 1))
    thumbs = empty_state(SPACE).add(
        evidence_of_actions(SPACE, np.concatenate([PHI, PHI]), np.array([0, 1]), np.array([0.0, 1.0]))
    )
    assert_close(corrected, thumbs)
    q, _ = posterior(corrected, FLAT).predict(PHI)
    np.testing.assert_allclose(q, [[0.2, 0.8]])


def test_praise_counts_against_the_other_actions_as_far_as_answers_are_exclusive() -> None:
    """ρ = ½, λ = 1, a thumb up for action 0: action 1 gets reward 0 with weight ½, so h = ½·1.5 = 0.75 and
    q' = 0.5 + 0.75/1.75·(0 − 0.5) = 2/7. Half praise (a rating of ½) says half as much: h = 0.375, q' = 4/11.

    A thumb down and a correction imply nothing further.
    """
    space = FeatureSpace("trunk", n_actions=2, embedding_size=4, exclusivity=0.5)
    for reward, expected in ((1.0, 2 / 7), (0.5, 4 / 11), (0.0, 0.5)):
        state = empty_state(space).add(evidence_of_actions(space, PHI, np.array([0]), np.array([reward])))
        q, _ = posterior(state, FLAT).predict(PHI)
        np.testing.assert_allclose(q[0, 1], expected)
        np.testing.assert_allclose(state.weight, [1.0, 0.0])  # what was said, without what it implies
    corrected = empty_state(space).add(evidence_of_correction(space, 0))
    np.testing.assert_allclose(corrected.weight, [1.0, 1.0])


def test_what_is_implied_is_subtracted_with_what_is_said() -> None:
    space = FeatureSpace("trunk", n_actions=3, embedding_size=4, exclusivity=0.3)
    rng = np.random.default_rng(3)
    phi = rng.random((40, 4))
    kept = evidence_of_actions(space, phi, rng.integers(0, 3, 40), rng.random(40), rng.random(40))
    taken_back = evidence_of_actions(space, phi[::-1], rng.integers(0, 3, 40), rng.random(40), rng.random(40))
    state = empty_state(space).add(taken_back).add(kept).subtract(taken_back)
    assert_close(state, empty_state(space).add(kept))


def test_preferences_are_learned_as_bradley_terry_would_to_first_order() -> None:
    """60 % of many preferences are for action 0: Bradley-Terry's fit is Δ = logit(0.6)/4 = 0.1014; ours 0.6 − ½ = 0.1.

    The context's prior is even, so both rewards stay about ½; the third action has nothing to do with it.
    """
    space = FeatureSpace("trunk", n_actions=3, embedding_size=4, exclusivity=0.3)
    phi = np.array([[1 / 3, 1 / 3, 1 / 3, 1.0]]).repeat(10_000, axis=0)
    rewards = np.where((np.arange(10_000) < 6_000)[:, None], [0.75, 0.25, 0.0], [0.25, 0.75, 0.0])
    known_mask = np.array([[True, True, False]]).repeat(10_000, axis=0)
    state = empty_state(space).add(Evidence(space, phi, rewards, known_mask, np.ones(10_000)))
    q, _ = posterior(state, FLAT).predict(phi[:1])
    np.testing.assert_allclose(q, [[0.55, 0.45, 1 / 3]], atol=1e-3)
    np.testing.assert_allclose(q[0, 0] - q[0, 1], np.log(0.6 / 0.4) / 4.0, atol=2e-3)


def test_posterior_agrees_with_the_textbook_inverse() -> None:
    """Bishop eq. 3.50-3.51 written out with a matrix inverse, on evidence with weights and unequal precisions."""
    state = empty_state(SPACE).add(random_evidence(1, 50))
    belief = posterior(state, RewardPrior(precision=0.7, own_precision=3.0))
    for k in (0, 1):
        precision = np.array([0.7, 0.7, 0.7])
        precision[k] = 3.0
        covariance = np.linalg.inv(np.diag(precision) + state.gram[k])
        mean = np.eye(3)[k] + covariance @ state.target[k]
        q, variance = belief.predict(PHI)
        np.testing.assert_allclose(q[0, k], PHI[0] @ mean)
        np.testing.assert_allclose(variance[0, k], PHI[0] @ covariance @ PHI[0])


def test_sums_do_not_depend_on_order() -> None:
    one, two = random_evidence(1, 30), random_evidence(2, 40)
    start = empty_state(SPACE)
    assert_close(start.add(one).add(two), start.add(two).add(one))
    assert_close(
        start.add(one).towards(start.add(one).add(two), 0.5), start.add(one).towards(start.add(two).add(one), 0.5)
    )


def test_towards_goes_part_of_the_way() -> None:
    far = empty_state(SPACE).add(random_evidence(1, 30))
    np.testing.assert_allclose(empty_state(SPACE).towards(far, 0.25).gram, 0.25 * far.gram)


def test_a_million_events_added_and_subtracted_leave_no_trace() -> None:
    """What stays after subtracting all but one batch is that batch, to 1e-9 of an event, and the posterior with it."""
    batches = [random_evidence(seed, 10_000) for seed in range(50)]
    kept = random_evidence(99, 20)
    state = empty_state(SPACE)
    for evidence in [*batches, kept, *batches]:
        state = state.add(evidence)
    for evidence in [*reversed(batches), *batches]:
        state = state.subtract(evidence)
    expected = empty_state(SPACE).add(kept)
    assert_close(state, expected, atol=1e-9)
    np.testing.assert_allclose(posterior(state, FLAT).mean, posterior(expected, FLAT).mean, atol=1e-9)


def test_bytes_bring_the_state_back() -> None:
    state = empty_state(SPACE).add(random_evidence(1, 30))
    back = state_from_bytes(state.to_bytes())
    assert back.space == SPACE
    assert_close(back, state, atol=0.0)


@pytest.mark.parametrize("raw", [b"", b"nonsense", empty_state(SPACE).to_bytes()[:-8]])
def test_bytes_that_are_no_state_are_refused(raw: bytes) -> None:
    with pytest.raises(CorruptState, match="not a reward state"):
        state_from_bytes(raw)


def test_trunks_are_not_mixed() -> None:
    state = empty_state(FeatureSpace("another trunk", n_actions=2, embedding_size=4))
    mixes: tuple[Callable[[], RewardState], ...] = (
        lambda: state.add(random_evidence(1, 3)),
        lambda: state.subtract(random_evidence(1, 3)),
        lambda: state.towards(empty_state(SPACE), 0.5),
    )
    for mix in mixes:
        with pytest.raises(FeatureMismatch, match="trunk_digest 'another trunk' is not 'trunk'"):
            mix()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": np.array([[0.5, np.nan, 1.0]])}, r"features\[0, 1\]: nan is not finite"),
        ({"rewards": np.array([1.5])}, r"rewards\[0, 0\]: 1\.5 is not in \[0, 1\]"),
        ({"rewards": np.array([np.nan])}, r"rewards\[0, 0\]: nan"),
        ({"actions": np.array([2])}, r"actions\[0\]: 2 is not an action index below 2"),
        ({"actions": np.array([-1])}, r"actions\[0\]: -1"),
        ({"weights": np.array([-0.5])}, r"weights\[0\]: -0\.5 is not finite and ≥ 0"),
        ({"weights": np.array([np.inf])}, r"weights\[0\]: inf"),
        ({"features": np.zeros((1, 5))}, r"features: shape \(1, 5\) is not \(1, 3\)"),
    ],
)
def test_bad_evidence_is_refused(changed: dict[str, Any], message: str) -> None:
    good = {"features": PHI, "actions": np.array([0]), "rewards": np.array([1.0]), "weights": np.array([1.0])}
    with pytest.raises(InvalidEvidence, match=message):
        evidence_of_actions(SPACE, **{**good, **changed})
