"""Durable acknowledgements a second through gRPC StreamFeedback, over SQLite and over one real broker.

Server, broker and client share the machine's cores. Afterwards the log is read, and must hold what was acknowledged.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.feedback.deployed import Serving, serving
from benchmarks.measure import Measure
from plaudit.compose.log import event_log
from plaudit.compose.settings import load_settings
from plaudit.core.events import Topic
from support.kafka_broker import Cluster

GOALS: Final = {"sqlite": 5_000.0, "kafka": 3_000.0}
_STREAMS: Final = 4
_ROUNDS: Final = 3


def run(*, quick: bool) -> list[Measure]:
    count = 1_000 if quick else 10_000
    measures = []
    for kind, goal in GOALS.items():
        with tempfile.TemporaryDirectory() as made:
            rates = [_round(kind, Path(made) / str(number), count) for number in range(1 if quick else _ROUNDS)]
        note = f"median of {', '.join(f'{rate:.0f}' for rate in rates)}; {_STREAMS} streams of {count} thumbs"
        measures.append(Measure(f"{kind}: durable acknowledgements", median(rates), goal, note=note, unit="1/s"))
    return measures


def _round(kind: str, folder: Path, count: int) -> float:
    folder.mkdir()
    if kind == "sqlite":
        with serving(folder) as server:
            return _rate(server, count)
    with Cluster(folder / "kafka") as cluster, serving(folder, cluster) as server:
        return _rate(server, count)


def _rate(server: Serving, count: int) -> float:
    settings = load_settings(server.config)
    key = settings.data_dir / "signing.key"
    client = [sys.executable, "-m", "benchmarks.feedback.stream", server.address, str(key)]
    done = subprocess.run(
        [*client, "--count", str(count), "--streams", str(_STREAMS)], stdout=subprocess.PIPE, text=True, check=True
    )
    with closing(event_log(settings)) as log, closing(log.reader("g", [Topic.FEEDBACK], start=dict)) as reader:
        if (there := reader.lag()) < count * _STREAMS:
            raise RuntimeError(f"{count * _STREAMS} thumbs were acknowledged, and the log holds {there}")
    return float(json.loads(done.stdout)["per_s"])
