"""Five times as many requests as can be answered, sent at even intervals independent of the answers.

Steady is the same server saturated by 32 users who wait for their answers; capacity is what that gives. What the flood
itself sees of latencies is partly its own, since it keeps its core busy. So a few polite users on a connection of
their own (probe.py), with precedence on that core, measure how fast the server answers and refuses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.graphs import SIZES
from benchmarks.serving.models import deploy
from benchmarks.serving.requests import INFER, infer_requests

FACTOR: Final = 5
TAIL: Final = 2.0
REFUSED_MS: Final = 10.0
OFFERED: Final = 0.95
"""Share of the intended rate that the flood must have sent."""
_USERS: Final = 16
_LEAD_S: Final = 2.0
"""The flood begins so long before the polite users, who begin after their interpreter has started, and ends after."""


def run(*, quick: bool) -> list[Measure]:
    rounds, seconds = (1, 2.0) if quick else (3, 8.0)
    measures = []
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        deploy(data_dir, *SIZES)
        for name in SIZES:
            requests = infer_requests(data_dir / f"{name}.requests", name)
            measures += _measures(name, [_round(data_dir, requests, seconds) for _ in range(rounds)])
    return measures


def _round(data_dir: Path, requests: Path, seconds: float) -> dict[str, Any]:
    with processes.serving(data_dir) as server:
        target = (server.address, INFER, requests, "--seconds")
        steady = processes.run("load", *target, seconds, "--concurrency", 32, core=processes.CLIENT_CORE)
        asked_per_s = FACTOR * steady["per_s"]
        flooding = processes.start(
            "load",
            *(*target, seconds + 2 * _LEAD_S, "--per-s", asked_per_s),
            core=processes.CLIENT_CORE,
            niceness=processes.POLITE,
        )
        processes.settle(_LEAD_S)
        polite = processes.run("probe", *target, seconds, "--users", _USERS, core=processes.CLIENT_CORE)
        flood = processes.result(flooding)
    for found in (polite, flood):
        if set(found["codes"]) != {"OK", "RESOURCE_EXHAUSTED"}:
            raise RuntimeError(f"the flood was not answered and refused as it should be: {found['codes']}")
    return {"steady": steady, "polite": polite, "flood": flood, "offered": flood["sent_per_s"] / asked_per_s}


def _measures(name: str, rounds: list[dict[str, Any]]) -> list[Measure]:
    last = rounds[-1]
    steady, polite, flood = last["steady"], last["polite"], last["flood"]
    accepted_note = (
        f"{polite['answered_ms']['p99']:.0f} ms of {polite['codes']['OK']} against {steady['answered_ms']['p99']:.0f}; "
        f"{steady['per_s']:.0f}/s answered steadily, {flood['per_s']:.0f}/s flooded"
    )
    refused = polite["refused_ms"]
    refused_note = (
        f"of {polite['codes']['RESOURCE_EXHAUSTED']}; p50 {refused['p50']:.1f}, slowest {refused['p100']:.1f} ms; "
        f"the flood saw p50 {flood['refused_ms']['p50']:.1f} ms"
    )
    tails = [each["polite"]["answered_ms"]["p99"] / each["steady"]["answered_ms"]["p99"] for each in rounds]
    return [
        Measure(f"{name}: p99 of what is accepted / steady", median(tails), TAIL, "at_most", note=accepted_note),
        Measure(
            f"{name}: p99 of refusals",
            median(each["polite"]["refused_ms"]["p99"] for each in rounds),
            REFUSED_MS,
            "at_most",
            note=refused_note,
            unit="ms",
        ),
        Measure(f"{name}: share of the flood that was sent", median(each["offered"] for each in rounds), OFFERED),
    ]
