"""``plaudit serve``, ``learn`` and ``console``: one service, run until a signal says to drain it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client import CollectorRegistry

from plaudit import demo
from plaudit.cli.options import address, async_client
from plaudit.cli.processes import supervisor
from plaudit.cli.processes.exposition import LabelledRegistry, MetricsPages
from plaudit.compose.log import learner_log, serving_log
from plaudit.compose.store import experience_store
from plaudit.compose.tracing import service_tracing
from plaudit.core.addresses import without_brackets
from plaudit.core.cores import available_cores
from plaudit.core.errors import ConfigError
from plaudit.core.metrics_server import MetricsServer, page_of
from plaudit.core.printable import printable
from plaudit.core.settings import Settings

if TYPE_CHECKING:
    from plaudit.adapters.tracing.otel import OtelTracing
    from plaudit.console.ports import Samples

_M_TRIM_THRESHOLD: Final = -1
_M_ARENA_MAX: Final = -8
"""Parameters of mallopt, from <malloc.h>."""
_MAX_FREE_BYTES: Final = 2**20
_OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000

Report = Callable[[Mapping[str, Any]], None]
"""Called with ``{"event": "ready", …}`` when the service answers."""


async def serve(settings: Settings, report: Report, *, share_port: bool = False) -> None:
    """Run the inference service until a signal. Raises ConfigError: a setting is wrong, or a port is taken."""
    from plaudit.compose.serving import inference_server

    _limit_free_memory()
    with (
        _tracing(settings, "plaudit-serve") as tracing,
        contextlib.closing(serving_log(settings)) as log,
        supervisor.signals() as stopping,
    ):
        server = inference_server(settings, log, share_port=share_port, tracing=tracing)
        await asyncio.to_thread(server.start)
        collect_garbage_seldom()
        serving = settings.serving
        metrics = address(serving.metrics_address, server.metrics_port)
        report({"event": "ready", "address": address(serving.host, server.port), "metrics": metrics})
        await stopping.wait()
        await asyncio.to_thread(server.stop)


@contextlib.contextmanager
def _tracing(settings: Settings, service: str) -> Iterator[OtelTracing | None]:
    tracing = service_tracing(settings, service)
    try:
        yield tracing
    finally:
        if tracing is not None:
            tracing.close()


def _limit_free_memory() -> None:
    """Have glibc return free memory: one heap a core, each with at most :data:`_MAX_FREE_BYTES` free at its end.

    By default there are up to eight heaps a core, and each keeps what it once needed. One is as fast, as no more
    threads run at once.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, available_cores())
        library.mallopt(_M_TRIM_THRESHOLD, _MAX_FREE_BYTES)


def collect_garbage_seldom() -> None:
    """Search for reference cycles less often; to be called once a service is built.

    Requests and records make cycles only where something fails; the default, a search every 700 objects, costs 4 % of
    the rate of requests and 12 % of the learner's.
    """
    gc.collect()
    gc.freeze()  # objects of the service itself live as long as the process
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 20)


async def serve_in_processes(settings: Settings, command: Sequence[str], report: Report) -> int:
    """Run several processes on one port; one that dies is started again. Returns the exit code.

    Their metrics are shown together, on the port that the settings name.

    Args:
        command: command line of one process, without its ports.

    Raises:
        ConfigError: a port is taken.
    """
    serving, pages = settings.serving, MetricsPages()
    with (
        _reserved(serving.host, serving.port) as port,
        _metrics_of(pages, serving.metrics_address, serving.metrics_port) as metrics_port,
    ):
        ports = ["--share-port", "--port", str(port), "--metrics-port", "0"]
        services = [
            supervisor.Service(f"serve-{number}", [*command, *ports], restart=True)
            for number in range(serving.processes)
        ]

        def listen(event: Mapping[str, Any]) -> None:
            process = str(event["service"]).removeprefix("serve-")
            if event["event"] == "ready":
                pages.add(process, event["metrics"])
                event = {**event, "metrics": address(serving.metrics_address, metrics_port)}
            elif event["event"] == "exited":
                pages.remove(process)
            report(event)

        return await supervisor.run(services, listen)


