"""Cost of metrics: one service, whose metrics are switched off and on while it serves.

The cost is smaller than what one run of a service differs from the next by: where its objects lie in memory, what else
the machine does. So it is measured within one process, in short slices: each slice is the same number of requests, with
metrics or without, and what it costs is the processor time that the process used meanwhile (user and system, in ns).
Slices come in pairs, one of each kind in random order, so that what drifts hits both; a pair says by how much more of
the processor the requests needed with metrics. Reported is the mean over the pairs without the tenth at either end
(Tukey, McLaughlin 1963: trimmed means and their standard error), and what must keep below the goal is the upper end of
its 95 % interval.

As a check, the same is measured from below: all that is counted for one request, in a loop of its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import grpc
import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.measure import Measure
from benchmarks.serving.processes import CLIENT_CORE, SERVER_CORE
from plaudit.core.wire import contents_to_wire
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.v1 import prediction_pb2
from support.builders import tiny_content
from support.deployment import deployed

GOAL_PERCENT: Final = 2.0
CONCURRENCY: Final = 8
PAIRS: Final = 400
SLICE: Final = 80
"""Requests; some of a slice's time is what the switch disturbs, so it must not be much shorter."""
WARM: Final = 16
"""Requests after the switch, before a slice begins."""
TRIMMED: Final = 0.1
METHOD: Final = "/plaudit.v1.PredictionService/Predict"


def run(*, quick: bool) -> list[Measure]:
    pairs = 10 if quick else PAIRS
    rng = random.Random(0)
    on_us: list[float] = []
    off_us: list[float] = []
    with on_core(CLIENT_CORE), tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as served:
        first = 100 if quick else 2_000
        served.send(first)
        for _ in range(pairs):
            for on in rng.sample([True, False], 2):
                (on_us if on else off_us).append(served.slice_us(on))
        calls, predictions = served.counted()
    sent = first + pairs * (WARM + SLICE)
    if calls != sent or predictions != sent:
        raise RuntimeError(
            f"{sent} requests were sent with metrics; counted are {calls} calls, {predictions} predictions"
        )
    more = 100 * (np.array(on_us) / np.array(off_us) - 1)
    mean, error = trimmed_mean(more)
    with_us, without_us = float(np.median(on_us)), float(np.median(off_us))
    counting_us = _counting_us(1_000 if quick else 50_000)
    return [
        Measure(
            "metrics, share of the processor time of a request, upper end of 95 %",
            mean + 1.96 * error,
            GOAL_PERCENT,
            "at_most",
            note=f"{mean:.2f} ± {1.96 * error:.2f} of {pairs} pairs of {SLICE} requests, {CONCURRENCY} at once; "
            f"medians {with_us:.0f} µs with, {without_us:.0f} without",
            unit="%",
        ),
        Measure("metrics, share of the processor time of a request", mean, unit="%"),
        Measure(
            "counting alone, of a request in a batch of its own, µs",
            counting_us,
            note=f"{100 * counting_us / without_us:.2f} % of the processor time of a request",
        ),
    ]


def trimmed_mean(values: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """The mean without the tenth at either end, and its standard error from the winsorised variance."""
    ordered = np.sort(np.asarray(values, np.float64))
    cut = int(TRIMMED * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    winsorised = np.clip(ordered, kept[0], kept[-1])
    error = winsorised.std(ddof=1) / ((1 - 2 * TRIMMED) * len(ordered) ** 0.5)
    return float(kept.mean()), float(error)


class _Served:
    """A service and its only client."""

    def __init__(self, process: subprocess.Popen[str], method: Any, requests: Sequence[bytes], metrics: str) -> None:
        self._process = process
        self._method = method
        self._requests = requests
        self._metrics = metrics

    def counted(self) -> tuple[float, float]:
        """Calls and predictions that its metrics show: those that were sent while they were on, and no others."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics") as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        calls, predictions = (
            sum(s.value for f in families for s in f.samples if s.name == f"plaudit_serving_{name}_total")
            for name in ("requests", "predictions")
        )
        return calls, predictions

    def slice_us(self, on: bool) -> float:
        """Processor time of the service for a request, with or without metrics, µs."""
        self._used_ns(on)
        self.send(WARM)
        began_ns = self._used_ns(on)
        self.send(SLICE)
        return (self._used_ns(on) - began_ns) / SLICE / 1e3

    def send(self, n: int) -> None:
        """Send n requests, a few at once; return when all are answered."""
        lock, ended = threading.Lock(), threading.Event()
        sent, answered = 0, 0

        def following() -> None:
            nonlocal sent
            with lock:
                if sent == n:
                    return
                request = self._requests[sent % len(self._requests)]
                sent += 1
            self._method.future(request, timeout=60).add_done_callback(done)

        def done(call: Any) -> None:
            nonlocal answered
            call.result()
            following()
            with lock:
                answered += 1
                if answered == n:
                    ended.set()

        for _ in range(CONCURRENCY):
            following()
        if not ended.wait(120):
            raise RuntimeError(f"{answered} of {n} requests were answered within two minutes")

    def _used_ns(self, on: bool) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("on\n" if on else "off\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def _served(folder: Path) -> Iterator[_Served]:
    config = deployed(folder)
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "benchmarks.rollout.served", str(config)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            requests = [a_request(seed) for seed in range(20)]
            with grpc.insecure_channel(ready["address"]) as channel:
                yield _Served(process, channel.unary_unary(METHOD), requests, ready["metrics"])
        finally:
            process.terminate()


@contextmanager
def on_core(core: str) -> Iterator[None]:
    """Pin this process to ``core`` until the block ends, so that the client does not share the service's."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(core)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def a_request(seed: int) -> bytes:
    content = contents_to_wire(tiny_content(seed))
    return prediction_pb2.PredictRequest(content=content, user_id=f"user {seed}").SerializeToString()


def _counting_us(times: int) -> float:
    """Processor time of everything that is counted for one request, µs."""
    metrics = ServingMetrics(CollectorRegistry())
    model: Any = _Model(manifest=SimpleNamespace(version=1, spec=SimpleNamespace(name="tiny")))
    ok = metrics.requests.labels("PredictionService/Predict", "OK")
    seconds = metrics.request_seconds.labels("PredictionService/Predict")
    began_s = time.process_time()
    for number in range(times):
        began_call_s = time.perf_counter()
        metrics.versions.of(model).decode_seconds.observe(time.perf_counter() - began_call_s)
        counted = metrics.versions.of(model)
        counted.batch_requests.observe(1)
        counted.inference_seconds.observe(time.perf_counter() - began_call_s)
        metrics.versions.of(model).queue_seconds.observe(0.0002)
        metrics.versions.of(model).answered(0.003, number % 10 == 0)
        metrics.decisions_logged.inc(1)
        ok.inc()
        seconds.observe(time.perf_counter() - began_call_s)
    return 1e6 * (time.process_time() - began_s) / times


@dataclass(eq=False)
class _Model:
    """As much of a version as its metrics look at."""

    manifest: SimpleNamespace
