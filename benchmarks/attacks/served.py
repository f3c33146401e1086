"""`plaudit serve` of a tiny model as a process, and what it says of itself: memory, time of its calls."""

from __future__ import annotations

import resource
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from support.deployment import PLAUDIT, Service, deployed


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        address: of its gRPC port.
        metrics: of its metrics port.
    """

    address: str
    metrics: str
    pid: int

    def memory_mib(self) -> float:
        """Resident memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=30) as page:
            text: str = page.read().decode()
        return text

    def spent(self, method: str) -> tuple[float, float]:
        """Seconds and number of the calls of a method so far."""
        found = {"sum": 0.0, "count": 0.0}
        for family in text_string_to_metric_families(self.scrape()):
            for sample in family.samples:
                kind = sample.name.removeprefix("plaudit_serving_request_seconds_")
                if kind in found and sample.labels.get("method") == method:
                    found[kind] = sample.value
        return found["sum"], found["count"]


@contextmanager
def served() -> Iterator[Served]:
    """A server of its own, and as many descriptors for this process as there may be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        service = Service([*PLAUDIT, "serve", "--json", "--config", str(deployed(Path(folder)))])
        try:
            ready = service.event(event="ready")
            yield Served(ready["address"], ready["metrics"], service.process.pid)
        finally:
            service.kill()
