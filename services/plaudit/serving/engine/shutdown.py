"""The end of a server: whoever serves a long call is told at once, without looking at a clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ShutdownSignal:
    """Set once, for good."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._told: dict[object, Callable[[], None]] = {}

    def set(self) -> None:
        with self._lock:
            self._event.set()
            told = list(self._told.values())
        for tell in told:
            tell()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """True if it is set by then."""
        return self._event.wait(timeout_s)

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """Calls ``tell`` when the end comes, or now if it has come; not after the block."""
        key = object()
        with self._lock:
            self._told[key] = tell
            ended = self._event.is_set()
        if ended:
            tell()
        try:
            yield
        finally:
            with self._lock:
                del self._told[key]
