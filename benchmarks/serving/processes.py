"""Server, clients and raw runs as processes, each on its core: the server has core 0, everything else core 1."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SERVER_CORE: Final = "0"
CLIENT_CORE: Final = "1"
BOTH: Final = "0,1"
POLITE: Final = 3
"""Niceness of processes that must not hold up a measurement on the same core."""


@dataclass(frozen=True, slots=True)
class Server:
    """``pid`` is of the process that serves."""

    address: str
    pid: int

    def rss_mib(self) -> float:
        """Resident memory of the process, MiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"/proc/{self.pid}/status has no VmRSS")


@contextmanager
def serving(data_dir: Path, *, core: str = SERVER_CORE, port: int = 0) -> Iterator[Server]:
    """Running ``plaudit serve`` until the block ends, on a free port unless one is named."""
    command = ["plaudit", "serve", "--json", "--data-dir", str(data_dir), "--port", str(port), "--metrics-port", "0"]
    with program(command, core) as server:
        yield server


@contextmanager
def echoing() -> Iterator[Server]:
    """Running echo.py on the server's core until the block ends."""
    with program(["benchmarks.serving.echo"], SERVER_CORE) as server:
        yield server


@contextmanager
def program(module_and_arguments: Sequence[str], core: str) -> Iterator[Server]:
    """Running module that prints ``{"address": …}`` when it answers, until the block ends."""
    command = ["taskset", "-c", core, sys.executable, "-m", *module_and_arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(command)} ended before it served; run it by hand to see why")
        yield Server(json.loads(line)["address"], process.pid)
    finally:
        process.terminate()
        process.wait()


def run(module: str, *arguments: object, core: str) -> Any:
    """Run a module of this package on a core. Returns the JSON that it prints."""
    return result(start(module, *arguments, core=core))


def start(module: str, *arguments: object, core: str, niceness: int = 0) -> subprocess.Popen[str]:
    """Start a module of this package on a core; see :func:`result`."""
    command = ["nice", "-n", str(niceness), "taskset", "-c", core, sys.executable, "-m", f"benchmarks.serving.{module}"]
    return subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    """Wait for the end of a started module. Returns the JSON that it printed."""
    out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads(out)


def settle(seconds: float = 0.5) -> None:
    """Let what the last run left behind (checkpoints, closing sockets) come to rest."""
    time.sleep(seconds)
