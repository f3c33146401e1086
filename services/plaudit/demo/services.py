"""Services of the demo: ``plaudit up`` as a child process, and its settings as TOML."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from plaudit.core.errors import ConfigError
from plaudit.core.settings import ConsoleSettings


class DemoFailed(Exception):
    """The demo could not go on; the message says why."""


@asynccontextmanager
async def services(
    config: Path, data_dir: Path, log: Path, say: Callable[[str], None], *, console_port: int | None = None
) -> AsyncIterator[tuple[str, asyncio.Task[int]]]:
    """``plaudit up`` as a child process: yields the address of the gRPC port and a task that is done when it ends.

    Args:
        data_dir: data directory, whatever the environment says.
        log: file for the logs of the services.
        say: called with the address of the console.
        console_port: serve the console there; None: serve none.

    Raises:
        DemoFailed: it did not start, or did not drain.
    """
    command = [sys.executable, "-m", "plaudit", "up", "--config", str(config), "--data-dir", str(data_dir), "--json"]
    if console_port is not None:
        command += ["--console-port", str(console_port)]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=stderr)
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(_listen(process, address, say))
    waits: list[asyncio.Future[Any]] = [address, ended]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not address.done():
            raise DemoFailed(f"plaudit up ended with exit code {await ended}; see {log}")
        yield address.result(), ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        code = await ended
    if code != 0:
        raise DemoFailed(f"plaudit up did not drain: exit code {code}; see {log}")


def require_free_port(port: int) -> None:
    """Check the port before the minutes of pre-training, not after.

    Raises:
        ConfigError: the port is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ConsoleSettings().host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"console.port: cannot listen on {port} ({error}); name another --console-port"
            ) from error


async def _listen(process: asyncio.subprocess.Process, address: asyncio.Future[str], say: Callable[[str], None]) -> int:
    """Read events until the child ends. Sets the address when inference is ready. Returns the exit code."""
    assert process.stdout is not None
    async for line in process.stdout:
        match json.loads(line):
            case {"event": "ready", "service": "serve", "address": str(where)} if not address.done():
                address.set_result(where)
            case {"event": "ready", "service": "console", "page": page}:
                say(f"ask it things yourself, and watch it learn: {page}")
    return await process.wait()


def toml(settings: Mapping[str, Any], path: str = "") -> str:
    """Settings as TOML. Strings, numbers and lists are written as in JSON, which is valid TOML."""
    values = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    tables = [
        f"\n[{path}{key}]\n{toml(value, f'{path}{key}.')}"
        for key, value in settings.items()
        if isinstance(value, Mapping)
    ]
    return "\n".join(values) + "\n" + "".join(tables)
