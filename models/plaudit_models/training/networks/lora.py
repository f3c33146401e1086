"""Low-rank adapters: train a small update of each weight matrix instead of the matrix, then merge it in.

W becomes W + (α/r)·B·A, with A ``[r, inputs]`` drawn from a Gaussian and B ``[outputs, r]`` zero, so that training
starts from W exactly; W itself stands still (Hu et al. 2021, "LoRA", equation 3 and section 4.1). Once merged, a module
has the weights, names and speed that it had before, so exporting and serving know nothing of adapters.

Knows nothing about losses or which parts of a policy are trained.

Notation:
    r: rank of the update, α: its scale in units of r
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

_MATRICES = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)
"""Layers whose weight is a matrix, or one filter a row."""
_WEIGHT = "weight"


class LowRank(nn.Module):
    """W ``[outputs, ...]`` → W + (α/r)·B·A, the axes of W after the first taken as one."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: Generator) -> None:
        super().__init__()
        outputs, inputs = len(weight), weight[0].numel()
        rank = min(rank, outputs, inputs)
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, inputs, generator=generator) / math.sqrt(rank))
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).reshape(weight.shape)


def adapt(model: nn.Module, rank: int, alpha: float, generator: Generator) -> list[nn.Parameter]:
    """Put an adapter on every weight matrix that may change, and freeze everything else, in place.

    Args:
        model: parameters that require no gradient get no adapter.
        rank: r ≥ 1; a matrix with fewer rows or columns gets an update of full rank.
        alpha: α > 0.
        generator: draws A.

    Returns:
        The factors of all updates, which are all that is left to train.

    Raises:
        ValueError: rank or alpha is out of range, or no weight matrix may change.
    """
    if rank < 1 or not alpha > 0:
        raise ValueError(f"rank {rank} must be at least 1 and alpha {alpha} greater than 0")
    layers = [layer for layer in model.modules() if isinstance(layer, _MATRICES) and layer.weight.requires_grad]
    if not layers:
        raise ValueError("model: none of its weight matrices may change, so there is nothing to adapt")
    model.requires_grad_(False)
    factors: list[nn.Parameter] = []
    for layer in layers:
        low_rank = LowRank(layer.weight, rank, alpha, generator)
        parametrize.register_parametrization(layer, _WEIGHT, low_rank)
        factors += [low_rank.down, low_rank.up]
    return factors


def merge(model: nn.Module) -> None:
    """Write each adapted weight where it was before :func:`adapt`, and take the adapters away, in place."""
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer, _WEIGHT):
            with torch.no_grad():
                parametrize.remove_parametrizations(layer, _WEIGHT, leave_parametrized=True)
