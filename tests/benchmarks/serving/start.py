"""From starting the process to the first answer, and what it holds in memory with both models loaded and used."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.learning.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.models import SIZES, deploy
from benchmarks.serving.requests import INFER, infer_requests

START_S = 2.0
MEMORY_MIB = 200.0


def run(*, quick: bool) -> list[Measure]:
    rounds, seconds = (1, 0.5) if quick else (5, 3.0)
    took_s, fresh_mib, used_mib = [], [], []
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        deploy(data_dir, *SIZES)
        requests = {name: infer_requests(data_dir / f"{name}.requests", name) for name in SIZES}
        for _ in range(rounds):
            began_s = time.monotonic()
            with processes.serving(data_dir) as server:
                first = processes.start(
                    "load",
                    server.address,
                    INFER,
                    requests["base"],
                    *("--seconds", 0, "--concurrency", 1, "--warm", 0.001, "--each"),
                    core=processes.CLIENT_CORE,
                )
                # The port is open, and answers, when the server says so; the client only confirms it.
                took_s.append(time.monotonic() - began_s)
                first.communicate()
                assert first.returncode == 0
                fresh_mib.append(server.rss_mib())
                for name in SIZES:
                    processes.run(
                        "load",
                        server.address,
                        INFER,
                        requests[name],
                        *("--seconds", seconds, "--concurrency", 32),
                        core=processes.CLIENT_CORE,
                    )
                used_mib.append(server.rss_mib())
    return [
        Measure("start to ready for the first answer (s)", median(took_s), START_S, "at_most", note=f"{rounds} starts"),
        Measure("memory, both models loaded (MiB)", median(fresh_mib), MEMORY_MIB, "at_most"),
        Measure("memory after load, 32 at once (MiB)", median(used_mib), MEMORY_MIB, "at_most"),
    ]
