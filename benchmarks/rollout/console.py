"""First paint of the console's page, as `make bench-console` measures it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.console import GOAL_S, TIMES, measure
from benchmarks.measure import Measure
from support.deployment import PLAUDIT, Service, deployed


def run(*, quick: bool) -> list[Measure]:
    with tempfile.TemporaryDirectory() as folder:
        config = deployed(Path(folder))
        up = Service([*PLAUDIT, "up", "--config", str(config), "--console-port", "0", "--json"])
        try:
            found = measure(up.event(event="ready", service="console")["page"], 2 if quick else TIMES)
        finally:
            up.kill()
    note = f"{found.transferred_bytes / 1e3:.0f} kB in {found.requests} requests"
    return [
        Measure("first paint, worst, s", found.first_paint_worst_s, GOAL_S, "at_most", note=note),
        Measure("first paint, median, s", found.first_paint_median_s),
        Measure("lines on the browser's console", len(found.console), 0, "at_most", note="; ".join(found.console[:3])),
    ]
