"""A bounded number of places. A request that finds none is refused at once, before any work is done for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
