"""What C libraries write to stderr, silenced while one of them works.

libsndfile's decoder for MP3 writes a line to the process's stderr for each damaged frame, and nothing switches that
off: whoever sends a file could fill the log of the service. Its lines go through the C library's stream, those of
Python do not, so that only the stream is exchanged, and no line of the service is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import threading
from collections.abc import Iterator


class _CStderr:
    """The stream ``stderr`` of glibc. That of other C libraries is left alone: it is a constant of musl's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stream: ctypes.c_void_p | None = None
        if platform.libc_ver()[0] == "glibc":
            library = ctypes.CDLL(None)
            library.fopen.restype = ctypes.c_void_p
            self._null = library.fopen(b"/dev/null", b"we")
            self._stream = ctypes.c_void_p.in_dll(library, "stderr") if self._null else None
            self._told = self._stream.value if self._stream is not None else None

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        self._use(1)
        try:
            yield
        finally:
            self._use(-1)

    def _use(self, change: int) -> None:
        if self._stream is None:
            return
        with self._lock:
            self._users += change
            self._stream.value = self._null if self._users else self._told


_C_STDERR = _CStderr()


def c_stderr_silenced() -> contextlib.AbstractContextManager[None]:
    """Context in which C libraries write nothing to stderr, where that can be had."""
    return _C_STDERR.silenced()
