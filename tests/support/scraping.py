"""A real Prometheus over services of a test, with the deployment's rules and alerts that wait for nothing."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from support.programs import prometheus

DEPLOY: Final = Path(__file__).parents[2] / "deploy/prometheus"


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus at ``url``."""

    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        answer = json.loads(get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {alert["metric"]["alertname"] for alert in self.query('ALERTS{alertstate="firing"}')}


@contextlib.contextmanager
def scraping(folder: Path, targets: Mapping[str, list[str]], *, window: str | None = None) -> Iterator[Prometheus]:
    """Prometheus that scrapes five times a second, once all targets are up.

    Args:
        targets: metrics addresses by job.
        window: replaces the windows of up to two minutes, so that a test sees the end of one.
    """
    program = prometheus()
    port = _free_port()
    _hurried(folder / "prometheus", targets, window)
    arguments = [f"--config.file={folder}/prometheus/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    arguments.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "prometheus.log").open("w") as log:
        running = subprocess.Popen([program.path, *arguments], env=dict(program.environment), stderr=log)
    try:
        asked = Prometheus(f"http://127.0.0.1:{port}")
        until(lambda: _all_up(asked, sum(map(len, targets.values()))))
        yield asked
    finally:
        running.kill()
        running.wait()


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it holds; the test's own timeout ends waiting in vain."""
    while not (found := condition()):
        pass
    return found


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        page: bytes = answer.read()
        return page.decode()


def _hurried(folder: Path, targets: Mapping[str, list[str]], window: str | None) -> None:
    """The configuration as it is, but for where to scrape and how long everything takes."""
    shutil.copytree(DEPLOY, folder)
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "200ms")
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in ("rules.yml", "alerts.yml"):
        text = (folder / name).read_text()
        text = re.sub(r"^( +for:) \w+", r"\1 0s", text, flags=re.MULTILINE)
        if window is not None:
            text = re.sub(r"\[[12]m\]", f"[{window}]", text)
        (folder / name).write_text(text)


def _all_up(asked: Prometheus, number: int) -> bool:
    try:
        return sum(float(target["value"][1]) for target in asked.query("up")) == number
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
