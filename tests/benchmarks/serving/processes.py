"""Server, clients and raw runs as processes, each on its core: the server has core 0, everything else core 1."""

from __future__ import annotations

import json
import os
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


@dataclass(frozen=True, slots=True)
class Server:
    """``pid`` is of the process that serves."""

    address: str
    pid: int

    def cpu_s(self) -> float:
        """Time it has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")


@contextmanager
def serving(data_dir: Path, *, core: str = SERVER_CORE, options: Sequence[str] = ()) -> Iterator[Server]:
    """``plaudit serve`` on free ports until the block ends."""
    command = ["taskset", "-c", core, sys.executable, "-m", "plaudit", "serve", "--json", "--data-dir", str(data_dir)]
    command += ["--port", "0", "--metrics-port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        address = json.loads(process.stdout.readline())["address"]
        yield Server(address, process.pid)
    finally:
        process.terminate()
        process.wait()


def run(module: str, *arguments: object, core: str) -> Any:
    """A module of this package on a core; what it prints as JSON."""
    command = ["taskset", "-c", core, sys.executable, "-m", f"benchmarks.serving.{module}", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def start(module: str, *arguments: object, core: str) -> subprocess.Popen[str]:
    """The same, not waited for."""
    command = ["taskset", "-c", core, sys.executable, "-m", f"benchmarks.serving.{module}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def settle(seconds: float = 0.5) -> None:
    """Let what the last run left behind (checkpoints, closing sockets) come to rest."""
    time.sleep(seconds)
