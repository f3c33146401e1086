"""Processor time of the server for a request, by thread and library: `small` at 32 at once.

    PYTHONPATH=tests python -m benchmarks.serving.layers
    needs perf (Debian: linux-perf) and py-spy (pip install py-spy), and to be let trace

perf samples which library each thread is in, at little cost; py-spy says what the threads are called. The interpreter
is not divided further: samplers that see Python's frames stop the server at every sample, and then measure themselves.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.serving import processes
from benchmarks.serving.load import cpu_s
from benchmarks.serving.models import deploy
from benchmarks.serving.requests import INFER, infer_requests

SECONDS: Final = 8.0
CONCURRENCY: Final = 32
LIBRARIES: Final = {
    "onnxruntime": "ONNX Runtime",
    "cygrpc": "gRPC's core",
    "libpython": "interpreter",
    "_message": "protobuf",
    "multiarray": "numpy",
    "libcrypto": "signature",
    "sqlite": "SQLite",
    "libc.": "C library: copies, memory, locks",
}
"""Kind of library by a part of its path."""
_EVENT: Final = ("-e", "cpu-clock", "-F", "997")
_SWITCHING: Final = ("finish_task_switch", "futex", "schedule", "raw_spin_unlock", "try_to_wake_up")
_SAMPLE: Final = re.compile(r"\s*(?P<thread>\d+)\s+[0-9a-f]+ (?P<symbol>.*) \((?P<library>.*)\)")


def main() -> int:
    missing = [tool for tool in ("perf", "py-spy") if shutil.which(tool) is None]
    if missing:
        print(f"layers: {' and '.join(missing)} cannot be found; see the top of this file", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        deploy(data_dir, "small")
        requests = infer_requests(data_dir / "requests", "small")
        with processes.serving(data_dir) as server:
            options = ("--seconds", 2 * SECONDS, "--concurrency", CONCURRENCY, "--each")
            load = processes.start("load", server.address, INFER, requests, *options, core=processes.CLIENT_CORE)
            processes.settle(SECONDS / 4)
            began_s, used_s = time.monotonic(), cpu_s(server.pid)
            _run(["perf", "record", *_EVENT, "-o", data_dir / "perf", "-p", server.pid, "--", "sleep", SECONDS])
            ended_s, used_s = time.monotonic(), cpu_s(server.pid) - used_s
            threads = json.loads(_run(["py-spy", "dump", "--json", "--pid", server.pid]))
            calls = processes.result(load)["calls"]
        sampled = _run(["perf", "script", "-i", data_dir / "perf", "-F", "tid,ip,sym,dso"])
    names = {thread["os_thread_id"]: thread["thread_name"] for thread in threads}
    answered = sum(began_s <= began + took < ended_s for began, took, _, _ in calls)
    _print(_by_thread_and_library(sampled, names), used_s / answered * 1e6, answered / (ended_s - began_s))
    return 0


def _by_thread_and_library(sampled: str, names: dict[int, str]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for line in sampled.splitlines():
        if sample := _SAMPLE.fullmatch(line):
            library = _library(sample["library"], sample["symbol"])
            found[_kind(names.get(int(sample["thread"]), "")), library] += 1
    return found


def _kind(name: str) -> str:
    """Threads that do the same have names that differ in a number; gRPC's own have none that Python knows."""
    if not name:
        return "gRPC's own"
    if name.endswith("(_serve)"):
        return "gRPC's server"
    return re.sub(r"[-_]\d+$", "", name)


def _library(library: str, symbol: str) -> str:
    if "kernel" in library:
        return "kernel: switching threads" if any(part in symbol for part in _SWITCHING) else "kernel: the rest"
    return next((what for part, what in LIBRARIES.items() if part in library), "other libraries")


def _print(found: Counter[tuple[str, str]], used_us: float, per_s: float) -> None:
    us = {place: used_us * count / found.total() for place, count in found.items()}
    for title, part in (("thread", 0), ("library", 1)):
        sums: Counter[str] = Counter()
        for place, count in found.items():
            sums[place[part]] += count
        print(f"\n{used_us:.0f} µs of CPU a request at {per_s:.0f}/s, by {title}")
        for name, count in sums.most_common():
            print(f"  {used_us * count / found.total():6.1f}  {name}")
    print("\nby both")
    for (kind, library), each_us in sorted(us.items(), key=lambda item: -item[1]):
        if each_us >= 1.0:
            print(f"  {each_us:6.1f}  {kind:<18}  {library}")


def _run(command: list[object]) -> str:
    """Standard output of the command."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
