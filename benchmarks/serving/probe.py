"""A few polite users of a server that is flooded: each waits for its answer, and a moment after a refusal.

    python -m benchmarks.serving.probe ADDRESS METHOD REQUESTS --seconds S --users N

The flooding client is busy, so what it sees of latencies is partly its own; this process does little and has
precedence, so what it sees is the server's. It has a connection of its own and prints the same JSON as load.py.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Final

import grpc

from benchmarks.serving.load import Call, load_parser, read_requests, summary

_PAUSE_S: Final = 0.02
"""Pause after a refusal; the server's hint is 50 ms."""


def main() -> None:
    parser = load_parser()
    parser.add_argument("--users", type=int, required=True)
    options = parser.parse_args()
    requests = read_requests(options.requests)
    calls: list[Call] = []
    began_cpu_s = time.process_time()
    with grpc.insecure_channel(options.address) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(options.method)
        until_s = time.monotonic() + options.seconds
        users = [
            threading.Thread(target=_user, args=(method, requests[number % len(requests)], until_s, calls))
            for number in range(options.users)
        ]
        for user in users:
            user.start()
        for user in users:
            user.join()
    print(json.dumps(summary(calls, time.process_time() - began_cpu_s)))


def _user(method: Any, request: bytes, until_s: float, calls: list[Call]) -> None:
    while (began_s := time.monotonic()) < until_s:
        try:
            method(request, timeout=60.0)
            calls.append((began_s, time.monotonic() - began_s, "OK", ""))
        except grpc.RpcError as error:
            calls.append((began_s, time.monotonic() - began_s, error.code().name, ""))
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
