"""A policy that scores text: it learns what words mean to each other, and its third graph says the same as torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from plaudit_models.bundle import TEXT_SCORER, TEXT_SCORER_GOLDEN, TRUNK, Manifest, verify
from plaudit_models.data.labelled import LabelledData
from plaudit_models.preprocess import action_texts, tokenize_all, train_tokenizer
from plaudit_models.spec import (
    PRESENT,
    TOKENS,
    VECTORS,
    InvalidSpec,
    ModelSpec,
    TensorModality,
    TextModality,
    spec_from_dict,
)
from plaudit_models.training.config import FinetuneConfig, LoraConfig, PretrainConfig
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.export import (
    ExportMismatch,
    check_text_scorer_parity,
    export_version,
    load_policy,
    trunk_state,
)
from plaudit_models.training.finetune import finetune
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy
from plaudit_models.training.pretrain import Pretrained, evaluate, pretrain
from plaudit_models.training.schedule import use_threads

THINGS, ASKING = 12, 4
"""Token ids: 1…12 are things, 13…16 words around them. An action is a pair of things, and its name their tokens."""
PAIRS = [(first, second) for first in range(1, 7) for second in range(7, 13)]
CONFIG = FusionConfig(vocabulary_size=1 + THINGS + ASKING, width=32, layers=1, attention_heads=2)
STEPS = PretrainConfig(max_duration_s=None, max_steps=250, batch=64, validations=1, learning_rate=5e-3)
SHUFFLED = np.random.default_rng(3).permutation(len(PAIRS)).tolist()
KNOWN, UNSEEN = SHUFFLED[:28], SHUFFLED[28:]


def spec_of(pairs: list[int], *, scores_text: bool = True) -> ModelSpec:
    return ModelSpec(
        "pairs",
        {"noise": TensorModality((2,)), "text": TextModality(4)},
        tuple(f"{PAIRS[i][0]}-{PAIRS[i][1]}" for i in pairs),
        embedding_size=32,
        scores_text=scores_text,
    )


SPEC = spec_of(KNOWN)


def names_of(pairs: list[int]) -> np.ndarray:
    names = np.zeros((len(pairs), 4), np.int64)
    names[:, :2] = [PAIRS[i] for i in pairs]
    return names


def asked(pairs: list[int], n: int, seed: int, spec: ModelSpec = SPEC) -> LabelledData:
    """Questions about ``pairs``: their two things in any order, among words that mean nothing."""
    rng = np.random.default_rng(seed)
    action = rng.integers(len(pairs), size=n)
    text = rng.integers(1 + THINGS, 1 + THINGS + ASKING, (n, 4))
    for row, label in enumerate(action.tolist()):
        places = rng.choice(4, 2, replace=False)
        text[row, places] = rng.permutation(PAIRS[pairs[label]])
    return LabelledData(
        spec=spec,
        pools={"noise": rng.random((n, 2), np.float32), "text": text},
        index=np.stack([np.arange(n), np.arange(n)], axis=1),
        action=action,
        tower_labels={},
        tower_classes={},
        group=[""] * n,
    )


def test_scores_text_travels_in_the_spec_and_asks_for_one_text_modality() -> None:
    assert spec_from_dict(SPEC.to_dict()) == SPEC
    assert "scores_text" not in spec_of(KNOWN, scores_text=False).to_dict()
    raw = {"name": "m", "actions": ["a", "b"], "scores_text": True}
    two = {"title": {"kind": "text"}, "body": {"kind": "text"}}
    for modalities in ({"sensor": {"kind": "tensor", "shape": [2]}}, two):
        with pytest.raises(InvalidSpec, match=r"model\.scores_text: true needs exactly one text modality"):
            spec_from_dict({**raw, "modalities": modalities})
    with pytest.raises(InvalidSpec, match=r"model\.scores_text: 'yes' is neither true nor false"):
        spec_from_dict({**raw, "modalities": {"text": {"kind": "text"}}, "scores_text": "yes"})
    assert spec_of(KNOWN).difference(spec_of(KNOWN, scores_text=False)) == "it scores no dynamic actions by their text"
    assert spec_of(KNOWN, scores_text=False).difference(spec_of(KNOWN)) == ""


def test_a_policy_that_scores_no_text_is_what_it_was() -> None:
    torch.manual_seed(1)
    plain = FusionPolicy(spec_of(KNOWN, scores_text=False), CONFIG)
    torch.manual_seed(1)
    scoring = FusionPolicy(SPEC, CONFIG)
    state = plain.state_dict()
    assert not any(name.startswith("text_scorer") for name in state)
    assert all(torch.equal(tensor, scoring.state_dict()[name]) for name, tensor in state.items())
    with pytest.raises(ValueError, match="scores no text"):
        plain.text_vectors(torch.zeros((1, 4), dtype=torch.int64))


@pytest.fixture(scope="module")
def trained() -> Pretrained:
    use_threads(1)
    return pretrain(
        asked(KNOWN, 2000, 0), asked(KNOWN, 256, 1), fusion=CONFIG, config=STEPS, action_texts=names_of(KNOWN)
    )


def accuracy(model: FusionPolicy, pairs: list[int], texts: np.ndarray, seed: int = 2) -> float:
    """Between ``texts``, one for each of ``pairs``."""
    data = asked(pairs, 512, seed, spec_of(pairs))
    with torch.no_grad():
        text = torch.from_numpy(data.pools["text"])
        tokens = {
            "noise": model.encode("noise", torch.from_numpy(data.pools["noise"])),
            "text": model.encode("text", text),
        }
        embedding, _ = model.fuse(tokens, torch.ones(len(text), 2))
        found = (embedding @ model.text_vectors(torch.from_numpy(texts)).T).argmax(dim=1)
    return float((found.numpy() == data.action).mean())


def test_it_tells_apart_what_it_has_never_been_asked_for(trained: Pretrained) -> None:
    assert accuracy(trained.model, KNOWN, names_of(KNOWN)) > 0.8
    assert accuracy(trained.model, UNSEEN, names_of(UNSEEN)) > 0.6  # chance is 1/8
    worded = asked(UNSEEN, 64, 5, spec_of(UNSEEN))
    wordings = np.stack([worded.pools["text"][worded.action == i][0] for i in range(len(UNSEEN))])
    assert accuracy(trained.model, UNSEEN, wordings) > 0.6


def test_accuracy_by_name_is_that_of_dynamic_actions_with_the_actions_names(trained: Pretrained) -> None:
    data = asked(KNOWN, 512, 2)
    found = evaluate(trained.model, data, by_name=True)
    assert found.overall == pytest.approx(accuracy(trained.model, KNOWN, names_of(KNOWN)))
    plain = FusionPolicy(spec_of(KNOWN, scores_text=False), CONFIG)
    with pytest.raises(ValueError, match="scores no text"):
        evaluate(plain, data, by_name=True)


def test_a_policy_that_scores_text_needs_the_names_of_its_actions() -> None:
    with pytest.raises(ValueError, match="action_texts: none given, but 'pairs' scores text"):
        pretrain(asked(KNOWN, 10, 0), asked(KNOWN, 10, 1), fusion=CONFIG, config=STEPS)


def test_names_of_actions_are_read_as_words() -> None:
    spec = ModelSpec("m", {"text": TextModality(8)}, ("block_card", "change-my_pin"), scores_text=True)
    tokenizer = train_tokenizer(["block card", "change my pin"], 300)
    expected = tokenize_all(["block card", "change my pin"], TextModality(8), tokenizer)
    np.testing.assert_array_equal(action_texts(spec, tokenizer), expected)


# --- versions --------------------------------------------------------------------------------------------------------


def manifest() -> Manifest:
    return Manifest(spec=SPEC, kind="pretrained", created_at_s=1.0, files={})


def golden() -> dict[str, np.ndarray]:
    data = asked(KNOWN, 4, 9)
    return {**data.pools, PRESENT: np.array([[1, 1], [0, 1], [1, 0], [1, 1]], np.float32)}


@pytest.fixture(scope="module")
def version(trained: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "version"
    folder.mkdir()
    export_version(trained.model, folder, manifest(), golden())
    return folder


def test_the_text_scorer_does_what_torch_does_and_is_sealed_with_its_proof(trained: Pretrained, version: Path) -> None:
    assert {TEXT_SCORER, TEXT_SCORER_GOLDEN} < set(verify(version).files)
    session = onnxruntime.InferenceSession(str(version / TEXT_SCORER), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [(TOKENS, ["k", 4], "tensor(int64)")]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [(VECTORS, ["k", 32])]
    for k in (1, 3, 28):
        assert check_text_scorer_parity(trained.model, version / TEXT_SCORER, names_of(KNOWN[:k])).shape == (k, 32)
    recorded = load_file(version / TEXT_SCORER_GOLDEN)
    assert set(recorded) == {TOKENS, VECTORS}
    assert (recorded[TOKENS][:, None] == golden()["text"][None]).all(axis=2).any(axis=0).all()
    other = FusionPolicy(SPEC, CONFIG)
    with pytest.raises(ExportMismatch, match="vectors differs from torch by"):
        check_text_scorer_parity(other, version / TEXT_SCORER, names_of(KNOWN[:2]))


def test_neither_graph_holds_weights_that_it_does_not_read(trained: Pretrained, version: Path) -> None:
    names = {
        path: {i.name for i in onnx.load(version / path).graph.initializer if i.name.startswith("weights/")}
        for path in (TRUNK, TEXT_SCORER)
    }
    assert names[TRUNK] == {f"weights/{name}" for name in trunk_state(trained.model) if "batches" not in name}
    assert not any("text_scorer" in name for name in names[TRUNK])
    assert names[TEXT_SCORER] == {
        *(f"weights/encoders.text.{name}" for name in trained.model.encoders["text"].state_dict()),
        *(f"weights/text_scorer.{name}" for name in ("project.weight", "project.bias", "turn.weight", "log_scale")),
    }


def test_the_weights_come_back_with_the_scorer(trained: Pretrained, version: Path) -> None:
    loaded = load_policy(version, SPEC)
    state = trained.model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.text_scorer is not None
    np.testing.assert_array_equal(loaded.text_scorer.action_texts.numpy(), names_of(KNOWN))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_fine_tuning_keeps_what_the_scorer_knows(
    trained: Pretrained, version: Path, tmp_path: Path, lora: LoraConfig | None
) -> None:
    data = asked(KNOWN, 64, 7)
    n = len(data)
    experiences = Experiences(
        pools=data.pools,
        index=data.index,
        action=data.action,
        reward=np.ones(n, np.float32),
        correction=np.full(n, -1, np.int64),
        weight=np.ones(n, np.float32),
    )
    config = FinetuneConfig(max_steps=20, max_duration_s=None, replays_per_experience=20.0, lora=lora)
    tuned = finetune(load_policy(version, SPEC), experiences, asked(KNOWN, 500, 8), config=config).model
    words = "encoders.text.words.weight"
    assert not torch.equal(tuned.state_dict()[words], trained.model.state_dict()[words])
    assert accuracy(tuned, KNOWN, names_of(KNOWN)) > 0.8
    assert accuracy(tuned, UNSEEN, names_of(UNSEEN)) > 0.5
    export_version(tuned, tmp_path, manifest(), golden(), parent_trunk=version / TRUNK)
    verify(tmp_path)
    assert check_text_scorer_parity(tuned, tmp_path / TEXT_SCORER, names_of(KNOWN)).shape == (28, 32)
