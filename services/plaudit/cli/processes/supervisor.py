"""Supervisor of ``plaudit up`` and of several serving processes: services as child processes of one command.

A child reports events on stdout, one JSON object a line; ``{"event": "ready", …}`` means that it answers. A service
that is not restarted, such as inference, ends everything when it ends. One that is, such as the learner, is started
again after a pause that doubles; meanwhile the others run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from plaudit.cli.failures import USAGE

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
SETTLED_S: Final = 60.0
"""After a service has run this long, its next pause is the first one again."""

Report = Callable[[Mapping[str, Any]], None]
"""Called with every event: a child's own, with ``service`` added, and ``exited`` and ``restarting``."""


@dataclass(frozen=True, slots=True)
class Service:
    """A child process.

    Attributes:
        command: command line; ``{address}`` in it becomes the address of the service named by ``after``.
        restart: start it again when it ends; otherwise all services are drained then.
        after: name of the service that must be ready before it starts; None: it starts at once.
    """

    name: str
    command: Sequence[str]
    restart: bool
    after: str | None = None


def pause_s(exits: int) -> float:
    """Pause before the start after the ``exits``-th exit in a row, in seconds: 1, 2, 4, … 30."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (exits - 1))


async def run(
    services: Sequence[Service],
    report: Report,
    *,
    pause: Callable[[float], Any] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run until a signal comes or a service that is not restarted ends; then drain all. Returns the exit code.

    SIGINT and SIGTERM drain: each child gets SIGTERM and is waited for.
    """
    loop = asyncio.get_running_loop()
    ready: dict[str, asyncio.Future[str]] = {service.name: loop.create_future() for service in services}

    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "ready" and not ready[event["service"]].done():
            ready[event["service"]].set_result(event.get("address", ""))
        report(event)

    async def keep_running(service: Service, stopping: asyncio.Event) -> int:
        if service.after is None:
            return await _keep_running(service, listen, stopping, pause, clock)
        await _first(asyncio.shield(ready[service.after]), stopping.wait())
        if stopping.is_set():
            return 0
        address = ready[service.after].result()
        command = [part.replace("{address}", address) for part in service.command]
        return await _keep_running(replace(service, command=command), listen, stopping, pause, clock)

    with signals() as stopping:
        codes = await asyncio.gather(*(keep_running(service, stopping) for service in services))
    return next((code for code in codes if code != 0), 0)


@contextlib.contextmanager
def signals() -> Iterator[asyncio.Event]:
    """Event that the first SIGINT or SIGTERM sets; more of them change nothing, so ctrl-C may arrive twice."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _keep_running(
    service: Service, report: Report, stopping: asyncio.Event, pause: Callable[[float], Any], clock: Callable[[], float]
) -> int:
    """Run one service again and again until ``stopping`` is set. Returns its last exit code."""
    exits = 0
    while True:
        started_s = clock()
        code = await _run_once(service, report, stopping)
        if stopping.is_set():
            return max(code, 0)  # killed by a signal that we sent, or that came to the whole process group
        report({"event": "exited", "service": service.name, "code": code})
        if not service.restart or code == USAGE:  # a wrong setting stays wrong
            stopping.set()
            return code if code > 0 else 1
        exits = 1 if clock() - started_s >= SETTLED_S else exits + 1
        wait_s = pause_s(exits)
        report({"event": "restarting", "service": service.name, "in_s": wait_s})
        await _first(pause(wait_s), stopping.wait())
        if stopping.is_set():
            return 0


async def _run_once(service: Service, report: Report, stopping: asyncio.Event) -> int:
    process = await asyncio.create_subprocess_exec(*service.command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    forward = asyncio.create_task(_terminate_when(stopping, process))
    try:
        async for line in process.stdout:
            report(json.loads(line) | {"service": service.name})
        return await process.wait()
    finally:
        forward.cancel()


async def _terminate_when(stopping: asyncio.Event, process: asyncio.subprocess.Process) -> None:
    await stopping.wait()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
