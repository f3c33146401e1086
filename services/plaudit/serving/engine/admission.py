"""Bounded numbers of places and bytes. What finds no room is refused at once, before any work is done for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from plaudit.core.errors import InvalidInput, Overloaded


class Admission:
    """Args:
    what: name of what is full when no place is free, for the error.
    limit: number of places.
    """

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._taken = 0
        self._lock = threading.Lock()

    @contextmanager
    def places(self, count: int = 1) -> Iterator[None]:
        """Holds ``count`` places.

        Raises:
            Overloaded: there are not that many free.
            InvalidInput: there will never be that many.
        """
        if count > self._limit:
            raise InvalidInput("inputs", f"holds {count} rows; one request may hold {self._limit}, send several")
        with self._lock:
            if self._taken + count > self._limit:
                raise Overloaded(self._what, self._limit)
            self._taken += count
        try:
            yield
        finally:
            with self._lock:
                self._taken -= count


class ByteBudget:
    """A bounded number of bytes; safe to use from several threads.

    Args:
        what: name of what is full when it is spent, for the error.
        limit_bytes: number of bytes.
        refused: called for each refusal.
    """

    def __init__(self, what: str, limit_bytes: int, refused: Callable[[], None] = lambda: None) -> None:
        self._what = what
        self._refused = refused
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._lock = threading.Lock()

    @property
    def taken_bytes(self) -> int:
        """Number of bytes that are held."""
        return self._taken_bytes

    def take(self, size_bytes: int) -> None:
        """Hold bytes until :meth:`give`; one holder alone may take any number.

        Raises:
            Overloaded: not that many are free.
        """
        with self._lock:
            if self._taken_bytes and self._taken_bytes + size_bytes > self._limit_bytes:
                self._refused()
                raise Overloaded(f"{self._what} (in bytes)", self._limit_bytes)
            self._taken_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._taken_bytes -= size_bytes
