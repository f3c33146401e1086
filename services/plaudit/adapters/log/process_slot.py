"""Numbered slots of a folder, each held by one process at a time: files of a slot pass to its next holder.

A slot is a locked file; the lock ends with the process, however it ends. Knows nothing about the files.
"""

from __future__ import annotations

import itertools
import os
import socket
import uuid
from pathlib import Path

from plaudit.adapters.file_lock import locked
from plaudit.core.errors import LogUnavailable


class ProcessSlot:
    """The first free slot of ``folder``, which is made if it is not there.

    Attributes:
        folder: folder of all slots.
        number: number of this slot, from 0.

    Raises:
        LogUnavailable: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._released = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.number, self._lock = next(
                (number, lock)
                for number in itertools.count()
                if (lock := locked(folder / f"{number}.lock")) is not None
            )
        except OSError as error:
            raise LogUnavailable(f"{folder}: {error}") from error

    def name(self) -> str:
        """Name of the slot, unlike that of any other, also in a copy of the folder on another machine."""
        if not (stored := os.pread(self._lock, 100, 0)):
            stored = uuid.uuid4().hex.encode()
            os.pwrite(self._lock, stored, 0)
        return f"{socket.gethostname()}-{stored.decode()}"

    def release(self) -> None:
        """Let another process have the slot. A second call does nothing."""
        if not self._released:
            self._released = True
            os.close(self._lock)
