"""HTTP server of one metrics page, for a process that has better things to do, and of what orchestrators ask.

``/metrics`` is the page; ``/healthz`` answers while the process lives; ``/readyz`` answers 200 while it can do its
work, and 503 with the reason while it cannot. One thread, whatever connects: a request has a few seconds to arrive and
its answer as long to be taken, few are answered at once, and of the connections that have not sent a request the oldest
gives way. Knows no metric.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import parse_qs, urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from plaudit.core.host.addresses import listening_socket
from plaudit.core.limits import MAX_METRICS_ANSWERS, MAX_METRICS_CONNECTIONS, METRICS_TIMEOUT_S

logger = structlog.get_logger(__name__)

_MAX_REQUEST_BYTES: Final = 16 * 1024
_MAX_NAMES: Final = 1_000
_PAUSE_S: Final = 0.1
_COMPRESSED_FROM_BYTES: Final = 1024

Page = Callable[[str, Sequence[str]], tuple[str, bytes]]
"""Accept header, names of the metrics that are wanted (none: all) → content type and page."""
Problem = Callable[[], str | None]
"""Reason why the process cannot do its work; None while it can."""


def page_of(registry: CollectorRegistry) -> Page:
    """The page of one registry, in the format that the scraper prefers."""

    def page(accept: str, names: Sequence[str]) -> tuple[str, bytes]:
        try:
            encode, content_type = choose_encoder(accept)
        except Exception:  # a version that is no number, and whatever else the library does not expect of a header
            encode, content_type = choose_encoder("")
        shown = registry.restricted_registry(names) if names else registry
        return content_type, encode(shown)

    return page


class MetricsServer:
    """Serves from its making until ``close``.

    Args:
        port: 0 picks one.
        problem: asked for each ``/readyz``, on a thread of its own.

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """

    def __init__(self, host: str, port: int, page: Page, problem: Problem) -> None:
        self._page = page
        self._problem = problem
        self._socket = listening_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._socket.setblocking(False)
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._pool = ThreadPoolExecutor(MAX_METRICS_ANSWERS, thread_name_prefix="metrics-page")
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nothing more, and free the port."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop), contextlib.closing(self._socket):
            self._loop.run_until_complete(self._serve())
        self._pool.shutdown(cancel_futures=True)

    async def _serve(self) -> None:
        self._answers = asyncio.Semaphore(MAX_METRICS_ANSWERS)
        self._loop.add_reader(self._socket, self._accept)
        await self._stopping.wait()
        self._loop.remove_reader(self._socket)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for connected in self._connections.values():
            connected.close()

    def _accept(self) -> None:
        try:
            connected, _ = self._socket.accept()
        except BlockingIOError:  # whoever it was has left
            return
        except OSError:  # no descriptor is free
            self._loop.remove_reader(self._socket)
            self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._socket, self._accept)
            return
        if len(self._waiting) >= MAX_METRICS_CONNECTIONS:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._connected(connected))
        self._connections[task] = connected
        self._waiting[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._waiting.pop(task, None)
        self._connections.pop(task).close()

    async def _connected(self, connected: socket.socket) -> None:
        """One request and its answer. Whoever is gone, silent for too long, or gives way to another gets none."""
        with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                request = await self._request(connected)
            task = asyncio.current_task()
            assert task is not None
            self._waiting.pop(task, None)
            if not request:
                return
            async with self._answers:
                try:
                    answer = await self._answer(request)
                except Exception:
                    logger.exception("metrics_page_failed")
                    answer = _response("500 Internal Server Error", {}, b"")
                async with asyncio.timeout(METRICS_TIMEOUT_S):
                    await self._loop.sock_sendall(connected, answer)

    async def _request(self, connected: socket.socket) -> str:
        """Head of the request; "" if there is none, or it is too long."""
        connected.setblocking(False)
        head = bytearray()
        while b"\r\n\r\n" not in head:
            piece = await self._loop.sock_recv(connected, _MAX_REQUEST_BYTES)
            head += piece
            if not piece or len(head) > _MAX_REQUEST_BYTES:
                return ""
        return head.decode("latin-1")

    async def _answer(self, request: str) -> bytes:
        first, *lines = request.split("\r\n")
        method, _, rest = first.partition(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if method != "GET":
            return _response("405 Method Not Allowed", {"allow": "GET"}, b"")
        try:
            url = urlsplit(rest.partition(" ")[0])
            names = parse_qs(url.query, max_num_fields=_MAX_NAMES).get("name[]", [])
        except ValueError as error:
            return _said("400 Bad Request", f"the address cannot be read: {str(error)[:80]}")
        if url.path == "/healthz":
            return _said("200 OK", "alive")
        if url.path == "/readyz":
            problem = await self._loop.run_in_executor(self._pool, self._problem)
            return _said("200 OK", "ready") if problem is None else _said("503 Service Unavailable", problem)
        if url.path not in ("/", "/metrics"):
            return _said("404 Not Found", "there are /metrics, /healthz and /readyz")
        content_type, body = await self._loop.run_in_executor(self._pool, self._page, headers.get("accept", ""), names)
        answered = {"content-type": content_type}
        if "gzip" in headers.get("accept-encoding", "") and len(body) >= _COMPRESSED_FROM_BYTES:
            answered["content-encoding"] = "gzip"
            body = await self._loop.run_in_executor(self._pool, lambda: gzip.compress(body, compresslevel=1))
        return _response("200 OK", answered, body)


def _said(status: str, sentence: str) -> bytes:
    return _response(status, {"content-type": "text/plain; charset=utf-8"}, f"{sentence}\n".encode())


def _response(status: str, headers: dict[str, str], body: bytes) -> bytes:
    every = {**headers, "content-length": str(len(body)), "connection": "close"}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in every.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
