"""HTTP connections of the console, each with a time for its request, and so many that none takes the place of all.

uvicorn limits how long a connection idles after an answer, not how long a request takes to arrive.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from plaudit.core.limits import CONSOLE_CALL_S, CONSOLE_REQUEST_S, MAX_CONSOLE_CONNECTIONS


class Connections:
    """Open connections of one server, in the order in which they began to wait for a request.

    Where there are too many connections, the one that has waited longest for its request gives way; where all have
    one, the new connection is closed.

    Attributes:
        protocol: what uvicorn takes as ``http``.
    """

    def __init__(self) -> None:
        self.waiting: dict[_Protocol, None] = {}
        self.open: set[_Protocol] = set()
        self.protocol: type[H11Protocol] = type("ConsoleProtocol", (_Protocol,), {"_connections": self})


class _Protocol(H11Protocol):
    _connections: Connections
    _ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connections = self._connections
        if len(connections.open) >= MAX_CONSOLE_CONNECTIONS:
            oldest = next(iter(connections.waiting), None)
            if oldest is None:
                transport.abort()
                return
            oldest.abort()
        connections.open.add(self)
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def abort(self) -> None:
        self._forget()
        self.transport.abort()

    def _look(self) -> None:
        """Start the time of what the connection does now, unless it has been doing that already."""
        if self not in self._connections.open:
            return
        waits = self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)
        if waits == (self in self._connections.waiting) and self._ends is not None:
            return
        if self._ends is not None:
            self._ends.cancel()
        if waits:
            self._connections.waiting[self] = None
        else:
            self._connections.waiting.pop(self, None)
        self._ends = self.loop.call_later(CONSOLE_REQUEST_S if waits else CONSOLE_CALL_S, self.abort)

    def _forget(self) -> None:
        self._connections.open.discard(self)
        self._connections.waiting.pop(self, None)
        if self._ends is not None:
            self._ends.cancel()
            self._ends = None
