"""Local folder in the Hugging Face format → a pretrained encoder. Nothing is fetched, and no code of a folder is run.

A folder is what ``save_pretrained`` of transformers, or a download of a model, leaves: ``config.json``, weights as
``*.safetensors``, and beside them ``tokenizer.json`` or ``vocab.txt`` of a text encoder and
``preprocessor_config.json`` of one of images or waveforms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from torch import Tensor

from plaudit_models.preprocess import read_tokenizer
from plaudit_models.spec import AudioModality, ImageModality, Modality, TextModality
from plaudit_models.training.encoders.config import ENCODER_KINDS, PARTS, EncoderConfig, UnusableEncoder
from plaudit_models.training.encoders.networks import (
    WHISPER_RATE_HZ,
    encoder_of,
    network_class,
    shorten_whisper,
    transformers_library,
    without_pooler,
)

_CONFIG: Final = "config.json"
_PREPROCESSOR: Final = "preprocessor_config.json"
_TOKENIZER: Final = "tokenizer.json"
_VOCABULARY: Final = "vocab.txt"
_MAX_JSON_BYTES: Final = 64 * 2**20
_AROUND_A_TEXT: Final = 2
"""Tokens that begin and end a text, beside those of the modality."""
_MAX_TOLD: Final = 3
"""Weights that an error names."""
_OTHER_TOWER: Final = "text_model."
_LAYER: Final = re.compile(r"\.\d+\.")
_SPECIAL: Final = {
    "bert": ("[CLS]", "[SEP]", "[PAD]"),
    "distilbert": ("[CLS]", "[SEP]", "[PAD]"),
    "mpnet": ("<s>", "</s>", "<pad>"),
    "roberta": ("<s>", "</s>", "<pad>"),
    "xlm-roberta": ("<s>", "</s>", "<pad>"),
}
"""Tokens that begin a text, end it and fill it up, unless the folder says otherwise."""


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """Encoder read from a folder.

    Attributes:
        config: description, which is all that building it again needs.
        weights: state dict of :attr:`.networks.EncoderNetwork.network`.
        tokenizer: of a text encoder, which adds no token to a text by itself; None of others.
    """

    config: EncoderConfig
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer | None = None


def read_encoder(folder: Path, modality: Modality, *, name: str, tuned: bool = False) -> LoadedEncoder:
    """Encoder for the modality called ``name``.

    Raises:
        UnusableEncoder: the folder holds none of a known kind, none for this modality, or other weights than its
            config.json says.
    """
    described = _read_json(folder, _CONFIG)
    kind, network = _kind(folder, described, modality, name)
    inputs: Mapping[str, Any]
    tokenizer = None
    if isinstance(modality, TextModality):
        tokenizer = _read_tokenizer(folder)
        inputs = _text_inputs(folder, kind, network, tokenizer, modality, name)
    elif isinstance(modality, ImageModality):
        inputs = _image_inputs(folder, network, modality, name)
    else:
        assert isinstance(modality, AudioModality)
        inputs = _audio_inputs(folder, kind, network, modality, name)
    weights = _read_weights(folder, kind, modality)
    return LoadedEncoder(EncoderConfig(kind, network, inputs, tuned), weights, tokenizer)


def _kind(folder: Path, described: Mapping[str, Any], modality: Modality, name: str) -> tuple[str, dict[str, Any]]:
    kind, network = str(described.get("model_type")), dict(described)
    if kind in PARTS:
        entry, kind = PARTS[kind]
        if not isinstance(described.get(entry), dict):
            raise UnusableEncoder(f"{folder}: {_CONFIG} has no {entry!r}, which describes the tower of images")
        network = dict(described[entry]) | {"model_type": kind}
    if kind not in ENCODER_KINDS:
        raise UnusableEncoder(
            f"{folder}: {_CONFIG} says model_type {kind!r}, which is not a kind of encoder that is known; known are "
            f"{', '.join(sorted([*ENCODER_KINDS, *PARTS]))}"
        )
    if ENCODER_KINDS[kind] != modality.kind:
        raise UnusableEncoder(
            f"{folder}: {_CONFIG} says model_type {kind!r}, which reads {ENCODER_KINDS[kind]}, and modality {name!r} "
            f"is of kind {modality.kind}; name it as the encoder of another modality"
        )
    unused = ("architectures", "auto_map", "_name_or_path", "torch_dtype", "dtype", "transformers_version")
    return kind, {key: value for key, value in network.items() if key not in unused}


def _read_json(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UnusableEncoder(f"{folder}: {file} has more than {_MAX_JSON_BYTES} bytes; it is no such file")
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UnusableEncoder):
            raise
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UnusableEncoder(
            f"{folder}: {file} cannot be read ({why}); an encoder is a folder as save_pretrained of transformers "
            "writes it, with its tokenizer or preprocessor beside it"
        ) from error
    if not isinstance(read, dict):
        raise UnusableEncoder(f"{folder}: {file} holds no object")
    return read


# --- texts ------------------------------------------------------------------------------------------------------------


def _read_tokenizer(folder: Path) -> Tokenizer:
    """Tokenizer that neither cuts, fills up nor takes the name of a special token for it."""
    if (folder / _TOKENIZER).is_file():
        try:
            tokenizer = read_tokenizer(folder / _TOKENIZER)
        except ValueError as error:
            raise UnusableEncoder(f"{folder}: {error}; save the fast tokenizer of transformers there") from error
    elif (folder / _VOCABULARY).is_file():
        told = _read_json(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        lower = bool(told.get("do_lower_case", True))
        made = BertWordPieceTokenizer(str(folder / _VOCABULARY), lowercase=lower)
        tokenizer = Tokenizer.from_str(made.to_str())
    else:
        raise UnusableEncoder(
            f"{folder}: has neither {_TOKENIZER} nor {_VOCABULARY}; save the encoder's own tokenizer there"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [each for each in raw["added_tokens"] if not each["special"]]
    return tokenizer if len(raw["added_tokens"]) == 0 and raw.get("post_processor") is None else _stripped(raw)


def _stripped(raw: dict[str, Any]) -> Tokenizer:
    """Tokenizer without the step that puts special tokens around a text: the graph does."""
    return Tokenizer.from_str(json.dumps(raw | {"post_processor": None}))


def _text_inputs(
    folder: Path, kind: str, network: Mapping[str, Any], tokenizer: Tokenizer, modality: TextModality, name: str
) -> dict[str, int]:
    told = _read_json(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    inputs = {}
    for key, setting, usual in zip(
        ("bos", "eos", "padding"), ("cls_token", "sep_token", "pad_token"), _SPECIAL[kind], strict=True
    ):
        token = told.get(setting) or usual
        text = token["content"] if isinstance(token, dict) else str(token)
        number = tokenizer.token_to_id(text)
        if number is None:
            raise UnusableEncoder(
                f"{folder}: {setting} {text!r} is not in the vocabulary of its tokenizer; the tokenizer belongs to "
                "another encoder"
            )
        inputs[key] = number
    if 0 not in (inputs["bos"], inputs["padding"]):
        raise UnusableEncoder(
            f"{folder}: token 0 of its tokenizer begins no text and fills none up; 0 is padding in every graph here, "
            "so no text may encode to it"
        )
    size, rows = tokenizer.get_vocab_size(), network.get("vocab_size")
    if rows is not None and size > rows:
        raise UnusableEncoder(
            f"{folder}: its tokenizer has {size} tokens, and {_CONFIG} says vocab_size {rows}; the tokenizer belongs "
            "to another encoder"
        )
    most = int(network.get("max_position_embeddings", 512)) - _AROUND_A_TEXT
    if kind in ("roberta", "xlm-roberta", "mpnet"):
        most -= 2  # their positions begin after that of padding
    if modality.max_tokens > most:
        raise UnusableEncoder(
            f"{folder}: reads {most} tokens of a text at most, and model.modalities.{name}.max_tokens is "
            f"{modality.max_tokens}; lower it"
        )
    return inputs


# --- images and sounds ------------------------------------------------------------------------------------------------


def _image_inputs(
    folder: Path, network: Mapping[str, Any], modality: ImageModality, name: str
) -> dict[str, list[float]]:
    told = _read_json(folder, _PREPROCESSOR)
    channels = int(network.get("num_channels", 3))
    size = network.get("image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if (modality.channels, modality.height, modality.width) != (channels, height, width):
        raise UnusableEncoder(
            f"{folder}: {_CONFIG} says image_size {height}×{width} and num_channels {channels}, and modality {name!r} "
            f"is {modality.height}×{modality.width} with {modality.channels}; set model.modalities.{name}.height = "
            f"{height}, width = {width} and channels = {channels}"
        )
    if not told.get("do_normalize", True):
        return {"mean": [0.0] * channels, "std": [1.0] * channels}
    inputs = {}
    for key, entry in (("mean", "image_mean"), ("std", "image_std")):
        values = told.get(entry)
        numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
        if not isinstance(values, list) or not numbers or len(values) != channels:
            raise UnusableEncoder(f"{folder}: {_PREPROCESSOR} says {entry} {values!r}, not {channels} numbers")
        inputs[key] = [float(value) for value in values]
    if min(inputs["std"]) <= 0:
        raise UnusableEncoder(f"{folder}: {_PREPROCESSOR} says image_std {inputs['std']}; they must be positive")
    return inputs


def _audio_inputs(
    folder: Path, kind: str, network: Mapping[str, Any], modality: AudioModality, name: str
) -> dict[str, bool]:
    has_file = (folder / _PREPROCESSOR).is_file()
    # What Whisper does to a sound is the same for all of them; the others differ.
    told = _read_json(folder, _PREPROCESSOR) if has_file or kind != "whisper" else {}
    rate_hz = told.get("sampling_rate", WHISPER_RATE_HZ)
    if modality.sample_rate_hz != rate_hz:
        raise UnusableEncoder(
            f"{folder}: {_PREPROCESSOR} says sampling_rate {rate_hz}, and model.modalities.{name}.sample_rate_hz is "
            f"{modality.sample_rate_hz}; set it to {rate_hz}"
        )
    if kind == "whisper":
        positions = int(network.get("max_source_positions", 1500))
        most_s = 2 * positions * 160 / WHISPER_RATE_HZ
        if modality.max_duration_s > most_s:
            raise UnusableEncoder(
                f"{folder}: {_CONFIG} says max_source_positions {positions}, which is {most_s:g} s, and "
                f"model.modalities.{name}.max_duration_s is {modality.max_duration_s:g}; lower it"
            )
        return {}
    masked = network.get("feat_extract_norm", "group") == "layer"
    return {"normalized": bool(told.get("do_normalize", True)), "masked": masked}


# --- weights ----------------------------------------------------------------------------------------------------------


def _read_weights(folder: Path, kind: str, modality: Modality) -> dict[str, Tensor]:
    if not list(folder.glob("*.safetensors")):
        raise UnusableEncoder(
            f"{folder}: has no *.safetensors; weights in other formats are not read, since opening them runs code: "
            "load them with transformers where you trust them, and save_pretrained writes safetensors"
        )
    transformers = transformers_library()
    quiet = transformers.utils.logging
    level, bars = quiet.get_verbosity(), quiet.is_progress_bar_enabled()
    quiet.set_verbosity(quiet.CRITICAL)
    quiet.disable_progress_bar()
    try:
        network, found = network_class(kind).from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **without_pooler(kind),
        )
    except Exception as error:  # of many libraries, with no common base
        raise UnusableEncoder(f"{folder}: transformers cannot load it: {error}") from error
    finally:
        quiet.set_verbosity(level)
        if bars:
            quiet.enable_progress_bar()
    _check_weights(folder, kind, set(network.state_dict()), found)
    encoder = encoder_of(kind, network)
    if kind == "whisper":
        assert isinstance(modality, AudioModality)
        shorten_whisper(encoder, -(-modality.max_samples // 320))
    return {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}


def _check_weights(folder: Path, kind: str, own: set[str], found: Mapping[str, Any]) -> None:
    """Raises UnusableEncoder: the weights are not those of the encoder that config.json describes."""

    def ours(name: str) -> bool:
        if kind == "whisper":
            return "encoder." in name.partition("layers.")[0]
        return not name.startswith(_OTHER_TOWER)

    other = sorted(name for name, *_ in found["mismatched_keys"] if ours(name))
    missing = sorted(name for name in found["missing_keys"] if ours(name) and name != "masked_spec_embed")
    patterns = {_LAYER.sub(".N.", name) for name in own if _LAYER.search(name) and ours(name)}
    more = sorted(
        name
        for name in found["unexpected_keys"]
        if any(_LAYER.sub(".N.", name).endswith(pattern) for pattern in patterns) and ours(name)
    )
    for what, names in (("other shapes of", other), ("no", missing), ("more layers than it says:", more)):
        if names:
            told = ", ".join(names[:_MAX_TOLD]) + (
                f" and {len(names) - _MAX_TOLD} more" if len(names) > _MAX_TOLD else ""
            )
            raise UnusableEncoder(
                f"{folder}: its weights are not those of its {_CONFIG}: they have {what} {told}; put the {_CONFIG} "
                "there that came with the weights"
            )
