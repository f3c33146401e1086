"""Labelled data folders, for pre-training and the rehearsal of fine-tuning.

    manifest.csv   one row per example
    …              the files it names

Columns of ``manifest.csv``:
    split               train, val or test
    action              the right action, one of the spec's
    group               optional; a name to report accuracy by (a kind of question, a hospital, …)
    <modality>          one column per modality: text itself, or for the others a path relative to the folder
                        (image and audio files, ``.npy`` for tensors); empty means the modality is missing
    <modality>_label    optional; a class that can be read off this modality alone (the digit in the image); its tower
                        may learn it as a second task. Integers or strings; empty means none

Knows nothing about batches, losses or torch.

Notation:
    n: rows, m: number of modalities, u: unique items of one modality
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from plaudit_models.errors import InvalidContent
from plaudit_models.limits import OWN_FILES_LIMITS
from plaudit_models.preprocess import check_tensor, decode, input_dtype, train_tokenizer
from plaudit_models.spec import Modality, ModelSpec, TensorModality, TextModality

DATA_MANIFEST: Final = "manifest.csv"
SPLITS: Final = ("train", "val", "test")
LABEL_SUFFIX: Final = "_label"
MISSING: Final = -1

Split = Literal["train", "val", "test"]


class InvalidData(ValueError):
    """Wrong data folder; the message names the file, and the row, column and value where there is one."""


@dataclass(frozen=True, slots=True)
class LabelledData:
    """One split of a data folder, decoded. Rows keep the order of the manifest.

    Attributes:
        pools: per modality the items that occur, each decoded once, ``[u, *shape]``.
        index: int64 ``[n, m]``, row → item in the modality's pool (modalities in spec order); −1 is missing.
        action: int64 ``[n]``, index of the right action.
        tower_labels: per modality that has labels int64 ``[n]``; −1 is none.
        tower_classes: names of those classes in index order, the same in every split.
        group: ``n`` names, "" where none is given.
    """

    spec: ModelSpec
    pools: Mapping[str, npt.NDArray[Any]]
    index: npt.NDArray[np.int64]
    action: npt.NDArray[np.int64]
    tower_labels: Mapping[str, npt.NDArray[np.int64]]
    tower_classes: Mapping[str, tuple[str, ...]]
    group: list[str]

    def __len__(self) -> int:
        return len(self.action)


def load_data_folder(folder: Path, spec: ModelSpec, split: Split, tokenizer: Tokenizer | None) -> LabelledData:
    """Read one split of ``folder``.

    Args:
        tokenizer: for text modalities, see :func:`tokenizer_for`; None when the spec has none.

    Raises:
        InvalidData: the manifest or a file it names is missing or wrong, or the split has no rows.
    """
    table = _read_table(folder, spec)
    rows = [i for i, value in enumerate(table.columns["split"]) if value == split]
    if not rows:
        found = sorted(set(table.columns["split"]))
        raise InvalidData(f"{table.path}: no row has split {split!r}; the splits there are {found}")
    index = np.full((len(rows), len(spec.modalities)), MISSING, np.int64)
    pools, tower_labels, tower_classes = {}, {}, {}
    for column, (name, modality) in enumerate(spec.modalities.items()):
        pools[name], index[:, column] = _pool(table, rows, name, modality, tokenizer)
        if name + LABEL_SUFFIX in table.columns:
            labels = table.columns[name + LABEL_SUFFIX]
            tower_classes[name] = _classes(labels)
            number = {value: i for i, value in enumerate(tower_classes[name])} | {"": MISSING}
            tower_labels[name] = np.array([number[labels[i]] for i in rows], np.int64)
    group = table.columns.get("group", [""] * len(table.lines))
    return LabelledData(
        spec=spec,
        pools=pools,
        index=index,
        action=np.array([spec.action_index(table.columns["action"][i]) for i in rows], np.int64),
        tower_labels=tower_labels,
        tower_classes=tower_classes,
        group=[group[i] for i in rows],
    )


def splits_of(folder: Path, spec: ModelSpec) -> set[str]:
    """Names of the splits that have rows. Raises InvalidData as :func:`load_data_folder` does."""
    return set(_read_table(folder, spec).columns["split"])


def tokenizer_for(folder: Path, spec: ModelSpec, *, vocabulary_size: int = 2048) -> Tokenizer | None:
    """Learn a tokenizer from the training texts of ``folder``; None if the spec has no text modality.

    Raises:
        InvalidData: the manifest is missing or wrong, or has no training text.
    """
    names = [name for name, modality in spec.modalities.items() if isinstance(modality, TextModality)]
    if not names:
        return None
    table = _read_table(folder, spec)
    texts = dict.fromkeys(
        text
        for name in names
        for split, text in zip(table.columns["split"], table.columns[name], strict=True)
        if split == "train" and text
    )
    if not texts:
        raise InvalidData(f"{table.path}: no row with split 'train' has text in {names}; a tokenizer needs some")
    return train_tokenizer(texts, vocabulary_size)


@dataclass(frozen=True, slots=True)
class _Table:
    """Manifest, checked cell by cell: ``columns[name][i]`` stands in line ``lines[i]`` of ``path``."""

    path: Path
    lines: list[int]
    columns: Mapping[str, list[str]]


def _read_table(folder: Path, spec: ModelSpec) -> _Table:
    path = folder / DATA_MANIFEST
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _check_header(path, header, spec)
            lines, rows = [], []
            for row in reader:
                if len(row) != len(header):
                    raise InvalidData(
                        f"{path}, line {reader.line_num}: {len(row)} cells, the header has {len(header)}; "
                        "quote cells that contain commas"
                    )
                lines.append(reader.line_num)
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidData(f"{path}: cannot be read ({error})") from error
    cells = list(zip(*rows, strict=True)) or [()] * len(header)
    table = _Table(path, lines, {name: list(values) for name, values in zip(header, cells, strict=True)})
    _check_cells(table, spec)
    return table


def _check_header(path: Path, header: list[str], spec: ModelSpec) -> None:
    required = ["split", "action", *spec.modalities]
    optional = ["group", *(name + LABEL_SUFFIX for name in spec.modalities)]
    for name in required:
        if name not in header:
            raise InvalidData(f"{path}: no column {name!r} among {header}; needed are {required}")
    for name in header:
        if header.count(name) > 1:
            raise InvalidData(f"{path}: column {name!r} appears {header.count(name)} times")
        if name not in required and name not in optional:
            raise InvalidData(f"{path}: unknown column {name!r}; needed are {required}, possible are {optional}")


def _check_cells(table: _Table, spec: ModelSpec) -> None:
    for line, split, action in zip(table.lines, table.columns["split"], table.columns["action"], strict=True):
        if split not in SPLITS:
            raise InvalidData(f"{table.path}, line {line}, column split: {split!r} is not one of {list(SPLITS)}")
        if not spec.has_action(action):
            raise InvalidData(
                f"{table.path}, line {line}, column action: {action!r} is not an action of {spec.name!r}; "
                f"its actions are {list(spec.actions)}"
            )
    for line, *values in zip(table.lines, *(table.columns[name] for name in spec.modalities), strict=True):
        if not any(values):
            raise InvalidData(f"{table.path}, line {line}: every modality of {list(spec.modalities)} is empty")


def _pool(
    table: _Table, rows: list[int], name: str, modality: Modality, tokenizer: Tokenizer | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Pool of the distinct values of some rows, each decoded once, ``[u, *shape]``, and the index into it, ``[n]``."""
    values, folder = table.columns[name], table.path.parent
    first: dict[str, int] = {}
    for i in rows:
        if values[i]:
            first.setdefault(values[i], table.lines[i])
    number = {value: i for i, value in enumerate(first)} | {"": MISSING}
    pool = np.zeros((len(first), *modality.shape), input_dtype(modality))
    for i, (value, line) in enumerate(first.items()):
        try:
            if isinstance(modality, TextModality):
                pool[i] = decode(value, modality, name=name, tokenizer=tokenizer)
            elif isinstance(modality, TensorModality):
                pool[i] = check_tensor(np.load(folder / value, allow_pickle=False), modality, name=name)
            else:
                pool[i] = decode((folder / value).read_bytes(), modality, name=name, limits=OWN_FILES_LIMITS)
        except (OSError, ValueError, EOFError, MemoryError) as error:  # numpy allocates what a header says
            problem = error.problem if isinstance(error, InvalidContent) else error
            raise InvalidData(f"{table.path}, line {line}, column {name}: {value[:80]!r}: {problem}") from error
    return pool, np.array([number[values[i]] for i in rows], np.int64)


def _classes(labels: list[str]) -> tuple[str, ...]:
    """Distinct labels, in numeric order where all are integers."""
    distinct = {label for label in labels if label}
    if all(label.isascii() and label.isdecimal() for label in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))
