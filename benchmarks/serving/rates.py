"""Share of the raw ONNX Runtime rate that `ModelInfer` reaches, by model and concurrency; and the gain of a second
core.

In each round the raw rate of the best batch size is measured on the server's core before and after the service, and
the share is of their mean: the machine drifts. Medians of the rounds. That the client is not what is measured is
shown by an echo with the same requests, which it must drive much faster than it is ever served.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from benchmarks.measure import Measure
from benchmarks.serving import echo, processes
from benchmarks.serving.graphs import SIZES
from benchmarks.serving.models import deploy
from benchmarks.serving.requests import INFER, infer_requests

SHARES: Final = {"small": {1: 0.45, 8: 0.68, 32: 0.75}, "base": {1: 0.80, 8: 0.90, 32: 0.95}}
TAIL: Final = 1.6
TWO_CORES: Final = 1.7
HEADROOM: Final = 2.0
"""Required rate of the client on the echo, relative to the fastest service."""


def run(*, quick: bool) -> list[Measure]:
    rounds, seconds, raw_s = (1, 1.0, 0.3) if quick else (3, 4.0, 0.8)
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        deploy(data_dir, *SIZES)
        requests = {name: infer_requests(data_dir / f"{name}.requests", name) for name in SIZES}
        seen: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        two_cores, echoes = [], []
        for _ in range(rounds):
            with processes.echoing() as server:
                echoes.append(_load(server, echo.METHOD, requests["small"], 32, seconds))
            for name in SIZES:
                graph = data_dir / f"{name}-0.onnx"
                before = _raw(graph, raw_s)
                with processes.serving(data_dir) as server:
                    of_round = {n: _load(server, INFER, requests[name], n, seconds) for n in SHARES[name]}
                after = _raw(graph, raw_s)
                raw = {f"raw_{key}": mean([before[key], after[key]]) for key in before}
                for n, found in of_round.items():
                    seen[name, n].append(found | raw)
            with processes.serving(data_dir, core=processes.BOTH) as server:
                two_cores.append(_load(server, INFER, requests["base"], 32, seconds))
    return [*_shares(seen), _two_cores(two_cores, seen["base", 32]), _headroom(echoes, seen)]


def _raw(graph: Path, seconds: float) -> dict[str, float]:
    processes.settle()
    found: dict[str, float] = processes.run("raw", graph, seconds, core=processes.SERVER_CORE)
    return found


def _load(server: processes.Server, method: str, requests: Path, concurrency: int, seconds: float) -> dict[str, Any]:
    options = ("--seconds", seconds, "--concurrency", concurrency, "--warm", 1.0, "--server-pid", server.pid)
    found: dict[str, Any] = processes.run(
        "load", server.address, method, requests, *options, core=processes.CLIENT_CORE
    )
    if set(found["codes"]) != {"OK"}:
        raise RuntimeError(f"not all of {concurrency} at once were answered: {found['codes']}")
    return found


def _shares(seen: dict[tuple[str, int], list[dict[str, Any]]]) -> list[Measure]:
    measures = []
    for (name, n), rounds in seen.items():
        shares = [each["per_s"] / each["raw_per_s"] for each in rounds]
        p50, p99 = (median(each["answered_ms"][p] for each in rounds) for p in ("p50", "p99"))
        per_s, raw_per_s, cpu_us, raw_cpu_us = (
            median(each[key] for each in rounds) for key in ("per_s", "raw_per_s", "server_cpu_us", "raw_cpu_us")
        )
        note = (
            f"{per_s:.0f} of {raw_per_s:.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms; {cpu_us:.0f} µs of CPU a request, "
            f"raw {raw_cpu_us:.0f}; rounds {min(shares):.2f} to {max(shares):.2f}"
        )
        measures.append(Measure(f"{name}, {n} at once: share of raw", median(shares), SHARES[name][n], note=note))
        if n == 8:
            tail = median(each["answered_ms"]["p99"] / each["answered_ms"]["p50"] for each in rounds)
            measures.append(Measure(f"{name}, 8 at once: p99 / p50", tail, TAIL, "at_most"))
    return measures


def _two_cores(two: list[dict[str, Any]], one: list[dict[str, Any]]) -> Measure:
    found, base = (median(each["per_s"] for each in rounds) for rounds in (two, one))
    note = f"{found:.0f} against {base:.0f}/s; the client shares the second core"
    return Measure("base, 32 at once: two cores / one", found / base, TWO_CORES, note=note)


def _headroom(echoes: list[dict[str, Any]], seen: dict[tuple[str, int], list[dict[str, Any]]]) -> Measure:
    echoed = median(each["per_s"] for each in echoes)
    fastest = max(each["per_s"] for rounds in seen.values() for each in rounds)
    busiest = max(each["client_busy"] for rounds in seen.values() for each in rounds)
    note = f"{echoed:.0f}/s, {median(each['server_cpu_us'] for each in echoes):.0f} µs of the server's CPU an echo; "
    note += f"the client's core was at most {busiest:.0%} busy with the service"
    return Measure("the client's rate on an echo / the fastest served", echoed / fastest, HEADROOM, note=note)
