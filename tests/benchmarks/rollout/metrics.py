"""What metrics cost: the same service with metrics and with metrics that count nothing, turn about.

Told as processor time a request, which other work on the machine hardly changes, and as the rate that follows from it
on a core that does nothing else.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.measure import Measure
from benchmarks.serving.load import write_requests
from benchmarks.serving.processes import CLIENT_CORE, SERVER_CORE, program
from benchmarks.serving.processes import run as on_core
from builders import tiny_content
from deployment import deployed
from plaudit.core.wire import contents_to_wire
from plaudit.v1 import prediction_pb2

GOAL_PERCENT: Final = 2.0
CONCURRENCY: Final = 8
METHOD: Final = "/plaudit.v1.PredictionService/Predict"


def run(*, quick: bool) -> list[Measure]:
    rounds, seconds = (2, 1.0) if quick else (8, 4.0)
    cpu_us: dict[str, list[float]] = {"": [], "mute": []}
    rates: dict[str, list[float]] = {"": [], "mute": []}
    with tempfile.TemporaryDirectory() as folder:
        config = deployed(Path(folder))
        requests = Path(folder) / "requests"
        write_requests(requests, [_request(seed) for seed in range(20)])
        for turn in range(rounds):
            for kind in sorted(cpu_us, reverse=bool(turn % 2)):
                command = ["benchmarks.rollout.served", str(config), *([kind] if kind else [])]
                with program(command, SERVER_CORE) as server:
                    found = on_core(
                        "load",
                        server.address,
                        METHOD,
                        requests,
                        *("--seconds", seconds, "--concurrency", CONCURRENCY, "--server-pid", server.pid),
                        core=CLIENT_CORE,
                    )
                cpu_us[kind].append(found["server_cpu_us"])
                rates[kind].append(found["per_s"])
    with_us, without_us = (statistics.median(cpu_us[kind]) for kind in ("", "mute"))
    with_rate, without_rate = (statistics.median(rates[kind]) for kind in ("", "mute"))
    each = [100 * (ours / theirs - 1) for ours, theirs in zip(cpu_us[""], cpu_us["mute"], strict=True)]
    error = statistics.stdev(each) / len(each) ** 0.5
    return [
        Measure(
            "metrics, share of the processor time of a request, %",
            statistics.mean(each),
            GOAL_PERCENT,
            "at_most",
            note=f"± {error:.1f} (standard error of {rounds} pairs); {with_us:.0f} µs with, {without_us:.0f} without",
        ),
        Measure(
            "metrics, share of the rate, %",
            100 * (without_rate - with_rate) / without_rate,
            note=f"{with_rate:.0f}/s with, {without_rate:.0f}/s without, {CONCURRENCY} at once",
        ),
    ]


def _request(seed: int) -> bytes:
    content = contents_to_wire(tiny_content(seed))
    return prediction_pb2.PredictRequest(content=content, user_id=f"user {seed}").SerializeToString()
