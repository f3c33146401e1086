"""An honest client beside idle streams and half-open connections: its failures, and its latency as a ratio."""

from __future__ import annotations

import contextlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.attacks.served import Served, served
from benchmarks.measure import Measure
from plaudit.client import Client, ClientError
from plaudit.v1 import feedback_pb2_grpc

RATIO_GOAL: Final = 2.0
MEMORY_GOAL_MIB: Final = 64.0
STREAMS: Final = 128
CONNECTIONS: Final = 1_000
CONTENT: Final = {"question": "which animal"}


def run(*, quick: bool) -> list[Measure]:
    seconds = 1.0 if quick else 10.0
    attacks: dict[str, Callable[[Served], contextlib.AbstractContextManager[None]]] = {
        f"{STREAMS} idle streams": _idle_streams,
        f"{STREAMS} calls without a message": _half_calls,
        f"{CONNECTIONS} half-open connections to gRPC": lambda server: _connections(server.address, b""),
        f"{CONNECTIONS} half requests to metrics": lambda server: _connections(server.metrics, b"GET / HTTP/1.1\r\n"),
    }
    measures = []
    for name, attack in attacks.items():
        with served() as server:
            _honest(server, seconds / 4)
            alone_ms, failed = _honest(server, seconds)
            memory_mib = server.memory_mib()
            with attack(server):
                beside_ms, failed_beside = _honest(server, seconds)
                server.scrape()
                grown_mib = server.memory_mib() - memory_mib
        note = f"{beside_ms:.2f} ms, {alone_ms:.2f} ms alone"
        measures += [
            Measure(f"{name}: failed calls", failed + failed_beside, 0, "at_most"),
            Measure(f"{name}: p99 beside / alone", beside_ms / alone_ms, RATIO_GOAL, "at_most", note=note),
            Measure(f"{name}: memory", grown_mib, MEMORY_GOAL_MIB, "at_most", unit="MiB"),
        ]
    return measures


def _honest(server: Served, seconds: float) -> tuple[float, int]:
    """The 99th percentile of a prediction, ms, and the number of calls that failed; health is asked for too."""
    took_ms, failed, ends_s = [], 0, time.monotonic() + seconds
    with Client(server.address) as client, _channel(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            try:
                client.predict(CONTENT)
                took_ms.append(1e3 * (time.monotonic() - began_s))
                health.Check(health_pb2.HealthCheckRequest(), timeout=10.0)
            except (ClientError, grpc.RpcError) as error:
                failed += 1
                print(error, file=sys.stderr)
    return statistics.quantiles(took_ms, n=100)[98], failed


def _channel(server: Served) -> grpc.Channel:
    """A connection of its own."""
    return grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])


def _idle_streams(server: Served) -> contextlib.AbstractContextManager[None]:
    return _silent_calls(server, lambda channel: feedback_pb2_grpc.FeedbackServiceStub(channel).StreamFeedback)


def _half_calls(server: Served) -> contextlib.AbstractContextManager[None]:
    def predict(channel: Any) -> Callable[[Iterator[Any]], Any]:
        begin: Callable[[Iterator[Any]], Any] = channel.stream_unary("/plaudit.v1.PredictionService/Predict").future
        return begin

    return _silent_calls(server, predict)


@contextlib.contextmanager
def _silent_calls(server: Served, method: Callable[[grpc.Channel], Callable[[Iterator[Any]], Any]]) -> Iterator[None]:
    """Calls on one connection whose client sends no message."""
    over = threading.Event()

    def nothing() -> Iterator[Any]:
        over.wait()
        yield from ()

    with _channel(server) as channel:
        begin = method(channel)
        calls = [begin(nothing()) for _ in range(STREAMS)]
        time.sleep(0.5)
        yield
        over.set()
        for call in calls:
            call.cancel()


@contextlib.contextmanager
def _connections(address: str, sent: bytes) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            half = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            half.sendall(sent)
        yield
