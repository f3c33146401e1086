"""Lock on a file, held by one process at a time: the kernel ends it with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def locked(path: Path) -> int | None:
    """Descriptor of the file, made if it is not there, open and locked; None if another holder has it.

    Raises:
        OSError: the file cannot be opened for writing, or its file system has no locks.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return lock
