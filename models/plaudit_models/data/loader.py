"""Labelled rows that are read and decoded as training asks for them, ahead of it, by threads.

Blocks come in the order that they were asked for, whatever the number of threads; the order itself is a function of the
seed and the step alone, so that a run goes on in the middle of a pass. Items that fit into memory are kept, prepared.

Notation:
    n: rows, m: number of modalities, k: items of a block
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from plaudit_models.data.config import DEFAULT_DATA, DataConfig
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.items import ItemReader
from plaudit_models.data.labelled import MISSING, Array, Batches, LabelledData, Prepare, RowNumbers
from plaudit_models.data.rows import Rows, read_rows
from plaudit_models.data.splits import Split
from plaudit_models.data.targets import target_arrays
from plaudit_models.preprocess import input_dtype, train_tokenizer
from plaudit_models.spec import ModelSpec, TextModality

_AHEAD: Final = 2
"""Blocks that each thread may be ahead."""
_DECODING_ROWS: Final = 64


def block_order(n: int, batch_rows: int, seed: int, *, start: int = 0) -> Iterator[RowNumbers]:
    """Row numbers of blocks of consecutive rows for ever, each pass in another random order.

    A last block of less than half the rows is left out. Rows that share items cost less when they stand together.

    Args:
        start: number of blocks that are passed over, in the first pass and beyond.
    """
    starts = [first for first in range(0, n, batch_rows) if min(batch_rows, n - first) >= min(batch_rows, n) / 2]
    epoch, within = divmod(start, len(starts))
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(len(starts))
        for number in order[within:]:
            first = starts[number]
            yield np.arange(first, min(first + batch_rows, n), dtype=np.int64)
        epoch, within = epoch + 1, 0


class StreamedData:
    """One split of a data set, decoded as it is needed.

    Args:
        rows: rows without problems.
        tokenizer: for text modalities, see :func:`tokenizer_for`; None when the spec has none.

    Raises:
        InvalidData: the rows have a problem, or the split has none.
    """

    def __init__(self, rows: Rows, split: Split, tokenizer: Tokenizer | None) -> None:
        rows.check()
        self._rows = rows
        self._numbers = rows.of_split(split)
        self._reader = ItemReader(rows, tokenizer)
        self._first: dict[str, list[int]] = {}
        index = np.full((len(self._numbers), len(rows.spec.modalities)), MISSING, np.int64)
        for column, name in enumerate(rows.spec.modalities):
            self._first[name], index[:, column] = _distinct(rows.items[name], self._numbers)
        targets = [target for i in self._numbers if (target := rows.target[i]) is not None]
        action, shares, ranking = target_arrays(targets, len(rows.spec.actions), rows.config.target_kind)
        tower_labels, tower_classes = _tower_labels(rows.tower_labels, self._numbers)
        weight = np.array([rows.weight[i] for i in self._numbers], np.float32)
        self._labels = LabelledData(
            spec=rows.spec,
            pools={},
            index=index,
            action=action,
            tower_labels=tower_labels,
            tower_classes=tower_classes,
            group=[rows.slice[i] for i in self._numbers],
            shares=shares,
            ranking=ranking,
            weight=None if (weight == 1.0).all() else weight,
        )

    @property
    def spec(self) -> ModelSpec:
        return self._rows.spec

    @property
    def tower_classes(self) -> Mapping[str, tuple[str, ...]]:
        return self._labels.tower_classes

    def __len__(self) -> int:
        return len(self._labels)

    def prepared_by(self, prepare: Prepare) -> Batches:
        """Batches of these rows, read ahead; what an item is prepared to is kept as far as memory was given.

        Raises:
            InvalidData: while they are read, with the place of an item that cannot be decoded.
        """
        cache = _ItemCache(self._rows.config.cache_bytes)
        return lambda blocks: self._ahead(blocks, prepare, cache)

    def decoded(self, *modalities: str) -> LabelledData:
        """All rows with the items of some modalities, or of all. Raises InvalidData."""
        names = modalities or tuple(self.spec.modalities)
        with ThreadPoolExecutor(self._rows.config.workers, thread_name_prefix="decode") as threads:
            pools = {}
            for name in names:
                first = self._first[name]
                modality = self.spec.modalities[name]
                pool = np.zeros((len(first), *modality.shape), input_dtype(modality))
                parts = [range(i, min(i + _DECODING_ROWS, len(first))) for i in range(0, len(first), _DECODING_ROWS)]

                def fill(part: range, name: str = name, pool: Array = pool) -> None:
                    for i in part:
                        pool[i] = self._array(name, i)

                for done in threads.map(fill, parts):
                    assert done is None
                pools[name] = pool
        return replace(self._labels, pools=pools)

    def sample(self, rows: RowNumbers) -> LabelledData:
        """Some rows with their items, decoded and not prepared. Raises InvalidData."""
        return self._block(rows, lambda name, items: items, _ItemCache(0))

    def _array(self, name: str, item: int) -> Array:
        return self._reader.array(self._first[name][item], name)

    def _ahead(self, blocks: Iterable[RowNumbers], prepare: Prepare, cache: _ItemCache) -> Iterator[LabelledData]:
        workers = self._rows.config.workers
        waiting = iter(blocks)
        threads = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        try:
            futures: deque[Future[LabelledData]] = deque(
                threads.submit(self._block, rows, prepare, cache) for rows in islice(waiting, _AHEAD * workers)
            )
            while futures:
                yield futures.popleft().result()
                futures.extend(threads.submit(self._block, rows, prepare, cache) for rows in islice(waiting, 1))
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _block(self, rows: RowNumbers, prepare: Prepare, cache: _ItemCache) -> LabelledData:
        """Rows with pools of the items that they need."""
        labels = self._labels.take(rows)
        index = np.full_like(labels.index, MISSING)
        pools = {}
        for column, (name, modality) in enumerate(self.spec.modalities.items()):
            given = labels.index[:, column] != MISSING
            items, index[given, column] = np.unique(labels.index[given, column], return_inverse=True)
            at_hand = {int(item): cache.get(name, int(item)) for item in items}
            found = {item: array for item, array in at_hand.items() if array is not None}
            missing = [item for item in at_hand if item not in found]
            if missing:
                raw = np.stack([self._array(name, item) for item in missing])
                for item, array in zip(missing, prepare(name, raw), strict=True):
                    found[item] = array
                    cache.add(name, item, array)
            empty = np.zeros((0, *modality.shape), input_dtype(modality))
            pools[name] = np.stack([found[int(item)] for item in items]) if len(items) else prepare(name, empty)
        return LabelledData(
            **{each: getattr(labels, each) for each in labels.__slots__} | {"pools": pools, "index": index}
        )


class _ItemCache:
    """Prepared items, as many as fit: a pass asks for each in turn, so that the first are as good as any."""

    def __init__(self, bound_bytes: int) -> None:
        self._left_bytes = bound_bytes
        self._arrays: dict[tuple[str, int], Array] = {}
        self._lock = threading.Lock()

    def get(self, name: str, item: int) -> Array | None:
        return self._arrays.get((name, item))

    def add(self, name: str, item: int, array: Array) -> None:
        with self._lock:
            if (name, item) not in self._arrays and array.nbytes <= self._left_bytes:
                self._left_bytes -= array.nbytes
                self._arrays[name, item] = np.array(array)  # alone: a view would keep its whole block


def tokenizer_for(rows: Rows, *, vocabulary_size: int = 2048) -> Tokenizer | None:
    """Learn a tokenizer from the training texts; None if the spec has no text modality.

    Raises:
        InvalidData: there is no training text.
    """
    names = [name for name, modality in rows.spec.modalities.items() if isinstance(modality, TextModality)]
    if not names:
        return None
    texts = dict.fromkeys(
        text
        for name in names
        for split, text in zip(rows.split, rows.items[name], strict=True)
        if split == "train" and text
    )
    if not texts:
        raise InvalidData(f"{rows.table.path}: no row with split 'train' has text in {names}; a tokenizer needs some")
    return train_tokenizer(texts, vocabulary_size)


def _distinct(cells: Any, rows: list[int]) -> tuple[list[int], npt.NDArray[np.int64]]:
    """First row of each distinct cell, and the item of each row, ``[n]``."""
    number: dict[str, int] = {}
    first: list[int] = []
    index = np.full(len(rows), MISSING, np.int64)
    for place, row in enumerate(rows):
        cell = cells[row]
        if not cell:
            continue
        if cell not in number:
            number[cell] = len(first)
            first.append(row)
        index[place] = number[cell]
    return first, index


def _tower_labels(
    cells: Mapping[str, Any], rows: list[int]
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, tuple[str, ...]]]:
    labels, classes = {}, {}
    for name, values in cells.items():
        classes[name] = _classes(values)
        number = {value: i for i, value in enumerate(classes[name])} | {"": MISSING}
        labels[name] = np.array([number[values[i]] for i in rows], np.int64)
    return labels, classes


def _classes(labels: list[str]) -> tuple[str, ...]:
    """Distinct labels, in numeric order where all are integers."""
    distinct = {label for label in labels if label}
    if all(label.isascii() and label.isdecimal() for label in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def load_data_folder(
    folder: Path, spec: ModelSpec, split: Split, tokenizer: Tokenizer | None, config: DataConfig = DEFAULT_DATA
) -> LabelledData:
    """One split of a data folder, decoded into memory: for what takes all rows at once.

    Raises:
        InvalidData: the folder, or a file in it, is missing or wrong, or the split has no rows.
    """
    return StreamedData(read_rows(folder, spec, config), split, tokenizer).decoded()
