"""Share of the raw ONNX Runtime rate that `ModelInfer` reaches, by model and concurrency; and what two cores give.

In each round the raw rate of the best batch size is measured on the server's core before and after the service, and
the share is of their mean: the machine drifts. Medians of the rounds.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.learning.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.models import SIZES, deploy, exported
from benchmarks.serving.requests import INFER, infer_requests

SHARES = {"small": {1: 0.45, 8: 0.68, 32: 0.75}, "base": {1: 0.80, 8: 0.90, 32: 0.95}}
TAIL = 1.6
TWO_CORES = 1.7


def run(*, quick: bool) -> list[Measure]:
    rounds, seconds, raw_s = (1, 1.0, 0.3) if quick else (3, 4.0, 1.0)
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        deploy(data_dir, *SIZES)
        requests = {name: infer_requests(data_dir / f"{name}.requests", name) for name in SIZES}
        seen: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        two_cores = []
        for _ in range(rounds):
            for name in SIZES:
                before = _raw(name, raw_s)
                with processes.serving(data_dir) as server:
                    of_round = {n: _served(server, requests[name], n, seconds) for n in SHARES[name]}
                raw = mean([before, _raw(name, raw_s)])
                for n, found in of_round.items():
                    seen[name, n].append(found | {"raw_per_s": raw})
            with processes.serving(data_dir, core=processes.BOTH) as server:
                two_cores.append(_served(server, requests["base"], 32, seconds)["per_s"])
    return _measures(seen, two_cores)


def _raw(name: str, seconds: float) -> float:
    processes.settle()
    return max(processes.run("raw", exported(name), seconds, core=processes.SERVER_CORE).values())


def _served(server: processes.Server, requests: Path, concurrency: int, seconds: float) -> dict[str, Any]:
    used_s = server.cpu_s()
    found = processes.run(
        "load",
        server.address,
        INFER,
        requests,
        *("--seconds", seconds, "--concurrency", concurrency, "--warm", 1.0),
        core=processes.CLIENT_CORE,
    )
    assert set(found["codes"]) == {"OK"}, found["codes"]
    answered = found["codes"]["OK"] * (seconds + 1.0) / seconds
    return found | {"cpu_us": (server.cpu_s() - used_s) / answered * 1e6}


def _measures(seen: dict[tuple[str, int], list[dict[str, Any]]], two_cores: list[float]) -> list[Measure]:
    measures = []
    for (name, n), rounds in seen.items():
        shares = [each["per_s"] / each["raw_per_s"] for each in rounds]
        p50, p99 = (median(each["answered_ms"][p] for each in rounds) for p in ("p50", "p99"))
        note = (
            f"{median(each['per_s'] for each in rounds):.0f} of {median(each['raw_per_s'] for each in rounds):.0f}/s, "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {median(each['cpu_us'] for each in rounds):.0f} µs of CPU a request, "
            f"rounds {min(shares):.2f} to {max(shares):.2f}"
        )
        measures.append(Measure(f"{name}, {n} at once: share of raw", median(shares), SHARES[name][n], note=note))
        if n == 8:
            tail = median(each["answered_ms"]["p99"] / each["answered_ms"]["p50"] for each in rounds)
            measures.append(Measure(f"{name}, 8 at once: p99 / p50", tail, TAIL, "at_most"))
    one = median(each["per_s"] for each in seen["base", 32])
    note = f"{median(two_cores):.0f} against {one:.0f}/s; the client shares the second core"
    measures.append(Measure("base, 32 at once: two cores / one", median(two_cores) / one, TWO_CORES, note=note))
    return measures
