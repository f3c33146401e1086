"""Rows of a data set: every cell that can be checked without opening a file is checked, and problems have places.

Columns of the table ``manifest.csv``:
    split               optional; train, val or test; without it splits are made by group, and a lacking val of train
    action              the target: one action, several, a number or a ranking (``data.target_kind``)
    group               optional; whose row it is (patient, speaker, drive): groups stay within one split
    slice               optional; a name to report accuracy by; without it the group is
    weight              optional; a number ≥ 0 that the row's loss is multiplied by
    user                optional; taken for the group where there is none
    <modality>          one column per modality: text itself, else a reference (:mod:`.files`) or numbers in JSON;
                        empty means the modality is missing. ``data.columns`` names other columns, and templates of them
    <modality>_label    optional; a class that can be read off this modality alone (the digit in the image); its tower
                        may learn it as a second task. Integers or strings; empty means none
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plaudit_models.data.config import ANY_COLUMN, DataConfig
from plaudit_models.data.errors import DataProblem, InvalidData
from plaudit_models.data.layouts import read_folder
from plaudit_models.data.splits import SPLIT_WORDS, SPLITS, Split, split_by_hash
from plaudit_models.data.table import DataTable, read_table
from plaudit_models.data.targets import InvalidTarget, RowTarget, TargetReader
from plaudit_models.spec import ModelSpec, TensorModality

LABEL_SUFFIX: Final = "_label"
MAX_PROBLEMS: Final = 1_000
"""Problems of a data set that are kept; the rest are counted."""

_PANDAS_INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
"""Columns that pandas adds for its row labels."""
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_NUMBER_MISSING: Final = ("", "nan", "NaN", "NA", "null")


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a data set, in the order of its table.

    Attributes:
        table: the table that they are from, with every column.
        split: split of each row.
        made_splits: what made the splits, or a part of them; "" where the data has them.
        target: target of each row; None where it is wrong.
        target_column: the column of the target.
        items: per modality its cells; "" is missing.
        sources: per modality the columns that its cells are made of.
        tower_labels: per modality with labels the cells.
        group: whose row it is; "" where nobody is said.
        slice: name to report accuracy by.
        weight: weight of each row.
        problems: problems found, at most :data:`MAX_PROBLEMS`.
        problem_count: all of them.
    """

    folder: Path
    spec: ModelSpec
    config: DataConfig
    table: DataTable
    split: Sequence[str]
    made_splits: str
    target: Sequence[RowTarget | None]
    target_column: str
    items: Mapping[str, Sequence[str]]
    sources: Mapping[str, Sequence[str]]
    tower_labels: Mapping[str, Sequence[str]]
    group: Sequence[str]
    slice: Sequence[str]
    weight: Sequence[float]
    problems: Sequence[DataProblem]
    problem_count: int

    def __len__(self) -> int:
        return len(self.split)

    def of_split(self, split: Split) -> list[int]:
        """Indices of the rows of a split. Raises InvalidData: it has none."""
        rows = [i for i, value in enumerate(self.split) if value == split]
        if not rows:
            found = sorted(set(self.split))
            raise InvalidData(f"{self.table.path}: no row has split {split!r}; the splits there are {found}")
        return rows

    def target_text(self, row: int) -> str:
        """Cell of the target, as it stands in the data."""
        return self.table.columns[self.target_column][row]

    def check(self) -> None:
        """Raises InvalidData with the first problem, if there is any."""
        if self.problems:
            more = self.problem_count - 1
            rest = f" (and {more} more problems; `plaudit data check` lists them)" if more else ""
            raise InvalidData(f"{self.problems[0]}{rest}")


def read_rows(folder: Path, spec: ModelSpec, config: DataConfig) -> Rows:
    """Rows of the data set in ``folder``, with their problems.

    Raises:
        InvalidData: there is no table, it is damaged, or its columns are not those that are needed.
    """
    table = _without_excluded(folder, read_folder(folder, config), config)
    reading = _Reading(table, spec, config)
    if not len(table):
        raise InvalidData(f"{table.path}: has no rows, only the header {list(table.columns)}; add some")
    items = {name: reading.items(name) for name in spec.modalities}
    reading.check_items(items)
    target = reading.targets()
    own = reading.optional(config.group)
    group = [a or b for a, b in zip(own, reading.optional(config.user), strict=True)]
    split, made = reading.splits(group, items)
    return Rows(
        folder=folder,
        spec=spec,
        config=config,
        table=table,
        split=split,
        made_splits=made,
        target=target,
        target_column=reading.target_column,
        items=items,
        sources={name: reading.sources(name) for name in spec.modalities},
        tower_labels={
            name: table.columns[name + LABEL_SUFFIX] for name in spec.modalities if name + LABEL_SUFFIX in table.columns
        },
        group=group,
        slice=reading.optional(config.slice) if config.slice in table.columns else own,
        weight=reading.weights(),
        problems=sorted(reading.problems, key=lambda problem: problem.row),
        problem_count=reading.count,
    )


