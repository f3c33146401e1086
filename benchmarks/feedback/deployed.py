"""The inference service of the tiny model as a process, over SQLite or over one real broker."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.deployment import PLAUDIT, Service, deployed
from support.kafka_broker import Cluster


@dataclass(frozen=True)
class Serving:
    """A running inference service.

    Attributes:
        config: its settings file.
        address: host and port of its gRPC service.
        metrics: address of its metrics.
        pid: id of its process.
    """

    config: Path
    address: str
    metrics: str
    pid: int

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def on_kafka(config: Path, bootstrap: str) -> None:
    """Change a deployment's settings to the log of that broker."""
    kafka = f'[log]\nkind = "kafka"\n[kafka]\nbootstrap_servers = {json.dumps(bootstrap)}\n'
    config.write_text(config.read_text(encoding="utf-8") + kafka, encoding="utf-8")


@contextmanager
def serving(folder: Path, cluster: Cluster | None = None) -> Iterator[Serving]:
    """Running service until the block ends; over SQLite unless there is a cluster."""
    config = deployed(folder)
    if cluster is not None:
        on_kafka(config, cluster.bootstrap)
    service = Service([*PLAUDIT, "serve", "--config", str(config), "--json"])
    try:
        ready = service.event(event="ready")
        yield Serving(config, ready["address"], ready["metrics"], service.process.pid)
    finally:
        service.kill()
