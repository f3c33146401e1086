"""A policy that scores text: it learns what words mean to each other, and its third graph says the same as torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from plaudit_models.bundle import CANDIDATE_GOLDEN, CANDIDATE, TRUNK, Manifest, verify
from plaudit_models.dataset import LabelledData
from plaudit_models.spec import PRESENT, TOKENS, VECTORS, InvalidSpec, ModelSpec, TensorModality, TextModality
from plaudit_models.spec import spec_from_dict
from plaudit_models.training.experiences import Experiences
from plaudit_models.training.export import (
    ExportMismatch,
    check_candidate_parity,
    export_version,
    load_policy,
)
from plaudit_models.training.finetune import FinetuneSettings, LoraSettings, finetune
from plaudit_models.training.fusion import FusionConfig, FusionPolicy
from plaudit_models.training.pretrain import Pretrained, PretrainSettings, pretrain

THINGS, ASKING = 12, 4
"""Token ids: 1…12 are things, 13…16 words around them. An action is a pair of things, and its name their tokens."""
PAIRS = [(first, second) for first in range(1, 7) for second in range(7, 13)]
CONFIG = FusionConfig(vocabulary_size=1 + THINGS + ASKING, width=32, layers=1, attention_heads=2)
STEPS = PretrainSettings(max_duration_s=None, max_steps=400, batch_rows=64, validations=1, learning_rate=5e-3)
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
    assert spec_of(KNOWN).difference(spec_of(KNOWN, scores_text=False)) == "it scores no candidates by their text"
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
    return pretrain(
        asked(KNOWN, 2000, 0), asked(KNOWN, 256, 1), config=CONFIG, settings=STEPS, action_texts=names_of(KNOWN)
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
    print(
        trained.validation.overall,
        accuracy(trained.model, KNOWN, names_of(KNOWN)),
        accuracy(trained.model, UNSEEN, names_of(UNSEEN)),
    )
    assert accuracy(trained.model, KNOWN, names_of(KNOWN)) > 0.8
    assert accuracy(trained.model, UNSEEN, names_of(UNSEEN)) > 0.5  # chance is 1/8
