"""Croissant descriptions (MLCommons, 1.0) of local data: one record set over one table → the table.

Only what names columns is read: nothing is downloaded, and no transformation is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from plaudit_models.data.errors import InvalidData
from plaudit_models.data.table import MANIFEST_SUFFIXES, DataTable, read_table

_MAX_DESCRIPTION_BYTES: Final = 16 * 2**20
_BLOCK_BYTES: Final = 2**20


def is_croissant(path: Path) -> bool:
    """True for a JSON file that conforms to Croissant."""
    if path.suffix != ".json" or not path.is_file() or path.stat().st_size > _MAX_DESCRIPTION_BYTES:
        return False
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(described, dict) and "recordSet" in described and "distribution" in described


def read_croissant(path: Path, folder: Path) -> DataTable:
    """Table of the one record set whose fields are columns of one local file; columns are named by the fields.

    Raises:
        InvalidData: no such record set, or several; a file that is missing, elsewhere, or not the one described.
    """
    described: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    objects = {_id(each): each for each in _listed(described.get("distribution"))}
    usable: list[tuple[Path, dict[str, str]]] = []
    for records in _listed(described.get("recordSet")):
        columns, sources = _columns_of(records)
        source = objects.get(next(iter(sources))) if len(sources) == 1 else None
        if source is not None and Path(str(source.get("contentUrl", ""))).suffix.lower() in MANIFEST_SUFFIXES:
            usable.append((_local(path, folder, source), columns))
    if len(usable) != 1:
        raise InvalidData(
            f"{path}: {len(usable)} record sets have all their fields in one local file of "
            f"{', '.join(MANIFEST_SUFFIXES)}; name the table itself with data.manifest"
        )
    file, columns = usable[0]
    table = read_table(file, folder)
    missing = [column for column in columns.values() if column not in table.columns]
    if missing:
        raise InvalidData(f"{path}: says that {file.name} has the columns {missing}; it has {list(table.columns)}")
    named = {name: table.columns[column] for name, column in columns.items()}
    rest = {name: cells for name, cells in table.columns.items() if name not in columns.values() and name not in named}
    return DataTable(file, table.parts, {**named, **rest}, table.class_names)


def _columns_of(records: Mapping[str, Any]) -> tuple[dict[str, str], set[str]]:
    """Columns by the name of their field, and the ids of the files that they are in."""
    columns: dict[str, str] = {}
    sources: set[str] = set()
    for each in _listed(records.get("field")):
        source = each.get("source")
        if not isinstance(source, dict):
            continue
        extract = source.get("extract")
        column = extract.get("column") if isinstance(extract, dict) else None
        file = source.get("fileObject") or source.get("fileSet") or source.get("distribution")
        sources.add(_id(file) if isinstance(file, dict) else str(file))
        if column is not None:
            name = str(each.get("name") or _id(each)).rpartition("/")[2]
            columns[name] = str(column)
    return columns, sources


def _local(path: Path, folder: Path, source: Mapping[str, Any]) -> Path:
    url = str(source.get("contentUrl", ""))
    if "://" in url:
        raise InvalidData(f"{path}: {url[:200]} is an address; download it, and put its path into contentUrl")
    file = path.parent / url
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InvalidData(f"{path}: contentUrl {url[:200]!r} leads out of {folder}; copy the file into it")
    if not file.is_file():
        raise InvalidData(f"{path}: contentUrl {url[:200]!r} is not a file of {path.parent}")
    wanted = source.get("sha256")
    if isinstance(wanted, str) and wanted and (found := _sha256(file)) != wanted.lower():
        raise InvalidData(f"{file}: has the SHA-256 {found}, and {path.name} says {wanted}; take them from one release")
    return file


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _id(described: Mapping[str, Any]) -> str:
    return str(described.get("@id") or described.get("name") or "")


def _listed(value: Any) -> Sequence[Mapping[str, Any]]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, dict)]
