"""Numbered seats of a folder, each one process's at a time: what belongs to a seat is there for whoever has it next.

A seat is a locked file; the lock ends with the process, however it ends. Knows nothing about what is kept at a seat.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import uuid
from pathlib import Path

from plaudit.core.errors import LogUnavailable


class ProcessSlot:
    """The first free seat of ``folder``, which is made if it is not there.

    Attributes:
        folder: of all seats.
        number: which one this is.

    Raises:
        LogUnavailable: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._left = False
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
        """Of the seat, and of no other one, here or in a copy of the folder on another machine."""
        if not (said := os.pread(self._lock, 100, 0)):
            said = uuid.uuid4().hex.encode()
            os.pwrite(self._lock, said, 0)
        return f"{socket.gethostname()}-{said.decode()}"

    def leave(self) -> None:
        """A second time does nothing."""
        if not self._left:
            self._left = True
            os.close(self._lock)


def locked(path: Path) -> int | None:
    """The file, made if it is not there, open and locked; None if another process, or seat of this one, holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
