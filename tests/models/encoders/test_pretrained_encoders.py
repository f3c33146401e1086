"""Pretrained encoders in a policy: beside transformers' own output, exported, and from a data folder to a version."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
import transformers
from safetensors.numpy import load_file as load_arrays
from torch import Tensor

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.settings import EncoderSettings
from plaudit.learner.finetuning.pretraining import pretrain_and_publish
from plaudit_models.bundle import TOKENIZER, TRUNK, TRUNK_GOLDEN
from plaudit_models.preprocess import read_tokenizer, tokenize
from plaudit_models.spec import EMBEDDING, PRESENT, AudioModality, ImageModality, Modality, ModelSpec, TextModality
from plaudit_models.training.config import PretrainConfig
from plaudit_models.training.encoders.folder import LoadedEncoder, read_encoder
from plaudit_models.training.encoders.networks import WhisperNetwork, statistics_over_time
from plaudit_models.training.export import export_trunk, load_policy, reexport_trunk, trunk_state
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy, PretrainedEncoder
from support.encoder_folders import IMAGE_SIZE, MEAN, STD, image_folder, text_folder, waveform_folder, whisper_folder

TEXTS = ("what is this", "is this a photo of the cats", "dogs")
TEXT = TextModality(max_tokens=10)
LENGTHS = (3000, 5000, 8000)
SOUND = AudioModality(16_000, 0.5)
IMAGE = ImageModality(IMAGE_SIZE, IMAGE_SIZE)
TOLERANCE = 1e-4
_OTHER_TEXTS = ("distilbert", "mpnet", "roberta", "xlm-roberta")


def _policy(modality: Modality, loaded: LoadedEncoder) -> FusionPolicy:
    spec = ModelSpec(name="one", modalities={"it": modality}, actions=("cat", "dog"), embedding_size=8)
    vocabulary = loaded.tokenizer.get_vocab_size() if loaded.tokenizer else 1
    sizes = FusionConfig(vocabulary_size=vocabulary, width=8, layers=1, encoders={"it": loaded.config})
    policy = FusionPolicy(spec, sizes).eval()
    _network(policy).network.load_state_dict(dict(loaded.weights))
    return policy


def _network(policy: FusionPolicy) -> Any:
    encoder = policy.encoder("it")
    assert isinstance(encoder, PretrainedEncoder)
    return encoder.pretrained


def _worst(left: Tensor | npt.NDArray[Any], right: Tensor | npt.NDArray[Any]) -> float:
    return float(np.abs(np.asarray(left) - np.asarray(right)).max())


def _check(policy: FusionPolicy, content: npt.NDArray[Any], theirs: Tensor, path: Path) -> None:
    """What serves is what transformers gives, read and fused."""
    with torch.no_grad():
        positions = policy.prepare("it", torch.from_numpy(content))
        assert _worst(positions[:, : theirs.shape[1]], theirs) <= TOLERANCE
        completed = torch.cat([theirs, positions[:, theirs.shape[1] :]], dim=1)
        expected, _ = policy.fuse({"it": policy.encode("it", completed)}, torch.ones(len(content), 1))
    export_trunk(policy, path)
    present = np.ones((len(content), 1), np.float32)
    served = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (embedding,) = served.run([EMBEDDING], {"it": content, PRESENT: present})
    assert _worst(embedding, expected) <= TOLERANCE


def _theirs_of_texts(folder: Path, texts: Sequence[str]) -> Tensor:
    """Mean over the tokens, and the first token's state, ``[b, 2, h]``, by transformers and its tokenizer."""
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        list(texts), padding=True, truncation=True, max_length=TEXT.max_tokens + 2, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    weight = tokens["attention_mask"][:, :, None].float()
    return torch.stack([(states * weight).sum(dim=1) / weight.sum(dim=1), states[:, 0]], dim=1)


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("distilbert", "mpnet", "roberta", "xlm-roberta")),
    ],
)
def test_texts_are_encoded_as_transformers_does(kind: str, tmp_path: Path) -> None:
    folder = text_folder(tmp_path / kind, kind)
    loaded = read_encoder(folder, TEXT, name="it")
    assert loaded.tokenizer is not None
    ids = np.stack([tokenize(text, TEXT, loaded.tokenizer, name="it") for text in TEXTS])
    policy = _policy(TEXT, loaded)
    _check(policy, ids, _theirs_of_texts(folder, TEXTS), tmp_path / "trunk.onnx")
    # Chunks of texts of like length, as a pool is encoded, change nothing.
    with torch.no_grad():
        pooled = policy.encoder("it").prepare_pool(torch.from_numpy(ids))
        assert _worst(pooled, policy.prepare("it", torch.from_numpy(ids))) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit"])
