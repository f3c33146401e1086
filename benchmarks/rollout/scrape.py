"""Time that a service takes to answer `/metrics` after many versions have served."""

from __future__ import annotations

import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Final

from benchmarks.measure import Measure
from benchmarks.rollout.deployment_of import deployed_with_two, serving
from plaudit.client import Client
from plaudit.core.rollout import Change, refresh
from support import builders

VERSIONS: Final = 500
GOAL_MS: Final = 50.0
SCRAPES: Final = 30


def run(*, quick: bool) -> list[Measure]:
    versions = 20 if quick else VERSIONS
    took_ms = []
    with tempfile.TemporaryDirectory() as folder:
        config, registry = deployed_with_two(Path(folder))
        with serving(config, 1) as ((address, metrics),), Client(address) as client:
            for number in range(versions):
                made = Path(folder) / f"head-{number}"
                builders.tiny_head_refresh(made, registry.folder(1), prefer="fish" if number % 2 else "dog")
                version = registry.publish(made).version
                change = Change("bench", time.time(), "the next head")
                registry.set_rollout(refresh(registry.rollout(), version, change))
                registry.prune(20)
                while (answer := client.predict({"question": "which animal"}, user_id="ada")).version != version:
                    time.sleep(0.002)
                client.thumbs_up(answer)
            for _ in range(SCRAPES):
                began_s = time.monotonic()
                with urllib.request.urlopen(f"http://{metrics}/metrics") as response:
                    body = response.read()
                took_ms.append(1e3 * (time.monotonic() - began_s))
    note = f"{len(body) / 1e3:.0f} kB, {body.count(b'{') + 1} series with labels; of {SCRAPES} scrapes"
    return [
        Measure(f"/metrics after {versions} versions, worst", max(took_ms), GOAL_MS, "at_most", note=note, unit="ms"),
        Measure(f"/metrics after {versions} versions, median", statistics.median(took_ms), unit="ms"),
    ]
