"""Rows over pools of shared items, ready for training: each distinct item of a batch is encoded once, then gathered.

Knows nothing about losses or optimisers.

Notation:
    n: rows, b: rows of a batch, m: number of modalities, u: items of a pool, k: tokens per modality, w: token width
    d: embedding size, a: number of actions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn

from plaudit_models.data.labelled import Prepare
from plaudit_models.spec import ModalityKind
from plaudit_models.training.networks.fusion import FusionPolicy

Change = Callable[[str, Tensor], Tensor]
"""Modality name and prepared items → changed items of the same shape."""

_CHUNK_ROWS = 512
_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


def prepare_pools(model: FusionPolicy, pools: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Tensor]:
    """Run the part of every encoder that has no weights to learn, once per item, ``[u, ...]`` per modality."""
    return {name: model.encoder(name).prepare_pool(torch.from_numpy(pool)) for name, pool in pools.items()}


def preparer(model: FusionPolicy) -> Prepare:
    """Function that does to decoded items what :func:`prepare_pools` does, as arrays; for any thread."""
    return lambda name, items: prepare_pools(model, {name: items})[name].numpy()


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


class Source:
    """Rows of content as a policy in training sees them; what frozen encoders make of it is computed once.

    Args:
        model: in eval mode.
        pools: per modality decoded content ``[u, *shape]``.
        index: int64 ``[n, m]``, row → item; −1 is missing.
        trained_encoders: kinds of modality whose encoders change; all others stand still.
    """

    def __init__(
        self,
        model: FusionPolicy,
        pools: Mapping[str, npt.NDArray[Any]],
        index: npt.NDArray[np.int64],
        trained_encoders: tuple[ModalityKind, ...],
    ) -> None:
        self._model = model
        self._index = torch.from_numpy(index)
        self._pools = prepare_pools(model, pools)
        frozen = {n: p for n, p in self._pools.items() if model.spec.modalities[n].kind not in trained_encoders}
        self._encoded = encode_all(model, frozen)

    def fused(self, rows: Tensor, change: Change | None = None) -> tuple[Tensor, Tensor]:
        """Embedding ``[b, d]`` and base logits ``[b, a]`` of the given rows; ``change`` is applied to items that are
        encoded anew.
        """
        index = self._index[rows]
        tokens = encode_rows(self._model, self._pools, index, change, encoded=self._encoded)
        return self._model.fuse(tokens, (index >= 0).float())

    def embeddings(self) -> Tensor:
        """Embeddings of every row, ``[n, d]``, without gradient; ``model.action_head`` makes logits of them."""
        return torch.cat([self.still(rows)[0] for rows in torch.arange(len(self._index)).split(_CHUNK_ROWS)])

    def still(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Result of :meth:`fused`, without gradient."""
        with torch.no_grad():
            return self.fused(rows)


def freeze_encoders(model: FusionPolicy, trained_encoders: tuple[ModalityKind, ...]) -> list[nn.Parameter]:
    """Freeze the encoders of all other kinds, in place, and return the parameters that are left."""
    for name, modality in model.spec.modalities.items():
        model.encoder(name).set_trained(modality.kind in trained_encoders)
    return [weight for weight in model.parameters() if weight.requires_grad]
