"""Checkpoint of a training loop, from which a killed one goes on as if it had not been. Safetensors, no pickle.

Knows nothing about what is trained. The order of rows is not in it: it follows from the seed and the step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

_WEIGHT: Final = "weight"
_MOMENT: Final = "moment"
_DRAWS: Final = "draws"
_STEP: Final = "step"
_ELAPSED_S: Final = "elapsed_s"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Everything that the next step depends on.

    Attributes:
        step: gradient steps taken.
        elapsed_s: time that they took.
        tensors: weights, moments of the optimiser and state of the generator, as :func:`capture` names them.
    """

    step: int
    elapsed_s: float
    tensors: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Readers see the old file or the new one, never part of it."""
        fresh = path.with_name(f".{path.name}")
        save_file(dict(self.tensors), fresh, metadata={_STEP: str(self.step), _ELAPSED_S: str(self.elapsed_s)})
        fresh.replace(path)


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Checkpoint that was last saved; None if there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (FileNotFoundError, SafetensorError):
        return None
    return Checkpoint(int(metadata[_STEP]), float(metadata[_ELAPSED_S]), tensors)


def capture(
    step: int, elapsed_s: float, weights: Sequence[Tensor], optimizer: torch.optim.Optimizer, draws: Generator
) -> Checkpoint:
    """Checkpoint of copies."""
    tensors = {f"{_WEIGHT}/{i}": weight.detach().clone() for i, weight in enumerate(weights)}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{_MOMENT}/{i}/{name}": tensor.clone() for name, tensor in moments.items()}
    return Checkpoint(step, elapsed_s, tensors | {_DRAWS: draws.get_state()})


def restore(
    checkpoint: Checkpoint, weights: Sequence[Tensor], optimizer: torch.optim.Optimizer, draws: Generator
) -> None:
    """Put everything back that :func:`capture` took, in place.

    Raises:
        ValueError: the checkpoint is of other weights.
    """
    held = [checkpoint.tensors.get(f"{_WEIGHT}/{i}") for i in range(len(weights) + 1)]
    if held.pop() is not None or any(h is None or h.shape != w.shape for h, w in zip(held, weights, strict=True)):
        raise ValueError("checkpoint: it is of other weights than those that are trained")
    with torch.no_grad():
        for weight, tensor in zip(weights, held, strict=True):
            assert tensor is not None
            weight.copy_(tensor)
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in checkpoint.tensors.items():
        kind, *place = name.split("/")
        if kind == _MOMENT:
            state[int(place[0])][place[1]] = tensor
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
    draws.set_state(checkpoint.tensors[_DRAWS])
