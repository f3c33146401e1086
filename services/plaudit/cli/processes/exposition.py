"""Exposition of metrics where one registry is not all: labels added, and several processes on one page.

Knows no metric.
"""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Final
from urllib.error import HTTPError

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from prometheus_client.metrics_core import Metric

PROCESS: Final = "process"
"""Label with the number of the process that a series comes from."""
_TIMEOUT_S: Final = 5.0


class LabelledRegistry(CollectorRegistry):
    """Registry that adds labels to every series; a label that is there already stays as it is.

    Args:
        labels: names and values.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__()
        self._added = dict(labels)

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            labelled = Metric(family.name, family.documentation, family.type, family.unit)
            labelled.samples = [sample._replace(labels={**self._added, **sample.labels}) for sample in family.samples]
            yield labelled


class MetricsPages:
    """Metrics pages of several processes; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}

    def add(self, process: str, address: str) -> None:
        """Add the page that a process shows at ``host:port``."""
        with self._lock:
            self._addresses[process] = address

    def remove(self, process: str) -> None:
        with self._lock:
            self._addresses.pop(process, None)

    def page(self, _accept: str, _names: Sequence[str]) -> tuple[str, bytes]:
        """The merged page, as :class:`plaudit.core.host.metrics_server.MetricsServer` takes it."""
        return CONTENT_TYPE_LATEST, self.merged().encode()

    def problem(self) -> str | None:
        """Reason why one of the processes cannot do its work; None while all can."""
        with self._lock:
            addresses = dict(self._addresses)
        if not addresses:
            return "no process answers yet"
        with ThreadPoolExecutor(len(addresses)) as pool:
            problems = pool.map(_problem, addresses.values())
            return next(
                (f"process {name}: {each}" for name, each in zip(addresses, problems, strict=True) if each), None
            )

    def merged(self) -> str:
        """All pages as one. A process that does not answer is left out: its series have a gap."""
        with self._lock:
            addresses = dict(self._addresses)
        if not addresses:
            return ""
        with ThreadPoolExecutor(len(addresses)) as pool:
            pages = dict(zip(addresses, pool.map(_read, addresses.values()), strict=True))
        return merge({process: page for process, page in pages.items() if page is not None})


def _read(address: str) -> str | None:
    """Page at ``host:port``; None if there is no answer, or only a part of one: a process may be killed meanwhile."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as answer:
            page: str = answer.read().decode()
            return page if page.endswith("\n") else None
    except (OSError, HTTPException):
        return None


def _problem(address: str) -> str | None:
    """What ``/readyz`` at ``host:port`` says is wrong; None if nothing is."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=_TIMEOUT_S):
            return None
    except HTTPError as error:
        said: bytes = error.read()
        return said.decode().strip()
    except (OSError, HTTPException):
        return "does not answer"


def merge(pages: Mapping[str, str]) -> str:
    """One page of several in Prometheus' text format; the label ``process`` says where each series comes from.

    All series of a family stand together, below one description, as the format demands.

    Args:
        pages: text of each page, by process.
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
    """``sample`` with the label added. A name holds neither brace nor space, so the first of these ends it."""
    name, brace, rest = sample.partition("{")
    if not brace or " " in name:
        name, _, value = sample.partition(" ")
        return f'{name}{{{PROCESS}="{process}"}} {value}'
    return f'{name}{{{PROCESS}="{process}",{rest}'
