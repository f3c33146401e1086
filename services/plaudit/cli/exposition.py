"""How metrics are shown where one registry is not all: with labels added, and of several processes at once.

Knows no metric.
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from prometheus_client.metrics_core import Metric

PROCESS: Final = "process"
"""The label that says which of several processes a series is of."""
_TIMEOUT_S: Final = 5.0


class LabelledRegistry(CollectorRegistry):
    """Adds labels to whatever is shown; a label that is there already stays as it is.

    Args:
        labels: names and values.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__()
        self._added = dict(labels)

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            shown = Metric(family.name, family.documentation, family.type, family.unit)
            shown.samples = [sample._replace(labels={**self._added, **sample.labels}) for sample in family.samples]
            yield shown


class Pages:
    """The metrics pages of several processes; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}

    def there_is(self, process: str, address: str) -> None:
        """A process shows its own page at ``host:port``."""
        with self._lock:
            self._addresses[process] = address

    def gone(self, process: str) -> None:
        with self._lock:
            self._addresses.pop(process, None)

    def merged(self) -> str:
        """All of them as one page. One that does not answer is left out: its series have a gap, and sums say so."""
        with self._lock:
            addresses = dict(self._addresses)
        if not addresses:
            return ""
        with ThreadPoolExecutor(len(addresses)) as pool:
            pages = dict(zip(addresses, pool.map(_read, addresses.values()), strict=True))
        return merge({process: page for process, page in pages.items() if page is not None})


def _read(address: str) -> str | None:
    """None if there is no answer, or only a part of one: whoever is killed may be so while it answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as answer:
            page: str = answer.read().decode()
            return page if page.endswith("\n") else None
    except (OSError, HTTPException):
        return None


def merge(pages: Mapping[str, str]) -> str:
    """Pages in Prometheus' text format → one, whose series say by the label ``process`` where they come from.

    All series of a family stand together, below one description, as the format demands.

    Args:
        pages: by process.
    """
    described: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("# "):
                _, kind, family, *_ = line.split(" ", 3)
                samples.setdefault(family, [])
                lines = described.setdefault(family, [])
                if not any(known.startswith(f"# {kind} ") for known in lines):
                    lines.append(line)
            elif line:
                samples[family].append(_labelled(line, process))
    return "".join(f"{line}\n" for family in described for line in (*described[family], *samples[family]))


def _labelled(sample: str, process: str) -> str:
    """A name holds neither a brace nor a space, so whichever comes first ends it."""
    name, brace, rest = sample.partition("{")
    if not brace or " " in name:
        name, _, value = sample.partition(" ")
        return f'{name}{{{PROCESS}="{process}"}} {value}'
    return f'{name}{{{PROCESS}="{process}",{rest}'


@contextmanager
def shown(pages: Pages, host: str, port: int) -> Iterator[int]:
    """Serves the pages as one on a port, which it gives.

    Raises:
        OSError: the port is taken.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.merged().encode()
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE_LATEST)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """A scrape every few seconds is no news."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = Server((host, port), Page)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
