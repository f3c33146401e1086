"""Layouts of data folders → one table: a manifest, a Croissant description, or what Hugging Face's `datasets` reads.

manifest.csv  .tsv, .jsonl or .parquet: the rows; or another file, which ``data.manifest`` names
croissant.json  a Croissant description (MLCommons) with one record set over files of the folder
metadata.csv  .jsonl or .parquet with a column ``file_name``, in the folder or in one for each split (imagefolder,
              audiofolder)
train-*.parquet  or .csv, .jsonl: files named by their split, in the folder or in ``data/``
train/cat/1.png  a folder for each class, in the folder or in one for each split
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from plaudit_models.data.config import DataConfig
from plaudit_models.data.croissant import is_croissant, read_croissant
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.splits import SPLIT_WORDS
from plaudit_models.data.table import (
    MANIFEST_SUFFIXES,
    MAX_ROWS,
    DataTable,
    Part,
    concatenated,
    read_table,
    with_columns,
)

DATA_MANIFEST: Final = "manifest.csv"

_MANIFESTS: Final = tuple("manifest" + suffix for suffix in MANIFEST_SUFFIXES)
_METADATA: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_CROISSANT: Final = ("croissant.json", "metadata.json")
_DATA_SUFFIXES: Final = (".parquet", ".csv", ".jsonl")
_KIND_OF_SUFFIX: Final = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".opus", ".mp3"), "audio"),
    ".txt": "text",
    ".npy": "tensor",
}
_WORD = re.compile(r"[a-z]+")
_MAX_FOLDERS: Final = 100_000


def read_folder(folder: Path, config: DataConfig) -> DataTable:
    """Rows of a data folder, in one of the layouts; paths in them are relative to ``folder``.

    Raises:
        InvalidData: none of the layouts, or a file of it is wrong.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "there is no such folder"
        raise InvalidData(f"{folder}: {problem}; give one with a {DATA_MANIFEST}")
    if config.manifest is not None:
        return _given(folder, config.manifest)
    found = [name for name in _MANIFESTS if (folder / name).is_file()]
    if len(found) > 1:
        raise InvalidData(f"{folder}: has {' and '.join(found)}; say which with data.manifest")
    if found:
        return read_table(folder / found[0], folder)
    for name in _CROISSANT:
        if is_croissant(folder / name):
            return read_croissant(folder / name, folder)
    for read in (_with_metadata, _files_by_split, _class_folders):
        table = read(folder)
        if table is not None:
            return table
    raise InvalidData(
        f"{folder / DATA_MANIFEST}: there is none, and the folder is no other layout either: a manifest "
        f"({', '.join(MANIFEST_SUFFIXES)}; data.manifest names another file), croissant.json, metadata.csv with a "
        "column file_name, files named by split such as train.parquet, or a folder for each class"
    )


def _given(folder: Path, manifest: str) -> DataTable:
    path = folder / manifest
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidData(f"data.manifest: {manifest!r} leads out of {folder}; give --data the folder that holds both")
    if not path.is_file():
        raise InvalidData(f"{path}: there is no such file; data.manifest is relative to {folder}")
    return read_croissant(path, folder) if is_croissant(path) else read_table(path, folder)


def _with_metadata(folder: Path) -> DataTable | None:
    """Imagefolder or audiofolder: ``file_name`` becomes the column of its kind, ``x_file_name`` the column ``x``."""
    tables = []
    for place in (folder, *_subfolders(folder)):
        name = next((each for each in _METADATA if (place / each).is_file()), None)
        if name is None:
            continue
        table = read_table(place / name, folder)
        pointers = [each for each in table.columns if each == "file_name" or each.endswith("_file_name")]
        if not pointers:
            raise InvalidData(f"{place / name}: no column 'file_name' among {list(table.columns)}; it names the files")
        prefix = "" if place == folder else f"{place.relative_to(folder).as_posix()}/"
        columns = {each: cells for each, cells in table.columns.items() if each not in pointers}
        for each in pointers:
            cells = [prefix + cell if cell else "" for cell in table.columns[each]]
            columns[each.removesuffix("_file_name") if each != "file_name" else _kind_of(cells)] = cells
        split = _split_in(prefix)
        if split and "split" not in columns:
            columns["split"] = [split] * len(table)
        tables.append(DataTable(table.path, table.parts, columns, table.class_names))
    return concatenated(folder, tables) if tables else None


def _files_by_split(folder: Path) -> DataTable | None:
    tables = []
    for place in (folder, *_subfolders(folder)):
        for suffix in _DATA_SUFFIXES:
            files = sorted(each for each in place.glob(f"*{suffix}") if each.is_file())
            for path in files:
                split = _split_in(path.stem) or _split_in(path.parent.relative_to(folder).as_posix())
                if not split:
                    continue
                table = read_table(path, folder)
                own = {} if "split" in table.columns else {"split": [split] * len(table)}
                tables.append(with_columns(table, own))
    return concatenated(folder, tables) if tables else None


def _class_folders(folder: Path) -> DataTable | None:
    """Files in folders named by their class, below folders named by their split or at once."""
    below = _subfolders(folder)
    by_split = [(each, split) for each in below if (split := _split_in(each.name)) and each.name in SPLIT_WORDS]
    rows: list[tuple[str, str, str]] = []
    for place, split in by_split or [(folder, "")]:
        for class_folder in _subfolders(place):
            for path in _media(class_folder):
                rows.append((path.relative_to(folder).as_posix(), class_folder.name, split))
                if len(rows) > MAX_ROWS:
                    raise InvalidData(f"{folder}: more than {MAX_ROWS} files; split the data set")
    if not rows:
        return None
    files = [row[0] for row in rows]
    columns = {_kind_of(files): files, "label": [row[1] for row in rows]}
    if by_split:
        columns["split"] = [row[2] for row in rows]
    return DataTable(folder, [Part(folder, "row", range(len(rows)))], columns, {})


def _media(folder: Path) -> Iterator[Path]:
    yield from sorted(each for each in folder.rglob("*") if each.suffix.lower() in _KIND_OF_SUFFIX and each.is_file())


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if len(found) > _MAX_FOLDERS:
        raise InvalidData(f"{folder}: more than {_MAX_FOLDERS} folders; write a {DATA_MANIFEST}")
    return found


def _kind_of(files: Sequence[str]) -> str:
    """Name that `datasets` gives the column of such files."""
    suffix = next((Path(each).suffix.lower() for each in files if each), "")
    return _KIND_OF_SUFFIX.get(suffix, "file")


def _split_in(name: str) -> str:
    return next((SPLIT_WORDS[word] for word in _WORD.findall(name.lower()) if word in SPLIT_WORDS), "")
