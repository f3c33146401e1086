"""How fast the console's page is there, in a real Chromium: `make bench-console`, or `… -m benchmarks.console URL`.

Without a URL, in front of a `plaudit up` of the tiny model. Each time in a fresh browser profile, with an empty cache.
Exits non-zero if the page says anything on its console or paints later than GOAL_S.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from playwright.sync_api import sync_playwright

from support.deployment import PLAUDIT, Service, deployed
from support.programs import chromium

GOAL_S: Final = 1.0
TIMES: Final = 10


@dataclass(frozen=True)
class Measured:
    """First paint: the worst and the median of several; what one visit transfers; what the page said on its console."""

    first_paint_worst_s: float
    first_paint_median_s: float
    transferred_bytes: int
    requests: int
    console: list[str]


def measure(url: str, times: int = TIMES) -> Measured:
    program = chromium()
    paints_s, said = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program.path, env=dict(program.environment) or None)
        for _ in range(times):
            page = browser.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(url)
            page.locator("#versions > li").first.wait_for()
            (paint_ms,) = page.evaluate(
                "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)"
            )
            loaded = page.evaluate(
                "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
                ".map(entry => entry.transferSize)"
            )
            paints_s.append(paint_ms / 1000)
            page.close()
        browser.close()
    return Measured(max(paints_s), statistics.median(paints_s), sum(loaded), len(loaded), said)


def main() -> None:
    if len(sys.argv) > 1:
        measured = measure(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            config = deployed(Path(folder))
            up = Service([*PLAUDIT, "up", "--config", str(config), "--console-port", "0", "--json"])
            try:
                measured = measure(up.event(event="ready", service="console")["page"])
            finally:
                up.kill()
    print(json.dumps(asdict(measured), indent=2))
    if measured.console or measured.first_paint_worst_s > GOAL_S:
        sys.exit(f"first paint after {measured.first_paint_worst_s:.2f} s, the goal is {GOAL_S:g} s; or see console")


if __name__ == "__main__":
    main()
