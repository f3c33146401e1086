"""Errors of SQLite as sentences: which file, what is wrong, the way out, and whether it can pass by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WAYS_OUT: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_FULL: "make room on the disk",
    sqlite3.SQLITE_READONLY: "give this user the right to write to it and to its folder, or mount it for writing",
    sqlite3.SQLITE_CANTOPEN: "see that its folder is there, that this user may write to both, and that the path has "
    "fewer than 500 bytes",
    sqlite3.SQLITE_PERM: "give this user the right to write to it and to its folder",
    sqlite3.SQLITE_IOERR: "the disk is full or reports errors: make room, see the kernel's log (dmesg)",
    sqlite3.SQLITE_BUSY: "another program holds it for long: end that program",
}


def is_damaged(error: BaseException | None) -> bool:
    """Whether the file itself is wrong, so that trying again will not help."""
    return _code(error) in _DAMAGED


def explain(path: str | Path, error: BaseException, damaged_way_out: str) -> str:
    """The file, what is wrong, and the way out, in one sentence.

    Args:
        damaged_way_out: what to do where the file itself is damaged.
    """
    way_out = damaged_way_out if is_damaged(error) else _WAYS_OUT.get(_code(error), "")
    return f"{path}: {str(error).strip()}" + (f"; {way_out}" if way_out else "")


def _code(error: BaseException | None) -> int:
    """Primary result code; 0 for errors of other databases."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
