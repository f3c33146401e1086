"""Five times as many requests as can be answered, sent at even intervals whatever comes back.

Steady is the same server saturated by 32 users who wait for their answers; capacity is what that gives.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from benchmarks.learning.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.models import SIZES, deploy
from benchmarks.serving.requests import INFER, infer_requests

FACTOR = 5
TAIL = 2.0
REFUSED_MS = 10.0


def run(*, quick: bool) -> list[Measure]:
    rounds, seconds = (1, 1.0) if quick else (3, 5.0)
    measures = []
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        deploy(data_dir, *SIZES)
        for name in SIZES:
            requests = infer_requests(data_dir / f"{name}.requests", name)
            tails, refused_ms, notes = [], [], []
            for _ in range(rounds):
                with processes.serving(data_dir) as server:
                    common = ("load", server.address, INFER, requests, "--seconds", seconds)
                    steady = processes.run(*common, "--concurrency", 32, core=processes.CLIENT_CORE)
                    flood = processes.run(*common, "--per-s", FACTOR * steady["per_s"], core=processes.CLIENT_CORE)
                assert set(flood["codes"]) == {"OK", "RESOURCE_EXHAUSTED"}, flood["codes"]
                tails.append(flood["answered_ms"]["p99"] / steady["answered_ms"]["p99"])
                refused_ms.append(flood["refused_ms"]["p99"])
                notes.append(
                    f"{steady['per_s']:.0f}/s steady with p99 {steady['answered_ms']['p99']:.0f} ms; flooded "
                    f"{flood['per_s']:.0f}/s answered, {flood['codes']['RESOURCE_EXHAUSTED']} refused"
                )
            measures += [
                Measure(f"{name}: p99 of what is accepted / steady", median(tails), TAIL, "at_most", note=notes[-1]),
                Measure(f"{name}: p99 of refusals (ms)", median(refused_ms), REFUSED_MS, "at_most"),
            ]
    return measures
