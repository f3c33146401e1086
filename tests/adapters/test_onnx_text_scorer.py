"""The text scorer in the ONNX runtime: what it computes, what it shares, and every way in which its proof fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.learner.features.action_heads import DynamicActions
from plaudit_models.bandit import dynamic_actions, features
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionHead,
    DynamicActionSpace,
    empty_dynamic_action_state,
    evidence_of_list,
)
from plaudit_models.bandit.improvement import HeadSettings
from plaudit_models.bundle import (
    DYNAMIC_HEAD,
    DYNAMIC_HEAD_GOLDEN,
    HEAD_GOLDEN,
    TEXT_SCORER,
    TEXT_SCORER_GOLDEN,
    TRUNK,
    TRUNK_GOLDEN,
    CorruptBundle,
    read_manifest,
    seal,
)
from plaudit_models.preprocess import tokenize_all
from plaudit_models.spec import EMBEDDING, SCORES, TOKENS, VECTORS
from support.builders import run_graph, tiny_bundle, tiny_head_refresh, tiny_spec, tiny_tokenizer, with_former_names

TEXTS = ["which animal", "small", "zebra"]


@pytest.fixture
def runtime() -> OnnxRuntime:
    return OnnxRuntime("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bundle(tmp_path / "v1", spec=tiny_spec(scores_text=True))
    return tmp_path / "v1"


def reseal(folder: Path) -> None:
    """Make the manifest agree with the files again, so that only the proof by running can find fault."""
    seal(folder, read_manifest(folder))


def vectors_of(folder: Path) -> np.ndarray:
    tokens = tokenize_all(TEXTS, read_manifest(folder).spec.dynamic_action_modality[1], tiny_tokenizer())
    return run_graph(folder / TEXT_SCORER, {TOKENS: tokens})[VECTORS]


def head_of(folder: Path, *, trunk_digest: str | None = None) -> DynamicActionHead:
    """One that has heard praise of the second of three dynamic actions, and the contrary of the others."""
    manifest = read_manifest(folder)
    space = DynamicActionSpace(trunk_digest or manifest.trunk_digest, manifest.sha256(TEXT_SCORER), 8, 16)
    embedding, vectors = np.full(8, 0.5, np.float32), vectors_of(folder)
    seen = ActionList(embedding, vectors, vectors @ embedding)
    heard = evidence_of_list(space, seen, np.array([0.0, 1.0, 0.0]), np.ones(3, np.bool_), 1.0)
    return DynamicActionHead(HeadSettings(), empty_dynamic_action_state(space).add([heard] * 50))


def test_vectors_are_the_graphs_and_scores_the_base_logits(runtime: OnnxRuntime, folder: Path) -> None:
    model = runtime.load(folder)
    vectors = model.action_vectors(TEXTS)
    np.testing.assert_allclose(vectors, vectors_of(folder), rtol=1e-6)
    embedding = np.linspace(-1, 1, 8, dtype=np.float32)
    base_logits = vectors @ embedding
    np.testing.assert_array_equal(model.dynamic_scores(embedding, vectors, base_logits), base_logits)


def test_what_was_learned_about_dynamic_actions_is_served(runtime: OnnxRuntime, folder: Path, tmp_path: Path) -> None:
    tiny_head_refresh(tmp_path / "v2", folder, prefer="dog")
    head = head_of(folder)
    (tmp_path / "v2" / DYNAMIC_HEAD).write_bytes(head.to_bytes())
    reseal(tmp_path / "v2")
    model = runtime.load(tmp_path / "v2")
    embedding, vectors = np.full(8, 0.5, np.float32), vectors_of(folder)
    scores = model.dynamic_scores(embedding, vectors, vectors @ embedding)
    np.testing.assert_allclose(scores, head.scores(embedding, vectors, vectors @ embedding), rtol=1e-9)
    assert scores[1] - scores[0] > (vectors @ embedding)[1] - (vectors @ embedding)[0]


def test_versions_with_the_same_text_scorer_share_it(runtime: OnnxRuntime, folder: Path, tmp_path: Path) -> None:
    tiny_head_refresh(tmp_path / "v2", folder, prefer="dog")
    tiny_bundle(tmp_path / "other", spec=tiny_spec(scores_text=True), seed=7)
    first, refreshed, other = (runtime.load(path) for path in (folder, tmp_path / "v2", tmp_path / "other"))
    scorers = [model._text_scorer for model in (first, refreshed, other)]
    texts = [scorer._texts for scorer in scorers if scorer is not None]
    assert texts[0] is texts[1]
    assert texts[0] is not texts[2]
    del first, refreshed, other, scorers, texts
    assert len(runtime._texts) == 0


def test_a_version_without_a_text_scorer_loads_as_ever(runtime: OnnxRuntime, tmp_path: Path) -> None:
    manifest = tiny_bundle(tmp_path / "old")
    assert "scores_text" not in manifest.to_json()
    assert not any(manifest.has(name) for name in (TEXT_SCORER, TEXT_SCORER_GOLDEN, DYNAMIC_HEAD))
    model = runtime.load(tmp_path / "old")
    with pytest.raises(ValueError, match="version 0 of 'tiny' scores no text"):
        model.action_vectors(TEXTS)


def write_head(folder: Path) -> None:
    """As a refresh leaves it: with its golden scores."""
    head = head_of(folder)
    DynamicActions(head.state).write(folder, head.settings)


def nudge_scores(folder: Path) -> None:
    write_head(folder)
    scores = load_file(folder / DYNAMIC_HEAD_GOLDEN)[SCORES].copy()
    scores[1, 2] += 0.1
    save_file({SCORES: scores}, folder / DYNAMIC_HEAD_GOLDEN)


def fewer_scores(folder: Path) -> None:
    write_head(folder)
    save_file({SCORES: load_file(folder / DYNAMIC_HEAD_GOLDEN)[SCORES][:, 1:].copy()}, folder / DYNAMIC_HEAD_GOLDEN)


def other_evidence(folder: Path) -> None:
    """A head that is sound in itself, in the place of the one whose scores were recorded."""
    write_head(folder)
    state = head_of(folder).state
    other = empty_dynamic_action_state(state.space)
    (folder / DYNAMIC_HEAD).write_bytes(DynamicActionHead(HeadSettings(), other.towards(state, 0.5)).to_bytes())


def not_finite(folder: Path) -> None:
    state = head_of(folder).state
    broken = replace(state, target=np.full_like(state.target, np.nan))
    (folder / DYNAMIC_HEAD).write_bytes(DynamicActionHead(HeadSettings(), broken).to_bytes())


def nudge(folder: Path) -> None:
    arrays = {name: array.copy() for name, array in load_file(folder / TEXT_SCORER_GOLDEN).items()}
    arrays[VECTORS][0, 0] += 0.1
    save_file(arrays, folder / TEXT_SCORER_GOLDEN)


def narrower(folder: Path) -> None:
    """A graph that is right by its own golden file, but of another size than the embedding."""
    graph = onnx.load(folder / TEXT_SCORER)
    (table,) = [i for i in graph.graph.initializer if i.name == "w/words"]
    table.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table)[:, :5].copy(), table.name))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    onnx.save(graph, folder / TEXT_SCORER)
    tokens = {TOKENS: load_file(folder / TEXT_SCORER_GOLDEN)[TOKENS]}
    save_file(tokens | run_graph(folder / TEXT_SCORER, tokens), folder / TEXT_SCORER_GOLDEN)


def other_tokens(folder: Path) -> None:
    graph = onnx.load(folder / TEXT_SCORER)
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 9
    onnx.save(graph, folder / TEXT_SCORER)


def foreign_head(folder: Path) -> None:
    (folder / DYNAMIC_HEAD).write_bytes(head_of(folder, trunk_digest="another").to_bytes())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (nudge, "text_scorer.onnx: vectors differs from its golden output by 0.1"),
        (narrower, r"vectors are \(5,\), the embedding is \(8,\)"),
        (other_tokens, r"input tokens is tensor\(int64\) \['k', 9\]"),
        (nudge_scores, "dynamic_head.safetensors: scores differs from its golden output by 0.1"),
        (fewer_scores, r"dynamic_head.safetensors: scores has the shape \(4, 4\), golden is \(4, 3\)"),
        (other_evidence, "dynamic_head.safetensors: scores differs from its golden output"),
        (not_finite, "dynamic_head.safetensors: scores is not finite"),
        (foreign_head, "dynamic_head.safetensors: was learned on another trunk or text scorer"),
        (lambda folder: (folder / DYNAMIC_HEAD).write_bytes(b"no head"), "dynamic_head.safetensors: "),
        (lambda folder: (folder / TEXT_SCORER).write_bytes(b"no graph"), "text_scorer.onnx: .*cannot load"),
        (lambda folder: (folder / TEXT_SCORER).unlink(), "scores text, but the manifest seals no text_scorer.onnx"),
        (lambda folder: (folder / TEXT_SCORER_GOLDEN).unlink(), "the manifest seals no text_scorer_golden.safetensors"),
    ],
)
def test_what_fails_the_proof(
    runtime: OnnxRuntime, folder: Path, change: Callable[[Path], None], complaint: str
) -> None:
    change(folder)
    reseal(folder)
    with pytest.raises(CorruptBundle, match=complaint):
        runtime.load(folder)
    assert {TRUNK, HEAD_GOLDEN} < set(read_manifest(folder).files)


def test_golden_scores_are_the_formulas_over_the_recorded_texts(runtime: OnnxRuntime, folder: Path) -> None:
    write_head(folder)
    reseal(folder)
    recorded = load_file(folder / DYNAMIC_HEAD_GOLDEN)[SCORES]
    embeddings, vectors = load_file(folder / TRUNK_GOLDEN)[EMBEDDING], load_file(folder / TEXT_SCORER_GOLDEN)[VECTORS]
    model = runtime.load(folder)
    assert recorded.shape == (len(embeddings), len(vectors))
    for row, embedding in zip(recorded, embeddings, strict=True):
        np.testing.assert_allclose(row, model.dynamic_scores(embedding, vectors, vectors @ embedding), rtol=1e-4)
        base = vectors @ embedding
        assert np.abs(row - (base - np.logaddexp.reduce(base))).max() > 0.01  # what was learned shows


def test_a_head_whose_features_come_out_differently_here_is_refused(
    runtime: OnnxRuntime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features are made of random numbers that are drawn anew from a seed; a library may draw others."""
    write_head(folder)
    reseal(folder)
    monkeypatch.setattr(dynamic_actions, "waves", lambda product, m: features.waves(product, m)[:, ::-1])
    with pytest.raises(CorruptBundle, match=r"dynamic_head.safetensors: scores differs from its golden output"):
        runtime.load(folder)


