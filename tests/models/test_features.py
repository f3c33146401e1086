"""φ(x): hand-worked values and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit_models.features import FeatureMismatch, FeatureSpace, features, require_same_space, space_from_dict

LOGITS = np.log(np.array([[1.0, 3.0]])) + 5.0  # softmax is [1/4, 3/4]; the 5 must not matter
EMBEDDING = np.array([[3.0, 4.0]])  # length 5


def test_features_are_base_probabilities_scaled_embedding_and_one() -> None:
    """softmax([ln 1, ln 3]) = [1/4, 3/4]; [3, 4] / 5 × 0.5 = [0.3, 0.4]."""
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2, embedding_scale=0.5)
    np.testing.assert_allclose(features(space, EMBEDDING, LOGITS), [[0.25, 0.75, 0.3, 0.4, 1.0]], rtol=1e-12)
    assert space.n_features == 5


def test_scale_zero_leaves_the_embedding_out() -> None:
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2)
    np.testing.assert_allclose(features(space, EMBEDDING, LOGITS), [[0.25, 0.75, 1.0]], rtol=1e-12)
    assert space.n_features == 3


def test_an_all_zero_embedding_stays_zero() -> None:
    space = FeatureSpace("trunk", n_actions=2, embedding_size=2, embedding_scale=1.0)
    np.testing.assert_array_equal(features(space, np.zeros((1, 2)), LOGITS)[0, 2:4], [0.0, 0.0])


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
    require_same_space(space, space_from_dict(space.to_dict()))
    with pytest.raises(FeatureMismatch, match="trunk_digest 'trunk' is not 'other'"):
        require_same_space(space, FeatureSpace("other", n_actions=2, embedding_size=2))
    with pytest.raises(FeatureMismatch, match=r"embedding_scale 0\.0 is not 0\.5"):
        require_same_space(space, FeatureSpace("trunk", n_actions=2, embedding_size=2, embedding_scale=0.5))
