"""The end of a server, as a signal: long calls are notified at once instead of polling for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ShutdownSignal:
    """Set once, for good."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], None]] = {}

    def set(self) -> None:
        with self._lock:
            self._event.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """True if it is set within ``timeout_s``."""
        return self._event.wait(timeout_s)

    @contextmanager
    def notifying(self, callback: Callable[[], None]) -> Iterator[None]:
        """Calls ``callback`` when the signal is set, or now if it is; not after the block."""
        key = object()
        with self._lock:
            self._callbacks[key] = callback
            is_set = self._event.is_set()
        if is_set:
            callback()
        try:
            yield
        finally:
            with self._lock:
                del self._callbacks[key]
