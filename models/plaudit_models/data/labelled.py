"""Decoded labelled rows, over pools of distinct items.

Knows nothing about files, losses or torch.

Notation:
    n: rows, m: number of modalities, u: unique items of one modality, a: number of actions, r: longest ranking
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from plaudit_models.spec import ModelSpec

Array = npt.NDArray[Any]
RowNumbers = npt.NDArray[np.int64]
Prepare = Callable[[str, Array], Array]
"""Modality name and decoded items ``[k, *shape]`` → what a training step takes of them, ``[k, ...]``."""
Batches = Callable[[Iterable[RowNumbers]], Iterator["LabelledData"]]
"""Blocks of row numbers → their rows, prepared, in the order of the blocks."""

MISSING: Final = -1


class LabelledRows(Protocol):
    """Labelled rows, decoded or not yet."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tower_classes(self) -> Mapping[str, tuple[str, ...]]: ...

    def __len__(self) -> int: ...

    def prepared_by(self, prepare: Prepare) -> Batches: ...

    def decoded(self, *modalities: str) -> LabelledData: ...


@dataclass(frozen=True, slots=True)
class LabelledData:
    """Rows in the order of their table, or of their block, with the items that they need.

    Attributes:
        pools: per modality the items that occur, each decoded once, ``[u, *shape]``.
        index: int64 ``[n, m]``, row → item in the modality's pool (modalities in spec order); −1 is missing.
        action: int64 ``[n]``, index of the right action; the best one where there are several.
        tower_labels: per modality that has labels int64 ``[n]``; −1 is none.
        tower_classes: names of those classes in index order, the same in every split.
        group: ``n`` names to report accuracy by, "" where none is given.
        shares: float32 ``[n, a]``, share of each right action where several may be; rows add up to 1.
        ranking: int64 ``[n, r]``, actions from the best on, −1 behind the last.
        weight: float32 ``[n]``, weight of each row's loss; None: 1.
    """

    spec: ModelSpec
    pools: Mapping[str, Array]
    index: npt.NDArray[np.int64]
    action: npt.NDArray[np.int64]
    tower_labels: Mapping[str, npt.NDArray[np.int64]]
    tower_classes: Mapping[str, tuple[str, ...]]
    group: list[str]
    shares: npt.NDArray[np.float32] | None = None
    ranking: npt.NDArray[np.int64] | None = None
    weight: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.action)

    def is_right(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """True where the chosen action ``[n]`` is a right one: the action, or one of several with as large a share."""
        if self.shares is None:
            return np.asarray(chosen == self.action)
        rows = np.arange(len(self))
        return np.asarray(self.shares[rows, chosen] >= self.shares[rows, self.action] - 1e-6)

    def take(self, rows: RowNumbers) -> LabelledData:
        """Some rows, over the same pools."""
        return replace(
            self,
            index=self.index[rows],
            action=self.action[rows],
            tower_labels={name: labels[rows] for name, labels in self.tower_labels.items()},
            group=[self.group[i] for i in rows],
            shares=None if self.shares is None else self.shares[rows],
            ranking=None if self.ranking is None else self.ranking[rows],
            weight=None if self.weight is None else self.weight[rows],
        )

    def prepared_by(self, prepare: Prepare) -> Batches:
        """Batches of these rows; every item is prepared once."""
        prepared = replace(self, pools={name: prepare(name, pool) for name, pool in self.pools.items()})
        return lambda blocks: (prepared.take(rows) for rows in blocks)

    def decoded(self, *modalities: str) -> LabelledData:
        """These rows: they are decoded."""
        return self