@contextlib.contextmanager
def _metrics_of(pages: MetricsPages, host: str, port: int) -> Iterator[int]:
    with _naming("serving.metrics_port", host, port):
        server = MetricsServer(host, port, pages.page)
    with contextlib.closing(server):
        yield server.port


@contextlib.contextmanager
def _naming(setting: str, host: str, port: int) -> Iterator[None]:
    """Raises ConfigError that names the setting in place of the OSError of a port that cannot be opened."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{setting}: {port} cannot be opened on {host} ({error.strerror}); set another one (0 picks one)"
        ) from error


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Hold the port, without listening, so that the processes that share it all find it free; yields its number."""
    host = without_brackets(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as reserving:
        with _naming("serving.port", host, port):
            with socket.socket(family, socket.SOCK_STREAM) as alone:
                alone.bind((host, port))  # fails if the port is in use, shared or not
            reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserving.bind((host, port))
        yield int(reserving.getsockname()[1])


async def learn(settings: Settings, model: str, report: Report) -> None:
    """Run the learner of one model until a signal. Raises ConfigError: a setting is wrong, or the port is taken."""
    stop = threading.Event()
    with supervisor.signals() as stopping:
        # A thread of its own: the learner waits, and the signal handlers of the event loop must run meanwhile.
        learning = asyncio.create_task(asyncio.to_thread(_learn, settings, model, report, stop))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({learning, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        stopped.cancel()
        await learning


async def console(settings: Settings, target: str | None, report: Report) -> None:
    """Run the console until a signal. Raises ConfigError: a setting is wrong, or the port is taken."""
    from plaudit.compose.console import console_application, learner_views
    from plaudit.console import server

    with (
        _tracing(settings, "plaudit-console") as tracing,
        contextlib.closing(learner_views(settings)) as learners,
        supervisor.signals() as stopping,
    ):
        async with async_client(settings, target, tracing.provider if tracing else None) as client:
            app = console_application(settings, client, learners, _samples(settings))
            host = settings.console.host
            listening = server.open_port(host, settings.console.port or 0)
            report({"event": "ready", "page": f"http://{address(host, listening.getsockname()[1])}/"})
            await server.serve(app, listening, stopping)


def _samples(settings: Settings) -> dict[str, Samples]:
    """Examples to try in the console, by model: for the demo's model, where the demo's extra is installed."""
    if not settings.model or settings.spec().name != demo.MODEL:
        return {}
    try:
        from plaudit.demo.samples import DemoSamples
    except ModuleNotFoundError:
        return {}
    return {demo.MODEL: DemoSamples()}


def _learn(settings: Settings, model: str, report: Report, stop: threading.Event) -> None:
    from plaudit.compose.learner import open_learner

    registry = LabelledRegistry({"model": model})
    with (
        _tracing(settings, "plaudit-learn") as tracing,
        contextlib.closing(learner_log(settings, model)) as log,
        contextlib.closing(experience_store(settings, model)) as store,
        contextlib.closing(open_learner(settings, model, log, store, registry, tracing)) as learner,
        _metrics_port(settings, registry) as port,
    ):
        collect_garbage_seldom()
        report({"event": "ready", "metrics": address(settings.learner.host, port)})
        learner.run(stop)


@contextlib.contextmanager
def _metrics_port(settings: Settings, registry: CollectorRegistry) -> Iterator[int]:
    host, port = settings.learner.host, settings.learner.metrics_port
    with _naming("learner.metrics_port", host, port):
        server = MetricsServer(host, port, page_of(registry))
    with contextlib.closing(server):
        yield server.port


def _harmless(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Processor of log lines for a terminal, on which what clients have sent must not act."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def log_to_stderr() -> None:
    """Log one line per event to stderr: coloured on a terminal, JSON elsewhere.

    Tracebacks come without the values of variables, as these include content and ids of users.
    """
    terminal = sys.stderr.isatty()
    renderer = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    tracebacks = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info, _harmless] if terminal else [tracebacks]),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
