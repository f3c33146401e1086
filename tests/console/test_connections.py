"""Connections whose request never arrives end, and take nobody else's place."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from plaudit.console import connections
from plaudit.console.server import open_port, serve

WAIT_S = 60.0
PLACES = 4


async def _length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server with a few places that answers the length of a request's body."""
    monkeypatch.setattr(connections, "MAX_CONSOLE_CONNECTIONS", PLACES)
    listening = open_port("127.0.0.1", 0)
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()
    app = Starlette(routes=[Route("/", _length, methods=["GET", "POST"])])
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(app, listening, stopping),))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    connected.sendall(sent)
    return connected


def ended(connected: socket.socket) -> bool:
    """Waits for the server to close the connection without an answer."""
    try:
        return connected.recv(1) == b""
    except ConnectionResetError:
        return True


def ask(port: int, body: bytes = b"") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request("POST", "/", body)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


HALF: dict[str, bytes] = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half the headers": b"GET / HTTP/1.1\r\nhost: x\r\n",
    "after an answer": b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT",
}


@pytest.mark.parametrize("sent", HALF.values(), ids=HALF)
def test_a_request_that_does_not_arrive_ends_its_connection(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Slowloris, as in https://github.com/Kludex/uvicorn/issues/157."""
    monkeypatch.setattr(connections, "CONSOLE_REQUEST_S", 0.05)
    with connect(port, sent) as half:
        while piece := half.recv(4096):
            assert b"200 OK" in piece or b"200 OK" not in sent


def test_a_body_that_does_not_arrive_ends_its_connection(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONSOLE_CALL_S", 0.05)
    with connect(port, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc") as half:
        assert ended(half)


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_half_open_connections_refuse_nobody(port: int, sent: bytes) -> None:
    with ExitStack() as stack:
        halves = [stack.enter_context(connect(port, sent)) for _ in range(5 * PLACES)]
        assert ask(port, b"12345") == "5"
        assert ended(halves[0]), "the one that waited longest gave way"


def test_where_all_have_a_request_the_new_connection_is_closed(port: int) -> None:
    begun = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    with ExitStack() as stack:
        working = [stack.enter_context(connect(port, begun)) for _ in range(PLACES)]
        for each in working:
            assert each.recv(4096).startswith(b"HTTP/1.1 100"), "its body is waited for"
        assert ended(stack.enter_context(connect(port)))
        for each in working:
            each.sendall(b"abc")
            assert b"200 OK" in each.recv(4096)


def test_an_honest_connection_asks_again_and_again(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    for size in (0, 3, 70_000, 1):
        connection.request("POST", "/", bytes(size))
        assert connection.getresponse().read() == str(size).encode()
    connection.close()