def test_a_dynamic_head_of_0_1_0_has_no_golden_scores_and_serves(runtime: OnnxRuntime, folder: Path) -> None:
    (folder / DYNAMIC_HEAD).write_bytes(head_of(folder).to_bytes())
    reseal(folder)
    assert DYNAMIC_HEAD_GOLDEN not in runtime.load(folder).manifest.files


@pytest.mark.parametrize("name", [TEXT_SCORER, TEXT_SCORER_GOLDEN, DYNAMIC_HEAD, DYNAMIC_HEAD_GOLDEN])
def test_one_changed_byte(runtime: OnnxRuntime, folder: Path, name: str) -> None:
    write_head(folder)
    reseal(folder)
    runtime.load(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(CorruptBundle, match=f"{name}: .* is not the sealed"):
        runtime.load(folder)


def test_a_version_from_before_0_1_0(runtime: OnnxRuntime, folder: Path, tmp_path: Path) -> None:
    """Files and metadata under their former names: read as they are sealed, and served like today's."""
    (folder / DYNAMIC_HEAD).write_bytes(head_of(folder).to_bytes())
    reseal(folder)
    present = runtime.load(folder)
    with_former_names(folder)
    former = runtime.load(folder)
    assert {"candidate.onnx", "candidate_golden.safetensors", "candidate_head.safetensors"} < set(former.manifest.files)
    assert former.digest != present.digest
    embedding, vectors = np.full(8, 0.5, np.float32), former.action_vectors(TEXTS)
    np.testing.assert_array_equal(vectors, present.action_vectors(TEXTS))
    scores = [model.dynamic_scores(embedding, vectors, vectors @ embedding) for model in (former, present)]
    np.testing.assert_array_equal(scores[0], scores[1])
    refreshed = tiny_head_refresh(tmp_path / "v2", folder, prefer=None)
    assert {TEXT_SCORER, TEXT_SCORER_GOLDEN} < set(refreshed.files)
    assert refreshed.sha256(TEXT_SCORER) == former.manifest.sha256(TEXT_SCORER)
    runtime.load(tmp_path / "v2")
