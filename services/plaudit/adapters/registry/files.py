"""Files of a registry on whatever file system it is kept: written durably, shared where it can, locked.

File systems without hard links, without modes or without a flush of folders (exFAT, SMB, FUSE) do with less; one
without locks is refused, as two writers would overwrite each other's work.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from plaudit.core.errors import RegistryUnavailable
from plaudit.core.limits import MAX_REGISTRY_LOCK_WAIT_S
from plaudit_models.bundle import FileDigest, open_regular

_CHUNK_BYTES: Final = 1 << 20
_NO_FLUSH: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM}
)
"""Errors of flushing a folder where the file system cannot: SMB, VirtualBox and many FUSE drivers."""
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
_LOCK_POLL_S: Final = 0.002
_WAY_OUT: Final = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "raise the quota, or make room",
    errno.EROFS: "mount it writable, or run the learner where it is",
    errno.EACCES: "give this user the right to",
    errno.EPERM: "give this user the right to",
    errno.ESTALE: "mount it again",
    errno.ENOENT: "put it back",
}


@contextmanager
def unavailable(doing: str, place: Path) -> Iterator[None]:
    """Errors of the file system inside become RegistryUnavailable, with the way out where one is known."""
    try:
        yield
    except OSError as error:
        way_out = _WAY_OUT.get(error.errno or 0, "")
        problem = f"{doing}: {error.strerror or error}" + (f"; {way_out}" if way_out else "")
        raise RegistryUnavailable(problem, str(error.filename or place)) from error


def copy_durably(source: Path, target: Path) -> FileDigest:
    """Copy, and digest what was copied, in one reading; a link is refused. The copy is read-only where it can be."""
    sha256, size_bytes = hashlib.sha256(), 0
    with open_regular(source, follow_links=False) as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size_bytes += writer.write(chunk)
        flush(writer)
    with suppress(OSError):  # no modes there, or they are another user's
        target.chmod(0o444)
    return FileDigest(sha256.hexdigest(), size_bytes)


def link(source: Path, target: Path) -> bool:
    """Give a file a second name; False where the file system has no hard links, or no more of them for this file."""
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        flush(file)


def flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Make the names in a folder durable, where the file system knows how to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclude other threads and processes; the lock of a process that dies is released.

    Raises:
        RegistryUnavailable: another one does not let go of it, or the file system has no locks.
    """
    with path.open("ab") as file:
        give_up_s = time.monotonic() + MAX_REGISTRY_LOCK_WAIT_S
        while not _try_to_lock(file, path):
            if time.monotonic() >= give_up_s:
                raise RegistryUnavailable(
                    f"another process has held {path.name} for {MAX_REGISTRY_LOCK_WAIT_S:g} s; see whether it hangs",
                    str(path),
                )
            time.sleep(_LOCK_POLL_S)
        yield


def _try_to_lock(file: IO[bytes], path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise RegistryUnavailable(
                f"its file system has no locks ({error.strerror}), and two writers would undo each other's work; mount "
                "it with locks, or keep the registry on another one",
                str(path),
            ) from error
        raise
    return True
