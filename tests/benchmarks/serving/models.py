"""The two models of the comparison with other servers: tri-modal, 75 KB a request, about 1 ms and 10 ms on one core.

Random weights: only their cost matters. Exported once, into .cache.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from plaudit import compose
from plaudit.adapters.onnx_import import ImportOptions
from plaudit.cli.importing import import_model
from plaudit.core.settings import Settings

CACHE: Final = Path(__file__).parents[3] / ".cache/bench"
SIZES: Final = {"small": (128, 2), "base": (320, 6)}
"""Width and layers."""
SHAPES: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "image": ("FP32", (3, 64, 64)),
    "audio": ("FP32", (6400,)),
    "text": ("INT64", (16,)),
}
_VOCABULARY: Final = 1000


class TriModal(nn.Module):
    """Patches, frames and tokens through one transformer: 64 + 16 + 16 tokens."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.frames = nn.Conv1d(1, width, 400, 200)
        self.tokens = nn.Embedding(_VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.actions = nn.Linear(width, 20)

    def forward(self, image: torch.Tensor, audio: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen = self.patches(image).flatten(2).transpose(1, 2)
        heard = self.frames(audio[:, None]).transpose(1, 2)[:, :16]
        hidden = self.encoder(torch.cat([seen, heard, self.tokens(text)], 1)).mean(1)
        return self.actions(hidden), hidden


def rows(count: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random inputs ``[count, …]`` by name."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.random((count, *shape), np.float32)
        if datatype == "FP32"
        else rng.integers(0, _VOCABULARY, (count, *shape))
        for name, (datatype, shape) in SHAPES.items()
    }


def exported(name: str, seed: int = 0) -> Path:
    """The ONNX file, made if it is not there."""
    path = CACHE / f"{name}-{seed}.onnx"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        example = tuple(torch.from_numpy(array) for array in rows(2).values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                TriModal(*SIZES[name]).eval(),
                example,
                str(path.with_suffix(".tmp")),
                input_names=list(SHAPES),
                output_names=["logits", "hidden"],
                dynamic_shapes=[{0: torch.export.Dim("batch", min=1, max=256)}] * len(SHAPES),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        path.with_suffix(".tmp").rename(path)
    return path


def deploy(data_dir: Path, *names: str) -> Settings:
    """A data directory in which these models are imported and live."""
    settings = Settings(data_dir=data_dir)
    for name in names:
        options = ImportOptions(logits="logits", embedding="hidden")
        import_model(settings, exported(name), name, options, go_live=True)
    return settings


def folder(settings: Settings, name: str) -> Path:
    """Of its only version."""
    return compose.registry_of(settings, name).folder(1)
