"""``plaudit serve``, ``learn`` and ``console``: one service, run until a signal says to drain it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

import structlog
from prometheus_client import CollectorRegistry

from plaudit import demo
from plaudit.cli.failures import problem_text
from plaudit.cli.options import ServerOptions, async_client
from plaudit.cli.processes import ports, supervisor
from plaudit.cli.processes.exposition import LabelledRegistry, MetricsPages
from plaudit.cli.processes.stopping import stop_requests
from plaudit.compose.log import learner_log, serving_log
from plaudit.compose.paths import learner_dir
from plaudit.compose.store import experience_store
from plaudit.compose.tracing import service_tracing
from plaudit.core.errors import Conflict, LogDamaged, StoreDamaged, Unavailable
from plaudit.core.host.addresses import reachable as address
from plaudit.core.host.backoff import pause_s
from plaudit.core.host.cores import available_cores
from plaudit.core.host.metrics_server import MetricsServer, page_of
from plaudit.core.settings import Settings, admin_place
from plaudit.core.text.printable import printable

if TYPE_CHECKING:
    from plaudit.adapters.tracing.otel import OtelTracing
    from plaudit.console.ports import Samples
    from plaudit.learner.loop import Learner
    from plaudit.learner.metrics import LearnerMetrics

_M_TRIM_THRESHOLD: Final = -1
_M_ARENA_MAX: Final = -8
"""Parameters of mallopt, from <malloc.h>."""
_MAX_FREE_BYTES: Final = 2**20
_OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000

LEARNER_EXIT_S: Final = 15.0
"""Time that a learner has to end: longer than a step, which is all that it finishes."""
CONSOLE_EXIT_S: Final = 10.0
_DRAIN_MARGIN_S: Final = 5.0
"""Time beyond ``serving.drain_s`` that a server has to end."""
KILL_MARGIN_S: Final = 3.0
"""Time beyond its own after which a child that has not ended is killed."""

logger = structlog.get_logger("plaudit.cli")

Report = Callable[[Mapping[str, Any]], None]
"""Called with ``{"event": "ready", …}`` when the service answers."""


def serving_exit_s(settings: Settings) -> float:
    """Time after which a server that was asked to drain ends in any case."""
    return settings.serving.drain_s + _DRAIN_MARGIN_S


async def serve(settings: Settings, report: Report, *, share_port: bool = False) -> None:
    """Run the inference service until a signal. Raises ConfigError: a setting is wrong, or a port is taken."""
    from plaudit.compose.serving import inference_server

    _limit_free_memory()
    _use_all_descriptors()
    with (
        _tracing(settings, "plaudit-serve") as tracing,
        contextlib.closing(serving_log(settings)) as log,
        stop_requests(serving_exit_s(settings)) as stopping,
    ):
        server = inference_server(settings, log, share_port=share_port, tracing=tracing)
        await asyncio.to_thread(server.start)
        collect_garbage_seldom()
        serving = settings.serving
        metrics = address(serving.metrics_host, server.metrics_port)
        own = admin_place(serving)
        admin = {} if own is None else {"admin": address(own[0], server.admin_port)}
        report({"event": "ready", "address": address(serving.host, server.port), **admin, "metrics": metrics})
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


def _use_all_descriptors() -> None:
    """Raise the limit of open files to what may be: connections of strangers must not use up those of the service."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
        ports.reserved("serving.port", serving.host, serving.port) as port,
        _metrics_of(pages, serving.metrics_host, serving.metrics_port) as metrics_port,
    ):
        own = ["--share-port", "--port", str(port), "--metrics-port", "0"]
        services = [
            supervisor.Service(f"serve-{number}", [*command, *own], restart=True, essential=True)
            for number in range(serving.processes)
        ]

        def listen(event: Mapping[str, Any]) -> None:
            process = str(event["service"]).removeprefix("serve-")
            if event["event"] == "ready":
                pages.add(process, event["metrics"])
                event = {**event, "metrics": address(serving.metrics_host, metrics_port)}
            elif event["event"] == "exited":
                pages.remove(process)
            report(event)

        return await supervisor.run(services, listen, kill_after_s=serving_exit_s(settings) + KILL_MARGIN_S)


@contextlib.contextmanager
def _metrics_of(pages: MetricsPages, host: str, port: int) -> Iterator[int]:
    with ports.named("serving.metrics_port", host, port):
        server = MetricsServer(host, port, pages.page, pages.problem)
    with contextlib.closing(server):
        yield server.port