def test_images_are_encoded_as_transformers_does(kind: str, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / kind, kind)
    images = np.random.default_rng(0).random((3, *IMAGE.shape), np.float32)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = model.vision_model if hasattr(model, "vision_model") else model
    mean, std = (torch.tensor(numbers)[None, :, None, None] for numbers in (MEAN, STD))
    with torch.no_grad():
        output = model(pixel_values=(torch.from_numpy(images) - mean) / std)
    summary = output.last_hidden_state[:, 0] if kind == "vit" else output.pooler_output
    _check(_policy(IMAGE, read_encoder(folder, IMAGE, name="it")), images, summary[:, None], tmp_path / "trunk.onnx")


def _sounds() -> npt.NDArray[np.float32]:
    sounds = np.zeros((len(LENGTHS), SOUND.max_samples), np.float32)
    rng = np.random.default_rng(1)
    for sound, length in zip(sounds, LENGTHS, strict=True):
        sound[:length] = 0.1 * rng.standard_normal(length)
    return sounds


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "norm"), [("wav2vec2", "group"), ("wav2vec2", "layer"), ("hubert", "group")])
def test_waveforms_are_encoded_as_transformers_does(kind: str, norm: str, tmp_path: Path) -> None:
    folder = waveform_folder(tmp_path / kind, kind, norm)
    sounds = _sounds()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    prepared = torch.zeros(sounds.shape)
    heard = torch.zeros(sounds.shape, dtype=torch.long)
    for i, length in enumerate(LENGTHS):
        one = extractor(sounds[i, :length], sampling_rate=16_000, return_tensors="pt").input_values[0]
        prepared[i, :length], heard[i, :length] = one, 1
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(prepared, attention_mask=heard if norm == "layer" else None).last_hidden_state
    theirs = statistics_over_time(states, torch.tensor(LENGTHS)[:, None] / 80)
    _check(_policy(SOUND, read_encoder(folder, SOUND, name="it")), sounds, theirs, tmp_path / "trunk.onnx")


@pytest.mark.slow
def test_whisper_with_a_short_window_encodes_as_transformers_does(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "whisper")
    modality = AudioModality(16_000, 1.0)
    sounds = np.zeros((2, 16_000), np.float32)
    sounds[0], sounds[1, :8000] = np.sin(np.arange(16_000) / 20) * 0.3, _sounds()[2]
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    spectrogram = extractor(list(sounds), sampling_rate=16_000, return_tensors="pt").input_features.float()
    model = transformers.WhisperModel.from_pretrained(folder).get_encoder().eval()
    positions = model.embed_positions.weight[:50]
    model.config.max_source_positions = 50
    model.embed_positions = torch.nn.Embedding.from_pretrained(positions)
    with torch.no_grad():
        states = model(spectrogram).last_hidden_state
    policy = _policy(modality, read_encoder(folder, modality, name="it"))
    network = _network(policy)
    assert isinstance(network, WhisperNetwork)
    # Where there is torch, transformers computes it in single precision, which a tone of 80 dB above the rest shows.
    assert _worst(network.log_mel(torch.from_numpy(sounds)), spectrogram) <= 1e-4
    assert _worst(network.log_mel(torch.from_numpy(sounds[1:])), spectrogram[1:]) <= 1e-5
    _check(policy, sounds, statistics_over_time(states, torch.tensor([[50.0], [25.0]])), tmp_path / "trunk.onnx")


