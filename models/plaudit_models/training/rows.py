"""Rows over pools of shared items, ready for training: each distinct item of a batch is encoded once, then gathered.

Knows nothing about losses or optimisers.

Notation:
    n: rows, b: rows of a batch, m: number of modalities, u: items of a pool, k: tokens per modality, w: token width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from plaudit_models.training.fusion import FusionPolicy

Change = Callable[[str, Tensor], Tensor]
"""Modality name and prepared items → changed items of the same shape."""

_CHUNK_ROWS = 512
_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


def prepare_pools(model: FusionPolicy, pools: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Tensor]:
    """Run the part of every encoder that has no weights, once per item, ``[u, ...]`` per modality."""
    prepared = {}
    with torch.no_grad():
        for name, pool in pools.items():
            # An empty pool still needs a shape, and is never looked into.
            chunks = [model.prepare(name, chunk) for chunk in torch.from_numpy(pool).split(_CHUNK_ROWS)]
            prepared[name] = torch.cat(chunks)
    return prepared


def encode_all(model: FusionPolicy, prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tokens of every item of every pool, without gradient, ``[u, k, w]`` per modality; ``model`` in eval mode."""
    with torch.no_grad():
        return {
            name: torch.cat([model.encode(name, chunk) for chunk in pool.split(_CHUNK_ROWS)])
            for name, pool in prepared.items()
            if len(pool) > 0
        }


def encode_rows(
    model: FusionPolicy,
    pools: Mapping[str, Tensor],
    index: Tensor,
    change: Change | None = None,
    *,
    encoded: Mapping[str, Tensor] = _NOTHING,
) -> dict[str, Tensor]:
    """Tokens of every modality for a batch of rows.

    Args:
        pools: prepared items per modality, from :func:`prepare_pools`.
        index: int64 ``[b, m]``, row → item; −1 is missing, and its tokens are then of no meaning.
        change: applied to the distinct items before they are encoded.
        encoded: per modality that is not to be encoded again, its tokens from :func:`encode_all`.

    Returns:
        Tokens by modality, ``[b, k, w]``.
    """
    tokens = {}
    for i, name in enumerate(model.spec.modalities):
        at = index[:, i].clamp_min(0)
        if len(pools[name]) == 0:
            tokens[name] = model.missing[i].expand(len(index), -1, -1)
        elif name in encoded:
            tokens[name] = encoded[name][at]
        else:
            items, inverse = torch.unique(at, return_inverse=True)
            if model.training and len(items) == 1:
                items = items.repeat(2)  # batch norm cannot take statistics of one item
            content = pools[name][items]
            tokens[name] = model.encode(name, content if change is None else change(name, content))[inverse]
    return tokens


def drop_modalities(present: Tensor, share: float, generator: Generator) -> Tensor:
    """Set a share of ``present`` ``[b, m]`` to 0, but never the last 1 of a row."""
    kept = present * (torch.rand(present.shape, generator=generator) >= share)
    return torch.where(kept.sum(dim=1, keepdim=True) > 0, kept, present)