async def learn(settings: Settings, model: str, report: Report) -> None:
    """Run the learner of one model until a signal. Raises ConfigError: a setting is wrong, or the port is taken."""
    stop = threading.Event()
    with stop_requests(LEARNER_EXIT_S) as stopping:
        # A thread of its own: the learner waits, and the signal handlers of the event loop must run meanwhile.
        learning = asyncio.create_task(asyncio.to_thread(_learn, settings, model, report, stop))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({learning, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        stopped.cancel()
        await learning


async def console(settings: Settings, options: ServerOptions, report: Report) -> None:
    """Run the console until a signal. Raises ConfigError: a setting is wrong, or the port is taken."""
    from plaudit.compose.console import console_application, learner_views
    from plaudit.console import server

    with (
        _tracing(settings, "plaudit-console") as tracing,
        contextlib.closing(learner_views(settings)) as learners,
        stop_requests(CONSOLE_EXIT_S) as stopping,
    ):
        async with async_client(settings, options, tracing.provider if tracing else None) as client:
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
    from plaudit.learner.metrics import LearnerMetrics

    registry = LabelledRegistry({"model": model})
    # The port first: where another learner has it, nothing of its is touched.
    with (
        _metrics_port(settings, registry) as port,
        _tracing(settings, "plaudit-learn") as tracing,
        contextlib.ExitStack() as opened,
    ):
        metrics = LearnerMetrics(registry)
        learner = _opened(settings, model, metrics, tracing, report, stop, opened)
        if learner is not None:
            collect_garbage_seldom()
            report({"event": "ready", "metrics": address(settings.learner.host, port)})
            learner.run(stop)


def _opened(
    settings: Settings,
    model: str,
    metrics: LearnerMetrics,
    tracing: OtelTracing | None,
    report: Report,
    stop: threading.Event,
    opened: contextlib.ExitStack,
) -> Learner | None:
    """The learner, once log and store can be opened; None if it was stopped before. ``opened`` closes it.

    Raises:
        PlauditError: something that no waiting mends, such as a store of another release.
    """
    from plaudit.compose.learner import open_learner
    from plaudit.learner.status import STATUS, StatusFile

    status = StatusFile(learner_dir(settings, model) / STATUS)
    failures = 0
    while not stop.is_set():
        try:
            with contextlib.ExitStack() as opening:
                log = opening.enter_context(contextlib.closing(learner_log(settings, model)))
                store = opening.enter_context(contextlib.closing(experience_store(settings, model)))
                learner = open_learner(settings, model, log, store, metrics, tracing)
                opening.enter_context(contextlib.closing(learner))
                opened.push(opening.pop_all())
                return learner
        except (LogDamaged, StoreDamaged, Conflict) as problem:
            status.write_problem(problem_text(problem), time.time(), None)
            raise
        except (Unavailable, OSError) as problem:
            failures += 1
            again_in_s = pause_s(failures)
            text = problem_text(problem)
            metrics.failures.inc()
            metrics.blocked.set(1.0)
            status.write_problem(text, time.time(), again_in_s)
            logger.error("waits", problem=text, again_in_s=again_in_s)
            report({"event": "waiting", "problem": text, "again_in_s": again_in_s})
            stop.wait(again_in_s)
    return None


@contextlib.contextmanager
def _metrics_port(settings: Settings, registry: CollectorRegistry) -> Iterator[int]:
    host, port = settings.learner.host, settings.learner.metrics_port
    with ports.named("learner.metrics_port", host, port):
        server = MetricsServer(host, port, page_of(registry), lambda: _learner_problem(registry))
    with contextlib.closing(server):
        yield server.port


def _learner_problem(registry: CollectorRegistry) -> str | None:
    blocked = [
        sample.value
        for family in registry.restricted_registry(["plaudit_learner_blocked"]).collect()
        for sample in family.samples
    ]
    if any(blocked):
        return "the learner waits for its log, its store or its disk; `plaudit doctor` says what is wrong"
    return None


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
        logger_factory=structlog.PrintLoggerFactory(_LossyStream(sys.stderr)),  # type: ignore[arg-type]  # it only prints
    )


class _LossyStream:
    """Stream of log lines that are lost, and do no harm, where nobody takes them: a terminal or pipe that is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
