"""The client: sends ready bytes, reads as little as it can, prints what it saw as JSON.

    python -m benchmarks.serving.load ADDRESS METHOD REQUESTS --seconds S --concurrency N      closed loop
    python -m benchmarks.serving.load ADDRESS METHOD REQUESTS --seconds S --per-s R            open loop

REQUESTS is a file of length-prefixed messages, sent in turn. Times are on the clock of ``time.monotonic``, which all
processes of a machine share. SIGINT ends a closed loop early. With ``--each`` every call is listed as [began_s, took_s, status code].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np

Call = tuple[float, float, str]


def write_requests(path: Path, requests: list[bytes]) -> None:
    path.write_bytes(b"".join(struct.pack("<I", len(request)) + request for request in requests))


def read_requests(path: Path) -> list[bytes]:
    data, requests, at = path.read_bytes(), [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        requests.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return requests


async def closed_loop(
    call: Any, requests: list[bytes], concurrency: int, seconds: float, stopping: asyncio.Event
) -> list[Call]:
    """Each of ``concurrency`` users sends when it has its answer; until the time is over or ``stopping`` is set."""
    calls: list[Call] = []
    until_s = time.monotonic() + seconds

    async def user(number: int) -> None:
        at = number
        while (began_s := time.monotonic()) < until_s and not stopping.is_set():
            calls.append(await _timed(call, requests[at % len(requests)], began_s))
            at += concurrency

    await asyncio.gather(*(user(number) for number in range(concurrency)))
    return calls


async def open_loop(call: Any, requests: list[bytes], per_s: float, seconds: float) -> list[Call]:
    """Sends at even intervals, whatever comes back."""
    calls: list[Call] = []
    tasks: set[asyncio.Task[None]] = set()
    began_s = time.monotonic()

    async def one(at: int) -> None:
        calls.append(await _timed(call, requests[at % len(requests)], time.monotonic()))

    for at in range(round(per_s * seconds)):
        wait_s = began_s + at / per_s - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        elif at % 8 == 0:
            await asyncio.sleep(0)
        task = asyncio.create_task(one(at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return calls


async def _timed(call: Any, request: bytes, began_s: float) -> Call:
    try:
        await call(request, timeout=60.0)
    except grpc.aio.AioRpcError as error:
        return began_s, time.monotonic() - began_s, error.code().name
    return began_s, time.monotonic() - began_s, "OK"


def summary(calls: list[Call]) -> dict[str, Any]:
    answered = [call for call in calls if call[2] == "OK"]
    refused = [call for call in calls if call[2] == "RESOURCE_EXHAUSTED"]
    span_s = max(began + took for began, took, _ in calls) - min(began for began, _, _ in calls)
    return {
        "per_s": len(answered) / span_s,
        "codes": Counter(code for _, _, code in calls),
        "answered_ms": _percentiles(answered),
        "refused_ms": _percentiles(refused),
    }


def _percentiles(calls: list[Call]) -> dict[str, float]:
    if not calls:
        return {}
    took_ms = np.array([took for _, took, _ in calls]) * 1e3
    return {f"p{p}": float(np.percentile(took_ms, p)) for p in (50, 95, 99)}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("method")
    parser.add_argument("requests", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--concurrency", type=int, default=0)
    parser.add_argument("--per-s", type=float, default=0.0)
    parser.add_argument("--warm", type=float, default=0.5)
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    requests = read_requests(options.requests)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopping.set)
    async with grpc.aio.insecure_channel(options.address) as channel:
        call = channel.unary_unary(options.method)
        await call(requests[0], wait_for_ready=True, timeout=60.0)
        await closed_loop(call, requests, options.concurrency or 1, options.warm, stopping)
        if options.concurrency:
            calls = await closed_loop(call, requests, options.concurrency, options.seconds, stopping)
        else:
            calls = await open_loop(call, requests, options.per_s, options.seconds)
    print(json.dumps(summary(calls) | ({"calls": calls} if options.each else {})))


if __name__ == "__main__":
    asyncio.run(main())
