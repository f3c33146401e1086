"""Time from the start of the process to the first answer, and its memory with both models loaded and used."""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.graphs import SIZES
from benchmarks.serving.models import deploy
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
            port = _free_port()
            command = ("first", f"127.0.0.1:{port}", INFER, requests["base"])
            with processes.start(*command, core=processes.CLIENT_CORE) as client:
                assert client.stdout is not None
                assert client.stdout.readline() == "ready\n"
                began_s = time.monotonic()
                with processes.serving(data_dir, port=port) as server:
                    took_s.append(float(client.stdout.readline()) - began_s)
                    fresh_mib.append(server.rss_mib())
                    for name in SIZES:
                        common = ("load", server.address, INFER, requests[name])
                        processes.run(*common, "--seconds", seconds, "--concurrency", 32, core=processes.CLIENT_CORE)
                    used_mib.append(server.rss_mib())
    return [
        Measure("start to first answer", median(took_s), START_S, "at_most", note=f"{rounds} starts", unit="s"),
        Measure("memory, both models loaded", median(fresh_mib), MEMORY_MIB, "at_most", unit="MiB"),
        Measure("memory after load, 32 at once", median(used_mib), MEMORY_MIB, "at_most", unit="MiB"),
    ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
