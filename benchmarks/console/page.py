"""First paint of the console's page, each time in a fresh profile of Chromium with an empty cache."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from playwright.sync_api import sync_playwright

from benchmarks.measure import Measure
from support.deployment import PLAUDIT, Service, deployed
from support.programs import chromium

GOAL_S: Final = 1.0
TIMES: Final = 10


@dataclass(frozen=True)
class Visits:
    """Results of several visits.

    Attributes:
        first_paint_s: of each visit.
        transferred_bytes: by the last visit.
        requests: of the last visit.
        console: lines that the page wrote to the browser's console, over all visits.
    """

    first_paint_s: list[float]
    transferred_bytes: int
    requests: int
    console: list[str]


def run(url: str = "", *, quick: bool) -> list[Measure]:
    """Measures of the console at ``url``; of a deployment of the tiny model where it is empty."""
    times = 2 if quick else TIMES
    if url:
        found = visit(url, times)
    else:
        with tempfile.TemporaryDirectory() as folder:
            config = deployed(Path(folder))
            up = Service([*PLAUDIT, "up", "--config", str(config), "--console-port", "0", "--json"])
            try:
                found = visit(up.event(event="ready", service="console")["page"], times)
            finally:
                up.kill()
    note = f"{found.transferred_bytes / 1e3:.0f} kB in {found.requests} requests"
    return [
        Measure("first paint, worst", max(found.first_paint_s), GOAL_S, "at_most", note=note, unit="s"),
        Measure("first paint, median", statistics.median(found.first_paint_s), unit="s"),
        Measure("lines on the browser's console", len(found.console), 0, "at_most", note="; ".join(found.console[:3])),
    ]


def visit(url: str, times: int) -> Visits:
    program = chromium()
    paints_s: list[float] = []
    lines: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program.path, env=dict(program.environment) or None)
        for _ in range(times):
            page = browser.new_page()
            page.on("console", lambda message: lines.append(message.text))
            page.on("pageerror", lambda error: lines.append(str(error)))
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
    return Visits(paints_s, sum(loaded), len(loaded), lines)
