"""Load generator: sends ready bytes, hardly reads the answers, prints rates and latencies as JSON.

    python -m benchmarks.serving.load ADDRESS METHOD REQUESTS --seconds S --concurrency N      closed loop
    python -m benchmarks.serving.load ADDRESS METHOD REQUESTS --seconds S --per-s R            open loop

REQUESTS is a file of length-prefixed messages, sent in turn. Times are on the clock of ``time.monotonic``, which all
processes of a machine share. SIGINT ends the load early. With ``--each`` every call is listed as
[began_s, took_s, status code, model version], the version being that of an answer to ModelInfer.

Calls are futures whose callback sends the next one: of gRPC's ways in Python the one that costs the client least.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

Call = tuple[float, float, str, str]
_LENGTH: Final = struct.Struct("<I")
_TIMEOUT_S: Final = 60.0
_OK: Final = grpc.StatusCode.OK


def write_requests(path: Path, requests: list[bytes]) -> None:
    path.write_bytes(b"".join(_LENGTH.pack(len(request)) + request for request in requests))


def read_requests(path: Path) -> list[bytes]:
    data, requests, at = path.read_bytes(), [], 0
    while at < len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + size
        requests.append(data[at - size : at])
    return requests


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """Sends ``requests`` in turn over one connection.

    Args:
        version: of an answer; what calls are listed with.

    Attributes:
        ending: no further request is sent once it is set.
        calls: ended calls, each as (start, duration, status, version).
    """

    def __init__(self, method: Any, requests: list[bytes], version: Callable[[bytes], str] = lambda answer: "") -> None:
        self.ending = threading.Event()
        self.calls: list[Call] = []
        self._method = method
        self._requests = requests
        self._version = version
        self._sent = 0
        self._open = 0
        self._lock = threading.Lock()
        self._all_ended = threading.Condition(self._lock)

    def closed_loop(self, concurrency: int, seconds: float) -> None:
        """Each of ``concurrency`` users sends when it has its answer, until ``seconds`` are over."""
        until_s = time.monotonic() + seconds

        def again() -> None:
            if time.monotonic() < until_s and not self.ending.is_set():
                self._send(again)

        for _ in range(concurrency):
            again()
        self._wait()

    def open_loop(self, per_s: float, seconds: float) -> None:
        """Sends at even intervals, whatever comes back; late, it catches up."""
        began_s = time.monotonic()
        for number in range(round(per_s * seconds)):
            wait_s = began_s + number / per_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            if self.ending.is_set():
                break
            self._send(lambda: None)
        self._wait()

    def _send(self, then: Callable[[], None]) -> None:
        with self._lock:
            self._open += 1
            request = self._requests[self._sent % len(self._requests)]
            self._sent += 1
        began_s = time.monotonic()

        def ended(call: Any) -> None:
            took_s, code = time.monotonic() - began_s, call.code()
            version = self._version(call.result()) if code is _OK else ""
            self.calls.append((began_s, took_s, code.name, version))
            then()
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._all_ended.notify()

        self._method.future(request, timeout=_TIMEOUT_S).add_done_callback(ended)

    def _wait(self) -> None:
        with self._lock:
            self._all_ended.wait_for(lambda: not self._open)


def _version_of(answer: bytes) -> str:
    """A ModelInferResponse begins with name and version, each as tag, length and text; parsing all would cost more."""
    at = 2 + answer[1]
    return answer[at + 2 : at + 2 + answer[at + 1]].decode()


def summary(calls: list[Call], cpu_s: float) -> dict[str, Any]:
    answered = [call for call in calls if call[2] == "OK"]
    refused = [call for call in calls if call[2] == "RESOURCE_EXHAUSTED"]
    begins = [began for began, _, _, _ in calls]
    span_s = max(began + took for began, took, _, _ in calls) - min(begins)
    return {
        "per_s": len(answered) / span_s,
        "sent_per_s": len(calls) / max(max(begins) - min(begins), 1e-9),
        "codes": Counter(code for _, _, code, _ in calls),
        "answered_ms": _percentiles(answered),
        "refused_ms": _percentiles(refused),
        "client_busy": cpu_s / span_s,
    }


def _percentiles(calls: list[Call]) -> dict[str, float]:
    if not calls:
        return {}
    took_ms = np.array([took for _, took, _, _ in calls]) * 1e3
    return {f"p{p}": float(np.percentile(took_ms, p)) for p in (50, 95, 99, 100)}


def load_parser() -> argparse.ArgumentParser:
    """Arguments of every load: the server, the method, the requests, for how long."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("method")
    parser.add_argument("requests", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    return parser


def main() -> None:
    parser = load_parser()
    parser.add_argument("--concurrency", type=int, default=0)
    parser.add_argument("--per-s", type=float, default=0.0)
    parser.add_argument("--warm", type=float, default=0.5)
    parser.add_argument("--each", action="store_true", help="list every call")
    parser.add_argument("--server-pid", type=int, default=os.getpid(), help="say what it used of its processor a call")
    options = parser.parse_args()
    requests = read_requests(options.requests)
    with grpc.insecure_channel(options.address) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(options.method)
        method(requests[0], wait_for_ready=True, timeout=_TIMEOUT_S)
        if options.warm:
            Client(method, requests).closed_loop(options.concurrency or 1, options.warm)
        client = Client(method, requests, _version_of) if options.each else Client(method, requests)
        signal.signal(signal.SIGINT, lambda *_: client.ending.set())
        own_s, server_s = time.process_time(), cpu_s(options.server_pid)
        if options.concurrency:
            client.closed_loop(options.concurrency, options.seconds)
        else:
            client.open_loop(options.per_s, options.seconds)
        own_s, server_s = time.process_time() - own_s, cpu_s(options.server_pid) - server_s
    found = summary(client.calls, own_s) | {"server_cpu_us": server_s / len(client.calls) * 1e6}
    print(json.dumps(found | ({"calls": client.calls} if options.each else {})))


if __name__ == "__main__":
    main()
