"""Serves the console's application on a port until told to stop. Knows nothing about what it serves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from plaudit.console.connections import Connections
from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import listening_socket

_DRAIN_S = 2


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError: the port is taken, or the host is not an address of this machine."""
    try:
        return listening_socket(host, port)
    except OSError as error:
        raise ConfigError(
            f"console.port: {port} cannot be opened on {host} ({error.strerror}); set another one (0 picks one)"
        ) from error


async def serve(app: Starlette, listening: socket.socket, stopping: asyncio.Event) -> None:
    """Serve until ``stopping`` is set and requests under way are answered."""
    config = uvicorn.Config(
        app,
        http=Connections().protocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_S,
        lifespan="off",
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopped.cancel()
    await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle no signals: the caller sets ``stopping``."""
        yield
