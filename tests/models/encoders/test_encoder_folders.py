"""Folders that hold no encoder for their modality: each refused with the folder, the field and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from plaudit_models.preprocess import tokenize
from plaudit_models.spec import AudioModality, ImageModality, Modality, TextModality
from plaudit_models.training.encoders.config import UnusableEncoder
from plaudit_models.training.encoders.folder import read_encoder
from support.encoder_folders import image_folder, text_folder, whisper_folder

TEXT = TextModality(max_tokens=8)
SOUND = AudioModality(16_000, 1.0)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper_folder(tmp_path_factory.mktemp("whisper"))


def _refused(folder: Path, modality: Modality, *told: str) -> None:
    with pytest.raises(UnusableEncoder) as refused:
        read_encoder(folder, modality, name="it")
    message = str(refused.value)
    assert message.startswith(f"{folder}: ")
    for words in told:
        assert words in message


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = read_encoder(folder, TEXT, name="it").tokenizer
    assert tokenizer is not None
    return tokenizer


def _changed(folder: Path, copy: Path, **entries: Any) -> Path:
    shutil.copytree(folder, copy)
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return copy


def test_what_is_no_encoder_is_refused(tmp_path: Path, bert: Path) -> None:
    _refused(tmp_path / "absent", TEXT, "config.json cannot be read", "save_pretrained")
    _refused(_changed(bert, tmp_path / "kind", model_type="gpt2"), TEXT, "model_type 'gpt2'", "known are bert, clip")
    _refused(bert, ImageModality(16, 16), "model_type 'bert', which reads text", "'it' is of kind image")
    broken = _changed(bert, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    _refused(broken, TEXT, "config.json cannot be read")


def test_weights_that_config_json_does_not_describe_are_refused(tmp_path: Path, bert: Path) -> None:
    _refused(_changed(bert, tmp_path / "wide", intermediate_size=48), TEXT, "other shapes of", "config.json")
    _refused(_changed(bert, tmp_path / "deep", num_hidden_layers=3), TEXT, "no encoder.layer.2", "and 13 more")
    _refused(_changed(bert, tmp_path / "flat", num_hidden_layers=1), TEXT, "more layers than it says", "layer.1.")
    pickled = _changed(bert, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    _refused(pickled, TEXT, "has no *.safetensors", "save_pretrained writes safetensors")
    cut = _changed(bert, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    _refused(cut, TEXT, "transformers cannot load it")


def test_weights_with_a_prefix_and_a_head_are_taken(tmp_path: Path, bert: Path) -> None:
    """As BertForMaskedLM and others save them."""
    folder = _changed(bert, tmp_path / "masked")
    weights = {f"bert.{name}": tensor for name, tensor in load_file(bert / "model.safetensors").items()}
    weights["cls.predictions.bias"] = weights["bert.embeddings.LayerNorm.bias"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    taken, plain = (read_encoder(each, TEXT, name="it").weights for each in (folder, bert))
    assert taken.keys() == plain.keys()
    assert all(taken[name].equal(plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has neither tokenizer.json nor vocab.txt"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "not a tokenizer file"),
    ],
)
def test_a_text_encoder_needs_its_tokenizer(
    tmp_path: Path, bert: Path, change: Callable[[Path], object], told: str
) -> None:
    folder = _changed(bert, tmp_path / "text")
    change(folder)
    _refused(folder, TEXT, told)


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path: Path, bert: Path) -> None:
    _refused(_changed(bert, tmp_path / "few", vocab_size=5), TEXT, "has 14 tokens", "vocab_size 5")


def test_modalities_that_an_encoder_cannot_read_are_refused(
    tmp_path: Path, bert: Path, vit: Path, whisper: Path
) -> None:
    _refused(bert, TextModality(max_tokens=39), "reads 38 tokens", "max_tokens is 39; lower it")
    _refused(vit, ImageModality(16, 20), "image_size 16×16", "width = 16")
    _refused(vit, ImageModality(16, 16, channels=1), "num_channels 3", "channels = 3")
    _refused(whisper, AudioModality(8_000, 1.0), "sampling_rate 16000", "set it to 16000")
    _refused(whisper, AudioModality(16_000, 2.5), "which is 2 s", "max_duration_s is 2.5; lower it")
    unsaid = _changed(vit, tmp_path / "unsaid")
    (unsaid / "preprocessor_config.json").unlink()
    _refused(unsaid, ImageModality(16, 16), "preprocessor_config.json cannot be read")


def test_text_that_looks_like_a_special_token_is_text(bert: Path) -> None:
    """No user may end a text, or make a part of it padding, by writing the name of a token."""
    tokenizer = _tokenizer(bert)
    ids = tokenize("cat [SEP] [PAD] dog", TEXT, tokenizer, name="it")
    assert not {0, 2, 3} & set(ids[: len(ids.nonzero()[0])].tolist())
    assert tokenizer.token_to_id("cat") == ids[0]


def test_a_vocabulary_alone_makes_the_tokenizer(tmp_path: Path, bert: Path) -> None:
    """As older folders of BERT kinds have it."""
    folder = _changed(bert, tmp_path / "old")
    vocabulary = json.loads((bert / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    (folder / "tokenizer.json").unlink()
    ours, theirs = _tokenizer(folder), _tokenizer(bert)
    for text in ("What is THIS?", "a photo of cats"):
        assert list(tokenize(text, TEXT, ours, name="it")) == list(tokenize(text, TEXT, theirs, name="it"))