def test_time_that_was_not_heard_does_not_count() -> None:
    """States 0, 1, 2, 3 of which 3 were heard: mean 1, variance (1 + 0 + 1) / 3. Of which 1.5 were: mean
    (0 + 0.5·1) / 1.5 = 1/3, variance (1/9 + 0.5·4/9) / 1.5 = 2/9.
    """
    states = torch.arange(4.0)[None, :, None]  # [1, 4, 1]
    for heard, mean, variance in ((3.0, 1.0, 2 / 3), (1.5, 1 / 3, 2 / 9), (0.0, 0.0, 0.0)):
        given = statistics_over_time(states, torch.tensor([[heard]])).flatten()
        assert given.tolist() == pytest.approx([mean, variance**0.5], abs=1.1e-3)


def test_from_a_folder_to_a_version_that_serves_without_torch(tmp_path: Path) -> None:
    """Frozen weights are in the version as they were in the folder; what serves it imports neither torch nor
    transformers; a new head on the same trunk, and weights put into the exported graph, need no folder.
    """
    folder = text_folder(tmp_path / "bert")
    spec = ModelSpec(name="pets", modalities={"note": TEXT}, actions=("cat", "dog"), embedding_size=8)
    rows = [f"{split},{action},a photo of the {action}s" for split in ("train", "val") for action in spec.actions * 8]
    data = tmp_path / "data"
    data.mkdir()
    (data / "manifest.csv").write_text("\n".join(["split,action,note", *rows]))
    registry = DirectoryRegistry(tmp_path / "registry", "pets")
    published = pretrain_and_publish(
        data,
        spec,
        registry,
        now_s=1.0,
        floor=0.02,
        config=PretrainConfig(max_epochs=60, batch=16),
        threads=1,
        encoders={"note": EncoderSettings(folder)},
    )
    assert published.accuracy.overall == 1.0
    version = registry.folder(1)
    policy = load_policy(version, spec)
    loaded = read_encoder(folder, TEXT, name="note")
    encoder = policy.encoder("note")
    assert isinstance(encoder, PretrainedEncoder)
    kept = encoder.pretrained.network.state_dict()
    assert all(kept[name].equal(weight) for name, weight in loaded.weights.items())
    assert not any(weight.requires_grad for weight in encoder.pretrained.parameters())
    reexport_trunk(version / TRUNK, trunk_state(policy), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (version / TRUNK).read_bytes()

    code = (
        "import sys; from pathlib import Path; from plaudit.adapters.runtime.onnx import OnnxRuntime; "
        f"OnnxRuntime('cpu', 1).load(Path({str(version)!r})); "
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    golden = load_arrays(version / TRUNK_GOLDEN)
    tokenizer = read_tokenizer(version / TOKENIZER)
    assert list(golden["note"][0]) == list(tokenize("a photo of the cats", TEXT, tokenizer, name="note"))


def test_a_tuned_encoder_learns_and_then_stands_still(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert")
    loaded = read_encoder(folder, TEXT, name="it", tuned=True)
    policy = _policy(TEXT, loaded).train()
    ids = torch.tensor([[7, 8, 0, 0, 0, 0, 0, 0, 0, 0], [9, 8, 7, 0, 0, 0, 0, 0, 0, 0]])
    assert policy.prepare("it", ids).equal(ids)
    policy.encode("it", ids).sum().backward()
    weights = list(_network(policy).network.encoder.parameters())
    assert all(weight.grad is not None for weight in weights)
    policy.settle()
    assert policy.eval().prepare("it", ids).shape == (2, 2, 16)
    assert not policy.config.encoders["it"].tuned
    assert not any(weight.requires_grad for weight in weights)