def row_keys(table: DataTable) -> list[str]:
    """Key of each row, by its cells; rows with the same cells are told apart by a number."""
    seen: Counter[str] = Counter()
    keys = []
    for cells in zip(*table.columns.values(), strict=True):
        digest = hashlib.sha256("\0".join(cells).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        keys.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return keys


def _without_excluded(folder: Path, table: DataTable, config: DataConfig) -> DataTable:
    """Table without the rows that the file ``data.exclude`` lists."""
    if config.exclude is None:
        return table
    listed = read_table(folder / config.exclude, folder)
    if "key" not in listed.columns:
        raise InvalidData(f"{listed.path}: no column 'key'; `plaudit data clean` writes such a list")
    excluded = set(listed.columns["key"])
    kept = [i for i, key in enumerate(row_keys(table)) if key not in excluded]
    unknown = len(excluded) - (len(table) - len(kept))
    if unknown:
        raise InvalidData(
            f"{listed.path}: {unknown} of its {len(excluded)} rows are not in {table.path}, which has changed since; "
            "let `plaudit data clean` write it again"
        )
    return table.take(kept)


class _Reading:
    """One pass over a table."""

    def __init__(self, table: DataTable, spec: ModelSpec, config: DataConfig) -> None:
        self._table, self._spec, self._config = table, spec, config
        self.problems: list[DataProblem] = []
        self.count = 0
        unknown = [name for name in config.columns if name not in spec.modalities]
        if unknown:
            raise InvalidData(f"data.columns.{unknown[0]}: is not a modality; they are {list(spec.modalities)}")
        self.target_column = config.target or self._default_target()
        self._check_columns()

    def _default_target(self) -> str:
        return "label" if "action" not in self._table.columns and "label" in self._table.columns else "action"

    def sources(self, name: str) -> list[str]:
        """Columns that the cells of a modality are made of."""
        source = self._config.columns.get(name, name)
        if not isinstance(source, str):
            return list(source)
        return [source] if source in self._table.columns else (_PLACEHOLDER.findall(source) or [source])

    def _is_template(self, name: str) -> bool:
        source = self._config.columns.get(name, name)
        return isinstance(source, str) and source not in self._table.columns

    def _check_columns(self) -> None:
        header = list(self._table.columns)
        config, path = self._config, self._table.path
        needed = {column: name for name in self._spec.modalities for column in self.sources(name)}
        required = [self.target_column, *needed]
        self._of_modalities = {
            column for name in self._spec.modalities for column in self.sources(name) if not self._is_template(name)
        }
        for name in required:
            if name not in header:
                where = "data.target" if name == self.target_column else f"data.columns.{needed[name]}"
                raise InvalidData(
                    f"{path}: no column {name!r} among {header}; needed are {required}: {where} names another"
                )
        given = [config.split, config.group, config.slice, config.weight, config.user]
        optional = [*given, *(name + LABEL_SUFFIX for name in self._spec.modalities)]
        known = {*required, *optional, *config.ignore}
        unknown = [name for name in header if name not in known and not _PANDAS_INDEX.fullmatch(name)]
        if unknown and ANY_COLUMN not in config.ignore:
            raise InvalidData(
                f"{path}: unknown column {unknown[0]!r}; needed are {required}, possible are {optional}; "
                f'data.ignore = ["{ANY_COLUMN}"] leaves others out'
            )

    def add(self, row: int, column: str, value: str, problem: str) -> None:
        self.count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(DataProblem(row, self._table.place(row), column, value, problem))

    def optional(self, column: str) -> list[str]:
        """Cells of a column that need not be there; one that a modality is called after is its own."""
        own = self._table.columns.get(column) if column not in self._of_modalities else None
        return own or [""] * len(self._table)

    def items(self, name: str) -> list[str]:
        """Cells of a modality."""
        source = self._config.columns.get(name, name)
        modality = self._spec.modalities[name]
        if isinstance(source, str) and source in self._table.columns:
            return self._table.columns[source]
        if isinstance(source, str):
            return self._filled(source)
        if not isinstance(modality, TensorModality):
            raise InvalidData(f"data.columns.{name}: several columns make a tensor, and it is of kind {modality.kind}")
        cells = zip(*(self._table.columns[column] for column in source), strict=True)
        return [self._numbers(row, source, values) for row, values in enumerate(cells)]

    def _filled(self, template: str) -> list[str]:
        """Template with the cells of each row; "" where one of them is empty."""
        *parts, end = _PLACEHOLDER.split(template)  # text, name, text, name, …, text
        texts, columns = parts[0::2], [self._table.columns[name] for name in parts[1::2]]
        return [
            "".join(text + cell for text, cell in zip(texts, cells, strict=True)) + end if all(cells) else ""
            for cells in zip(*columns, strict=True)
        ]

    def _numbers(self, row: int, names: Sequence[str], cells: Sequence[str]) -> str:
        """JSON list of the cells; an empty one is null."""
        if all(cell in _NUMBER_MISSING for cell in cells):
            return ""
        values = []
        for name, cell in zip(names, cells, strict=True):
            try:
                values.append("null" if cell in _NUMBER_MISSING else repr(float(cell)))
            except ValueError:
                self.add(row, name, cell, "is not a number; leave it empty where there is none")
                values.append("null")
        return f"[{', '.join(values)}]"

    def check_items(self, items: Mapping[str, Sequence[str]]) -> None:
        for row, cells in enumerate(zip(*items.values(), strict=True)):
            if not any(cells):
                self.add(row, "", "", f"every modality of {list(self._spec.modalities)} is empty")
            for (name, modality), cell in zip(self._spec.modalities.items(), cells, strict=True):
                if modality.required and not cell and any(cells):
                    self.add(row, name, cell, f"is empty, and modality {name!r} is required")

    def targets(self) -> list[RowTarget | None]:
        try:
            reader = TargetReader(self._spec, self._config.target_kind, self._config.labels)
        except InvalidTarget as error:
            raise InvalidData(str(error)) from error
        column = self.target_column
        names = self._table.class_names.get(column, ())
        targets: list[RowTarget | None] = []
        for row, cell in enumerate(self._table.columns[column]):
            named = names[int(cell)] if cell.isdecimal() and int(cell) < len(names) else cell
            try:
                targets.append(reader.read(named))
            except InvalidTarget as error:
                problem = str(error)
                self.add(row, column, cell, problem.removeprefix(f"{cell[:80]!r} "))
                targets.append(None)
        return targets

    def weights(self) -> list[float]:
        weights = []
        for row, cell in enumerate(self.optional(self._config.weight)):
            weight = 1.0
            if cell:
                try:
                    weight = float(cell)
                except ValueError:
                    weight = math.nan
                if not (math.isfinite(weight) and weight >= 0.0):
                    self.add(row, self._config.weight, cell, "is not a number ≥ 0")
                    weight = 1.0
            weights.append(weight)
        return weights

    def splits(self, group: Sequence[str], items: Mapping[str, Sequence[str]]) -> tuple[list[str], str]:
        """Split of each row, and what made it."""
        config = self._config
        keys = [
            f"group {mine}" if mine else f"content {cells}"
            for mine, cells in zip(group, zip(*items.values(), strict=True), strict=True)
        ]
        by = "group" if any(group) else "content"
        if config.split not in self._table.columns or config.split in self._of_modalities:
            made = split_by_hash(keys, val_share=config.val_share, test_share=config.test_share)
            return list(made), f"there is no column {config.split!r}: splits are made by {by}"
        splits = []
        for row, cell in enumerate(self._table.columns[config.split]):
            word = cell if cell in SPLITS else SPLIT_WORDS.get(cell.lower(), "")
            if not word:
                self.add(row, config.split, cell, f"is not one of {list(SPLITS)}")
            splits.append(word or cell)
        if "val" in splits or not {"train", "test"} <= set(splits):
            return splits, ""
        made = split_by_hash(keys, val_share=config.val_share, test_share=0.0)
        splits = ["val" if old == "train" and new == "val" else old for old, new in zip(splits, made, strict=True)]
        return splits, f"there are train and test and no val: val is made of train by {by}"
