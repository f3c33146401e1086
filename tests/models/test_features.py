"""φ(x): hand-worked values and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plaudit_models.bandit.features import (
    FeatureMismatch,
    FeatureSpace,
    directions,
    features,
    require_same_space,
    sureness,
)

LOGITS = np.log(np.array([[1.0, 3.0]])) + 5.0  # softmax is [1/4, 3/4]; the 5 must not matter
EMBEDDING = np.array([[3.0, 4.0]])  # length 5
DIRECTIONS_3_4 = [[1.441480668, 0.0868683798], [0.7997675842, 1.2215636875], [1.5260594423, -0.7222432488]]


def test_without_embedding_features_the_base_probabilities_and_one_are_left() -> None:
    """softmax([ln 1, ln 3]) = [1/4, 3/4]."""
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2)
    np.testing.assert_allclose(features(space, EMBEDDING, LOGITS), [[0.25, 0.75, 1.0]], rtol=1e-12)
    assert space.n_features == 3


def test_embedding_features_are_waves_that_fade_where_the_base_model_is_sure() -> None:
    """H([1/4, 3/4]) = (ln 4)/4 + 3/4·ln(4/3) = 0.562335, over ln 2 is u = 0.811278; u³ = 0.533962.

    The wave of unit embedding [0.6, 0.8] and Ω = ω: t = 0.6 ω₁ + 0.8 ω₂; √(2/2)·u³·[cos t, sin t].
    """
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2, embedding_features=2)
    turned = np.array([0.6, 0.8]) @ directions(2, 2)[:, 0]
    expected = np.array([[0.25, 0.75, 0.533962 * np.cos(turned), 0.533962 * np.sin(turned), 1.0]])
    np.testing.assert_allclose(features(space, EMBEDDING, LOGITS), expected, atol=1e-5)
    np.testing.assert_allclose(sureness(LOGITS), [[1.0 - 0.811278]], atol=1e-6)


def test_products_of_embedding_features_are_nearly_the_gaussian_kernel() -> None:
    space = FeatureSpace("trunk", n_actions=2, embedding_size=16, embedding_features=512)
    embedding = np.random.default_rng(0).normal(size=(20, 16))
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    distance = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)
    block = features(space, embedding, np.zeros((20, 2)))[:, 2:-1]
    np.testing.assert_allclose(block @ block.T, np.exp(-distance / 2.0), atol=0.1)
    np.testing.assert_allclose((block**2).sum(axis=1), 1.0)


def test_sureness_is_0_for_uniform_and_1_for_one_hot_probabilities() -> None:
    np.testing.assert_allclose(sureness(np.array([[7.0, 7.0, 7.0], [0.0, 900.0, 0.0]])), [[0.0], [1.0]], atol=1e-12)


def test_directions_never_change() -> None:
    """The sums of a stored state mean something only with the directions they were made with."""
    np.testing.assert_allclose(directions(3, 4), DIRECTIONS_3_4, atol=1e-9)
    assert directions(3, 64).shape == (3, 32)  # more waves than dimensions


def test_an_all_zero_embedding_gives_waves_of_phase_zero() -> None:
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2, embedding_features=4)
    block = features(space, np.zeros((1, 2)), np.zeros((1, 2)))[0, 2:-1]
    np.testing.assert_allclose(block, np.sqrt(0.5) * np.array([1.0, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("embedding", "base_logits", "message"),
    [
        (EMBEDDING, np.array([[0.0, np.nan]]), "base_logits: row 0"),
        (np.array([[np.inf, 0.0]]), LOGITS, "embedding: row 0"),
        (EMBEDDING, np.zeros((1, 3)), r"base_logits: shape \(1, 3\) is not \[b, 2\]"),
        (np.zeros((2, 2)), LOGITS, r"embedding: shape \(2, 2\) is not \[1, 2\]"),
    ],
)
def test_bad_input_is_named(embedding: np.ndarray, base_logits: np.ndarray, message: str) -> None:
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2)
    with pytest.raises(ValueError, match=message):
        features(space, embedding, base_logits)


def test_spaces_differ_by_digest_and_settings() -> None:
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2)
    require_same_space(space, replace(space))
    with pytest.raises(FeatureMismatch, match="trunk_digest 'trunk' is not 'other'"):
        require_same_space(space, FeatureSpace("other", n_actions=2, embedding_size=2))
    with pytest.raises(FeatureMismatch, match=r"embedding_features 0 is not 8, exclusivity 0\.0 is not 0\.5"):
        require_same_space(space, FeatureSpace("trunk", 2, 2, embedding_features=8, exclusivity=0.5))


@pytest.mark.parametrize("wrong", [{"embedding_features": 3}, {"embedding_features": -2}, {"exclusivity": 1.5}])
def test_spaces_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*needs"):
        FeatureSpace("trunk", n_actions=2, embedding_size=2, **wrong)  # type: ignore[arg-type]
