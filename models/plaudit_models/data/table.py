"""Tables of text cells from CSV, JSON lines and Parquet; every cell knows the file and line or row that it is from.

Cells of JSON and Parquet become text: a missing value is "", a list is JSON. Bytes in a Parquet file stay there: their
cell is the reference ``file.parquet#column[row]``, which :mod:`.files` reads.
"""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from plaudit_models.data.errors import InvalidData

MAX_ROWS: Final = 5_000_000
"""Rows of a data set."""
MAX_COLUMNS: Final = 2_000
"""Columns of a data set."""
MAX_MANIFEST_BYTES: Final = 2 * 2**30
"""Size of a manifest; a Parquet file may be larger, as its bytes stay in it."""
MAX_LINE_BYTES: Final = 16 * 2**20
"""Length of a line of JSON."""
MANIFEST_SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

_PARQUET_ROWS: Final = 4_096
_NEEDS_PYARROW: Final = "reading Parquet needs the extra data: pip install 'plaudit[data]'"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one file.

    Attributes:
        lines: line (from 1, the header counted) or row (from 0) of each.
    """

    path: Path
    unit: Literal["line", "row"]
    lines: Sequence[int]


@dataclass(frozen=True, slots=True)
class DataTable:
    """Columns of text, ``columns[name][i]`` for row i over all parts in order.

    Attributes:
        class_names: per column whose file says so, the names of its numbered classes.
    """

    path: Path
    parts: Sequence[Part]
    columns: Mapping[str, list[str]]
    class_names: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return sum(len(part.lines) for part in self.parts)

    def take(self, rows: Sequence[int]) -> DataTable:
        """Some rows, in ascending order."""
        starts, parts, at = _starts(self.parts), [], 0
        for first, part in zip(starts, self.parts, strict=True):
            end = first + len(part.lines)
            lines = []
            while at < len(rows) and rows[at] < end:
                lines.append(part.lines[rows[at] - first])
                at += 1
            if lines:
                parts.append(Part(part.path, part.unit, lines))
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return DataTable(self.path, parts, columns, self.class_names)

    def place(self, row: int) -> str:
        """File and line of a row, for people."""
        first = _starts(self.parts)
        number = bisect_right(first, row) - 1
        part = self.parts[number]
        return f"{part.path}, {part.unit} {part.lines[row - first[number]]}"


def _starts(parts: Sequence[Part]) -> list[int]:
    starts, total = [], 0
    for part in parts:
        starts.append(total)
        total += len(part.lines)
    return starts


def read_table(path: Path, folder: Path) -> DataTable:
    """Table of one file, by its suffix.

    Args:
        folder: what references to bytes inside a Parquet file are relative to.

    Raises:
        InvalidData: missing, too large, damaged, or of another format.
    """
    suffix = path.suffix.lower()
    if suffix not in MANIFEST_SUFFIXES:
        raise InvalidData(f"{path}: is none of {', '.join(MANIFEST_SUFFIXES)}; save the manifest as one of them")
    try:
        size = path.stat().st_size
        if suffix == ".parquet":
            return _read_parquet(path, folder)
        if size > MAX_MANIFEST_BYTES:
            raise InvalidData(f"{path}: {size} bytes are more than the limit of {MAX_MANIFEST_BYTES}; split it")
        return _read_csv(path, "\t" if suffix == ".tsv" else ",") if suffix in (".csv", ".tsv") else _read_jsonl(path)
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path}: cannot be read ({error}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise InvalidData(f"{path}: cannot be read ({error})") from error


def concatenated(path: Path, tables: Sequence[DataTable]) -> DataTable:
    """Rows of several tables; a column that a table does not have is empty there."""
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    columns: dict[str, list[str]] = {name: [] for name in names}
    for table in tables:
        for name in names:
            columns[name] += table.columns.get(name) or [""] * len(table)
    class_names = {name: classes for table in tables for name, classes in table.class_names.items()}
    _check_rows(path, sum(map(len, tables)))
    return DataTable(path, [part for table in tables for part in table.parts], columns, class_names)


def with_columns(table: DataTable, columns: Mapping[str, list[str]]) -> DataTable:
    """Table with further columns, or others of the same names."""
    return DataTable(table.path, table.parts, {**table.columns, **columns}, table.class_names)


def cell_text(value: Any) -> str:
    """Text of a JSON or Arrow value; "" where there is none."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return "" if math.isnan(value) else repr(value)
        case dict() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)


