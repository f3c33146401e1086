"""Supervisor of ``plaudit up`` and of several serving processes: services as child processes of one command.

A child reports events on stdout, one JSON object a line; ``{"event": "ready", …}`` means that it answers. A service
that is not restarted, such as inference, ends everything when it ends. One that is, such as the learner, is started
again after a pause that doubles, or given up where starting it again will not help; meanwhile the others run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from plaudit.cli.failures import FAILED, OUTPUT_GONE, UNFIT, USAGE, drop_output
from plaudit.cli.processes.stopping import stop_requests
from plaudit.core.host.backoff import pause_s
from plaudit.core.host.os_errors import explain

SETTLED_S: Final = 60.0
"""After a service has run this long, its next pause is the first one again."""
MAX_EXITS: Final = 10
"""Exits in a row, none after it had settled, after which a service is given up: about three minutes."""
_MAX_LINE_BYTES: Final = 2**20

Report = Callable[[Mapping[str, Any]], None]
"""Called with every event: a child's own, with ``service`` added, and ``exited``, ``restarting`` and ``given_up``."""


@dataclass(frozen=True, slots=True)
class Service:
    """A child process.

    Attributes:
        command: command line; an argument ``{address}`` becomes the address of the service named by ``after``.
        restart: start it again when it ends; otherwise all services are drained then.
        after: name of the service that must be ready before it starts; None: it starts at once.
        essential: once it is given up, all services are drained.
    """

    name: str
    command: Sequence[str]
    restart: bool
    after: str | None = None
    essential: bool = False


async def run(
    services: Sequence[Service],
    report: Report,
    *,
    kill_after_s: float = 30.0,
    pause: Callable[[float], Any] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run until a signal comes, nobody reads the output, or a service that is needed ends; then drain all.

    Returns the exit code. To drain, each child gets SIGTERM and is waited for; one that does not end is killed.

    Args:
        kill_after_s: time that a child has to drain.
    """
    loop = asyncio.get_running_loop()
    ready: dict[str, asyncio.Future[str]] = {service.name: loop.create_future() for service in services}

    with stop_requests() as stopping:

        def listen(event: Mapping[str, Any]) -> None:
            if event["event"] == "ready" and not ready[event["service"]].done():
                ready[event["service"]].set_result(event.get("address", ""))
            try:
                report(event)
            except (OSError, SystemExit):  # rich raises SystemExit
                drop_output()
                children.output_gone = True
                stopping.set()

        async def keep_running(service: Service) -> int:
            if service.after is not None:
                await _first(asyncio.shield(ready[service.after]), stopping.wait())
                if stopping.is_set():
                    return 0
                address = ready[service.after].result()
                command = [address if part == "{address}" else part for part in service.command]
                service = replace(service, command=command)
            return await children.keep_running(service, ready[service.name])

        children = _Children(listen, stopping, kill_after_s, pause, clock)
        tasks = [asyncio.create_task(keep_running(service)) for service in services]
        try:
            codes = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one has failed
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return OUTPUT_GONE if children.output_gone else next((code for code in codes if code != 0), 0)


@dataclass(eq=False)
class _Children:
    report: Report
    stopping: asyncio.Event
    kill_after_s: float
    pause: Callable[[float], Any]
    clock: Callable[[], float]
    output_gone: bool = field(default=False, init=False)

    async def keep_running(self, service: Service, ready: asyncio.Future[str]) -> int:
        """Run one service again and again until all stop or it is given up. Returns its last exit code."""
        exits = 0
        while True:
            started_s = self.clock()
            code = await self._run_once(service)
            if self.stopping.is_set():  # SIGKILL is ours, or as bad; other signals came to the whole process group
                return FAILED if code == -signal.SIGKILL else max(code, 0)
            self.report({"event": "exited", "service": service.name, "code": code})
            if not service.restart or (code == USAGE and not ready.done()):  # a wrong setting is told at once
                self.stopping.set()
                return code if code > 0 else FAILED
            exits = 1 if self.clock() - started_s >= SETTLED_S else exits + 1
            if code in (USAGE, UNFIT) or exits >= MAX_EXITS:
                self.report({"event": "given_up", "service": service.name, "code": code})
                if service.essential:
                    self.stopping.set()
                return code if code > 0 else FAILED
            wait_s = pause_s(exits)
            self.report({"event": "restarting", "service": service.name, "in_s": wait_s})
            await _first(self.pause(wait_s), self.stopping.wait())
            if self.stopping.is_set():
                return 0

    async def _run_once(self, service: Service) -> int:
        try:
            process = await asyncio.create_subprocess_exec(
                *service.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_LINE_BYTES,
            )
        except OSError as error:  # no memory, too many processes
            self.report({"event": "not_started", "service": service.name, "problem": explain(error)})
            return FAILED
        ending = asyncio.create_task(self._end(process))
        try:
            assert process.stdout is not None
            async for event in _events(process.stdout):
                self.report(event | {"service": service.name})
            return await process.wait()
        finally:
            ending.cancel()
            if process.returncode is None:  # we have failed; it drains
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Once all stop: SIGTERM, and SIGKILL if that does not end it."""
        await self.stopping.wait()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.sleep(self.kill_after_s)
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def _events(stdout: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Events of a child until it closes its output. What is no event, a library has printed: it goes to stderr."""
    while True:
        try:
            line = await stdout.readline()
        except ValueError:  # far too long
            continue
        if not line:
            return
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event:
            yield event
        else:
            with contextlib.suppress(OSError):
                print(line.decode(errors="replace"), end="", file=sys.stderr, flush=True)


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
