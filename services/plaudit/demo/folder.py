"""Data directory of the demo: cleared of an earlier demo, and locked against another one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from plaudit.adapters.file_lock import locked
from plaudit.core.errors import ConfigError

MARKER: Final = ".plaudit-demo"
"""File that marks the folder of a demo, which may be cleared; locked while the process of a demo lives."""


@contextmanager
def demo_folder(folder: Path) -> Iterator[None]:
    """Make or clear the folder, and hold its lock.

    Raises:
        ConfigError: it holds other files than a demo's, another demo runs in it, or it cannot be made.
    """
    try:
        lock = _lock(folder)
    except OSError as error:
        raise ConfigError(f"data_dir: {folder} cannot be used ({error.strerror})") from error
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """Lock the folder and remove all but the marker. Returns the file descriptor of the lock."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ConfigError(f"data_dir: {folder} is not empty and not an earlier demo's; name another --data-dir")
    folder.mkdir(parents=True, exist_ok=True)
    lock = locked(folder / MARKER)
    if lock is None:
        raise ConfigError(f"data_dir: another demo is running in {folder}; wait for it, or name another --data-dir")
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()
    return lock