def _read_csv(path: Path, delimiter: str) -> DataTable:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        header = next(reader, [])
        check_header(path, header)
        lines: list[int] = []
        rows: list[list[str]] = []
        for row in reader:
            if not row:  # an empty line, as editors leave one at the end
                continue
            if len(row) != len(header):
                raise InvalidData(
                    f"{path}, line {reader.line_num}: {len(row)} cells, the header has {len(header)}; "
                    "quote cells that contain commas"
                )
            _check_rows(path, len(rows) + 1)
            lines.append(reader.line_num)
            rows.append(row)
    cells: Iterable[Sequence[str]] = list(zip(*rows, strict=True)) or [()] * len(header)
    columns = {name: list(values) for name, values in zip(header, cells, strict=True)}
    return DataTable(path, [Part(path, "line", lines)], columns, {})


def _read_jsonl(path: Path) -> DataTable:
    columns: dict[str, list[str]] = {}
    lines: list[int] = []
    for number, raw in _lines(path):
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{path}, line {number}: is not JSON ({error}); each line is one object") from error
        if not isinstance(record, dict):
            raise InvalidData(f"{path}, line {number}: is a {type(record).__name__}, and each line is one object")
        for name, value in record.items():
            columns.setdefault(name, [""] * len(lines)).append(cell_text(value))
        lines.append(number)
        for cells in columns.values():
            if len(cells) < len(lines):
                cells.append("")
        _check_rows(path, len(lines))
        if len(columns) > MAX_COLUMNS:
            check_header(path, list(columns))
    check_header(path, list(columns))
    return DataTable(path, [Part(path, "line", lines)], columns, {})


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise InvalidData(f"{path}, line {number}: is longer than {MAX_LINE_BYTES} bytes; name files instead")
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield number, text


def _read_parquet(path: Path, folder: Path) -> DataTable:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise InvalidData(f"{path}: {_NEEDS_PYARROW}") from error
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_header(path, list(schema.names))
            count = file.metadata.num_rows
            _check_rows(path, count)
            inside = [each.name for each in schema if _holds_bytes(each.type)]
            plain = [name for name in schema.names if name not in inside]
            columns: dict[str, list[str]] = {name: [] for name in plain}
            for batch in file.iter_batches(_PARQUET_ROWS, columns=plain) if plain else ():
                for name in plain:
                    columns[name] += [cell_text(value) for value in batch.column(name).to_pylist()]
            present = {name: _presence(file, name) for name in inside}
            metadata = schema.metadata or {}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidData(f"{path}: is not a Parquet file that can be read ({str(error)[:200]})") from error
    relative = path.relative_to(folder) if path.is_relative_to(folder) else path
    for name in inside:
        columns[name] = [f"{relative}#{name}[{row}]" if there else "" for row, there in enumerate(present[name])]
    in_order = {name: columns[name] for name in schema.names}
    return DataTable(path, [Part(path, "row", range(count))], in_order, _class_names(metadata))


def _holds_bytes(kind: Any) -> bool:
    """True for bytes, and for the struct of bytes and path in which `datasets` keeps images and sounds."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _presence(file: Any, name: str) -> list[bool]:
    there: list[bool] = []
    for group in range(file.num_row_groups):
        there += file.read_row_group(group, columns=[name]).column(name).is_valid().to_pylist()
    return there


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes of ``ClassLabel`` features, as `datasets` writes them into a Parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: [str(each) for each in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def check_header(path: Path, header: Sequence[str]) -> None:
    """Raises InvalidData: no columns, too many, or one twice."""
    if not header:
        raise InvalidData(f"{path}: has no columns; its first line names them")
    if len(header) > MAX_COLUMNS:
        raise InvalidData(f"{path}: {len(header)} columns are more than {MAX_COLUMNS}; put numbers into .npy files")
    for name in header:
        if header.count(name) > 1:
            raise InvalidData(f"{path}: column {name!r} appears {header.count(name)} times")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise InvalidData(f"{path}: its only column is {header[0][:80]!r}; separate the cells with commas")


def _check_rows(path: Path, rows: int) -> None:
    if rows > MAX_ROWS:
        raise InvalidData(f"{path}: more than {MAX_ROWS} rows; split the data set")
