"""300 swaps under saturating load: head refreshes and whole versions, published and promoted one after the other.

Every third swap brings another trunk; the others bring another head on the same one, as the learner's refreshes do. A
swap's window is from the change of the rollout until the new version has answered, and a moment more, in which the old
one is unloaded. A call is within a window if any of it is. Steady is whatever is within none.
"""

from __future__ import annotations

import signal
import tempfile
import time
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from benchmarks.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.models import deploy
from benchmarks.serving.requests import INFER, infer_requests
from benchmarks.serving.versions import write_versions
from plaudit.compose.registry import model_registry
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Change, promote
from plaudit.inference import open_inference_pb2 as pb

SWAPS: Final = 300
SETTLED: Final = 20
TAIL: Final = 1.3
GROWTH: Final = 0.05
CONCURRENCY: Final = 32
PAUSE_S: Final = 0.4
"""Pause between swaps, for steady load to compare with."""
AFTER_S: Final = 0.1
"""Seconds that a window goes on once the new version has answered."""
TRUNKS: Final = 8
HEADS: Final = 3
_READY: Final = "/inference.GRPCInferenceService/ModelReady"
_LOOK_S: Final = 0.02
_GIVE_UP_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Swap:
    """``promoted_s``: when, on the clock of ``time.monotonic``; ``rss_mib``: of the server, a pause later."""

    version: int
    promoted_s: float
    rss_mib: float


def run(*, quick: bool) -> list[Measure]:
    swaps = 30 if quick else SWAPS
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        registry = model_registry(deploy(data_dir, "small", "base"), "small")
        folders = [
            folder for trunk in write_versions(data_dir, "small", trunks=TRUNKS, heads=HEADS) for folder in trunk
        ]
        requests = infer_requests(data_dir / "small.requests", "small")
        with processes.serving(data_dir) as server:
            options = ("--seconds", swaps * _GIVE_UP_S, "--concurrency", CONCURRENCY, "--each")
            load = processes.start("load", server.address, INFER, requests, *options, core=processes.CLIENT_CORE)
            processes.settle(3.0)
            done = [_swap(registry, folders[number % len(folders)], server) for number in range(swaps)]
            load.send_signal(signal.SIGINT)
            calls = processes.result(load)["calls"]
    return _measures(calls, done)


def _swap(registry: ModelRegistry, folder: Path, server: processes.Server) -> Swap:
    version = registry.publish(folder).version
    promoted_s = time.monotonic()
    registry.set_rollout(promote(registry.rollout(), version, Change("soak", time.time(), "soak")))
    asked = pb.ModelReadyRequest(name=registry.model, version=str(version)).SerializeToString()
    with grpc.insecure_channel(server.address) as channel:
        ready: grpc.UnaryUnaryMultiCallable[bytes, pb.ModelReadyResponse] = channel.unary_unary(
            _READY, response_deserializer=pb.ModelReadyResponse.FromString
        )
        while not ready(asked).ready:
            if time.monotonic() > promoted_s + _GIVE_UP_S:
                raise RuntimeError(f"version {version} was promoted {_GIVE_UP_S:.0f} s ago and does not serve")
            time.sleep(_LOOK_S)
    time.sleep(PAUSE_S)
    return Swap(version, promoted_s, server.rss_mib())


def _measures(calls: list[Any], swaps: list[Swap]) -> list[Measure]:
    first_s: dict[str, float] = {}
    for began_s, took_s, _, version in calls:
        first_s[version] = min(began_s + took_s, first_s.get(version, np.inf))
    unseen = [swap.version for swap in swaps if str(swap.version) not in first_s]
    windows = [(s.promoted_s, first_s[str(s.version)] + AFTER_S) for s in swaps if s.version not in unseen]
    ends = [end for _, end in windows]
    within: list[float] = []
    steady: list[float] = []
    for began_s, took_s, _, _ in calls:
        following = bisect_left(ends, began_s)
        touched = following < len(windows) and windows[following][0] < began_s + took_s
        (within if touched else steady).append(took_s * 1e3)
    took_ms = [1e3 * (end - AFTER_S - begin) for begin, end in windows]
    p99_within, p99_steady = np.percentile(within, 99), np.percentile(steady, 99)
    tail_note = (
        f"{p99_within:.1f} of {len(within)} against {p99_steady:.1f} ms of {len(steady)}; a swap took "
        f"{np.median(took_ms):.0f} ms, p99 {np.percentile(took_ms, 99):.0f} ms"
    )
    rss_mib = [swap.rss_mib for swap in swaps]
    settled_mib = rss_mib[min(SETTLED, len(rss_mib)) - 1]
    rss_note = (
        f"{settled_mib:.0f} MiB after {SETTLED} swaps, then {max(rss_mib):.0f} at most, {rss_mib[-1]:.0f} at the end"
    )
    failed = sum(code != "OK" for _, _, code, _ in calls)
    return [
        Measure("failed requests", failed, 0, "at_most", note=f"of {len(calls)} over {len(swaps)} swaps"),
        Measure("promoted versions that never answered", len(unseen), 0, "at_most"),
        Measure("p99 within swaps / steady p99", float(p99_within / p99_steady), TAIL, "at_most", note=tail_note),
        Measure(
            f"growth of memory after {SETTLED} swaps",
            max(rss_mib[SETTLED:]) / settled_mib - 1,
            GROWTH,
            "at_most",
            note=rss_note,
        ),
    ]
