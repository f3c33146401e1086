"""The head's graphs say what the numpy maths says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from plaudit_models.bandit.features import FeatureSpace, Float64, Floats, features
from plaudit_models.bandit.head import IR_VERSION, build_head, write_initial_head
from plaudit_models.bandit.improvement import HeadSettings, head_scores
from plaudit_models.bandit.reward_model import RewardState, empty_state, evidence_of_actions


def run(graph: bytes, embedding: Floats, base_logits: Floats) -> Float64:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == {"embedding", "base_logits"}
    (scores,) = session.run(
        ["scores"], {"embedding": embedding.astype(np.float32), "base_logits": base_logits.astype(np.float32)}
    )
    return np.asarray(scores, dtype=np.float64)


def contexts(seed: int, n: int, spread: float) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(n, 24)) * 3.0
    embedding[0] = 0.0
    return embedding.astype(np.float32), (rng.normal(size=(n, 19)) * spread).astype(np.float32)


def learned(space: FeatureSpace, n: int) -> RewardState:
    rng = np.random.default_rng(5)
    embedding, base_logits = contexts(6, n, spread=4.0)
    evidence = evidence_of_actions(
        space, features(space, embedding, base_logits), rng.integers(0, 19, n), rng.integers(0, 2, n).astype(float)
    )
    return empty_state(space).add(evidence)


def test_initial_head_passes_base_logits_through(tmp_path: Path) -> None:
    write_initial_head(tmp_path / "head.onnx", embedding_size=4, n_actions=3)
    base_logits = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    scores = run((tmp_path / "head.onnx").read_bytes(), np.zeros((2, 4)), base_logits)
    np.testing.assert_array_equal(scores, base_logits)


@pytest.mark.parametrize("embedding_features", [0, 8, 192])
@pytest.mark.parametrize("n_events", [0, 3, 5_000])
@pytest.mark.parametrize("spread", [0.5, 4.0, 40.0])
def test_graph_agrees_with_numpy(embedding_features: int, n_events: int, spread: float) -> None:
    space = FeatureSpace("trunk", n_actions=19, embedding_size=24, embedding_features=embedding_features)
    state = learned(space, n_events) if n_events else empty_state(space)
    embedding, base_logits = contexts(7, 64, spread)
    model = build_head(HeadSettings(), state)
    scores = run(model.SerializeToString(), embedding, base_logits)
    np.testing.assert_allclose(scores, head_scores(HeadSettings(), state, embedding, base_logits), rtol=0, atol=1e-4)


def test_graph_agrees_with_numpy_under_other_settings() -> None:
    space = FeatureSpace("trunk", n_actions=19, embedding_size=24, embedding_features=64)
    settings = HeadSettings(
        temperature=0.2, optimism=0.5, benefit_of_doubt=0.3, reference_mix=0.3, caution=3.0, reward_low=0.0
    )
    embedding, base_logits = contexts(7, 16, spread=4.0)
    scores = run(build_head(settings, learned(space, 500)).SerializeToString(), embedding, base_logits)
    expected = head_scores(settings, learned(space, 500), embedding, base_logits)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_actions", [2, 4, 5])
def test_two_triangles_in_one_rectangle_come_out_as_they_went_in(n_actions: int) -> None:
    space = FeatureSpace("trunk", n_actions=n_actions, embedding_size=24, embedding_features=8)
    embedding, base_logits = contexts(7, 16, spread=1.0)
    base_logits = base_logits[:, :n_actions]
    rng = np.random.default_rng(8)
    made = features(space, embedding, base_logits)
    evidence = evidence_of_actions(space, made, rng.integers(0, n_actions, 16), rng.integers(0, 2, 16).astype(float))
    state = empty_state(space).add(evidence)
    scores = run(build_head(HeadSettings(), state).SerializeToString(), embedding, base_logits)
    np.testing.assert_allclose(scores, head_scores(HeadSettings(), state, embedding, base_logits), rtol=0, atol=1e-4)


def test_a_head_stores_one_half_of_its_symmetric_sums() -> None:
    space = FeatureSpace("trunk", n_actions=19, embedding_size=24, embedding_features=192)
    size_bytes = len(build_head(HeadSettings(), learned(space, 50)).SerializeToString())
    assert size_bytes < 0.6 * 4 * 19 * space.n_features**2


def test_one_row_is_scored_like_a_batch() -> None:
    space = FeatureSpace("trunk", n_actions=19, embedding_size=24, embedding_features=64)
    graph = build_head(HeadSettings(), learned(space, 500)).SerializeToString()
    embedding, base_logits = contexts(7, 8, spread=4.0)
    one_by_one = np.concatenate([run(graph, embedding[i : i + 1], base_logits[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(one_by_one, run(graph, embedding, base_logits), atol=1e-4)


def test_graph_is_readable_by_every_supported_runtime() -> None:
    model = build_head(HeadSettings(), empty_state(FeatureSpace("trunk", n_actions=2, embedding_size=2)))
    assert model.ir_version == IR_VERSION <= 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    onnx.checker.check_model(model, full_check=True)
