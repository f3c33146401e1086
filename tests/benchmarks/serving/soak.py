"""300 swaps under saturating load: head refreshes and whole versions, promoted one after the other.

A swap's window is from the change of the rollout until the service says that the new version serves. A call is within
a window if any of it is. The versions are published before; each swap loads, proves and warms its version anew unless
it is the previous one.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from bisect import bisect_left
from pathlib import Path

import numpy as np

from benchmarks.learning.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.models import deploy, exported
from benchmarks.serving.requests import INFER, infer_requests
from plaudit import compose
from plaudit.adapters.onnx_import import ImportOptions
from plaudit.cli.importing import import_model
from plaudit.client import Client
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings

SWAPS = 300
SETTLED = 20
TAIL = 1.3
GROWTH = 0.05
PAUSE_S = 0.25
"""Between swaps, so that there is steady load to compare with."""
TRUNKS = 4
PER_TRUNK = 3


def run(*, quick: bool) -> list[Measure]:
    swaps = 30 if quick else SWAPS
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        settings = deploy(data_dir, "small")
        _publish(settings)
        requests = infer_requests(data_dir / "small.requests", "small")
        with processes.serving(data_dir) as server, Client(server.address) as client:
            seconds = swaps * (PAUSE_S + 1.5) + 5
            load = processes.start(
                "load",
                server.address,
                INFER,
                requests,
                *("--seconds", seconds, "--concurrency", 8, "--each"),
                core=processes.CLIENT_CORE,
            )
            time.sleep(3)
            windows, rss_mib = _swap(settings, client, server, swaps)
            if load.poll() is not None:
                raise RuntimeError(f"the load ended before the swaps did, after {seconds} s")
            load.send_signal(signal.SIGINT)
            out, _ = load.communicate()
    calls = json.loads(out)["calls"]
    return _measures(calls, windows, rss_mib)


def _publish(settings: Settings) -> None:
    """Versions in turn: of each trunk one that was imported and some that share it."""
    options = ImportOptions(logits="logits", embedding="hidden")
    for seed in range(TRUNKS):
        for number in range(PER_TRUNK):
            # Equal files of different versions are one file, and a shared trunk is loaded once: a head refresh.
            floor = 0.02 + 0.001 * number
            import_model(
                settings,
                exported("small", seed),
                "small",
                ImportOptions(logits=options.logits, embedding=options.embedding, floor=floor),
                go_live=False,
            )


def _swap(
    settings: Settings, client: Client, server: processes.Server, swaps: int
) -> tuple[list[tuple[float, float]], list[float]]:
    registry = compose.registry_of(settings, "small")
    versions = list(registry.versions())
    windows, rss_mib = [], []
    watch = client.watch_versions(model="small")
    next(watch)
    for number in range(swaps):
        version = versions[(number + 1) % len(versions)]
        began_s = time.monotonic()
        registry.set_rollout(promote(registry.rollout(), version, Change("soak", time.time(), "soak")))
        while next(watch).live != version:
            pass
        windows.append((began_s, time.monotonic()))
        rss_mib.append(server.rss_mib())
        time.sleep(PAUSE_S)
    return windows, rss_mib


def _measures(
    calls: list[tuple[float, float, str]], windows: list[tuple[float, float]], rss_mib: list[float]
) -> list[Measure]:
    ends = [end for _, end in windows]
    within, steady = [], []
    for began_s, took_s, _ in calls:
        following = bisect_left(ends, began_s)
        touched = following < len(windows) and windows[following][0] < began_s + took_s
        (within if touched else steady).append(took_s * 1e3)
    p99_within, p99_steady = np.percentile(within, 99), np.percentile(steady, 99)
    failed = sum(code != "OK" for _, _, code in calls)
    settled_mib = rss_mib[min(SETTLED, len(rss_mib) - 1)]
    took_ms = [1e3 * (end - begin) for begin, end in windows]
    return [
        Measure("failed requests", failed, 0, "at_most", note=f"of {len(calls)} over {len(windows)} swaps"),
        Measure(
            "p99 within swaps / steady p99",
            float(p99_within / p99_steady),
            TAIL,
            "at_most",
            note=f"{p99_within:.1f} against {p99_steady:.1f} ms; a swap took {np.median(took_ms):.0f} ms, "
            f"p99 {np.percentile(took_ms, 99):.0f} ms",
        ),
        Measure(
            f"growth of memory after {SETTLED} swaps",
            max(0.0, max(rss_mib[SETTLED:], default=settled_mib) / settled_mib - 1),
            GROWTH,
            "at_most",
            note=f"{settled_mib:.0f} to {max(rss_mib):.0f} MiB, {rss_mib[-1]:.0f} at the end",
        ),
    ]
