"""Alerts seen to fire: each on the pages of real services in the state that it tells, scraped by a real Prometheus.

tests/deploy/test_prometheus.py has three more; the others are left to promtool.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from plaudit.client import Client, ClientError, Prediction
from plaudit.compose.log import event_log
from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Change, promote
from support import builders
from support.deployment import PLAUDIT, Service, deployed
from support.scraping import Prometheus, scraping, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONTENT: Final = {"question": "which animal?"}
N_CALLERS: Final = 24


@dataclass(frozen=True)
class Running:
    """A `plaudit up` that is scraped."""

    config: Path
    up: Service
    target: str
    prometheus: Prometheus

    def until_firing(self, alert: str, again: Callable[[], object] = lambda: None) -> None:
        """Do something again and again until an alert fires; it must not have fired before."""
        while alert not in self.prometheus.firing():
            again()

    def pid(self, service: str) -> int:
        """Process of a service as it is now."""
        found: int = until(lambda: next((int(pid) for pid in self._children() if service in _arguments(pid)), None))
        return found

    def _children(self) -> list[str]:
        return Path(f"/proc/{self.up.process.pid}/task/{self.up.process.pid}/children").read_text().split()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """``start(window, SECTION__NAME=value)``: a deployment with these settings."""
    with contextlib.ExitStack() as stack:

        def start_one(window: str | None = None, **settings: object) -> Running:
            for name, value in settings.items():
                monkeypatch.setenv(f"PLAUDIT_{name}", str(value))
            config = deployed(tmp_path)
            up = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
            stack.callback(up.kill)
            ready = up.ready("serve", "learn")
            pages = {f"plaudit-{name}": [str(event["metrics"])] for name, event in ready.items()}
            asked = stack.enter_context(scraping(tmp_path / "scraped", pages, window=window))
            return Running(config, up, str(ready["serve"]["address"]), asked)

        yield start_one


def _arguments(pid: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return []


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Nobody else can write to a database meanwhile, as where a disk hangs."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def _predict(client: Client) -> Prediction | None:
    with contextlib.suppress(ClientError):
        return client.predict(CONTENT)
    return None


def test_slow_answers_and_then_an_overload(start: Start) -> None:
    running = start(SERVING__QUEUE_LIMIT=2)
    serve = running.pid("serve")
    with Client(running.target) as client, ThreadPoolExecutor(N_CALLERS) as pool:
        assert running.prometheus.firing() == set()

        def be_slow() -> None:
            """As where a machine swaps: whatever is under way takes half a second longer."""
            answers = [pool.submit(_predict, client) for _ in range(4 * N_CALLERS)]
            answers[0].result()
            os.kill(serve, signal.SIGSTOP)
            threading.Event().wait(0.5)
            os.kill(serve, signal.SIGCONT)
            for answer in answers:
                answer.result()

        running.until_firing("PlauditSlow", be_slow)
        running.until_firing(
            "PlauditOverloaded", lambda: list(pool.map(lambda _: _predict(client), range(10 * N_CALLERS)))
        )


def test_a_log_that_cannot_be_written(start: Start) -> None:
    """Answers go on, their decisions are dropped, feedback waits and then fails, and later finds no decision."""
    running = start(SERVING__DECISION_QUEUE_LIMIT=16)
    log = running.config.parent / "data/log.sqlite"
    with Client(running.target) as client, ThreadPoolExecutor(N_CALLERS) as pool:
        known = client.predict(CONTENT)
        assert running.prometheus.firing() == set()

        def give_thumb(prediction: Prediction) -> None:
            with contextlib.suppress(ClientError):
                client.thumbs_up(prediction)

        def hang_for_two_seconds() -> None:
            with _locked(log):
                thumbs = [pool.submit(give_thumb, known) for _ in range(N_CALLERS)]
                threading.Event().wait(2.0)
            for thumb in thumbs:
                thumb.result()

        running.until_firing("PlauditFeedbackSlow", hang_for_two_seconds)
        dropped = []
        with _locked(log):
            for _ in range(400):
                dropped.append(client.predict(CONTENT))
            running.until_firing("PlauditDecisionsDropped")
            running.until_firing("PlauditErrors", lambda: list(pool.map(give_thumb, [known] * N_CALLERS)))
        running.until_firing("PlauditNotJoined", lambda: list(pool.map(give_thumb, dropped)))


def test_a_learner_that_is_behind(start: Start) -> None:
    running = start()
    learner = running.pid("learn")
    os.kill(learner, signal.SIGSTOP)
    log = event_log(load_settings(running.config))
    try:
        for first in range(0, 60_000, 2_000):
            log.append([builders.a_decision(f"p{number}") for number in range(first, first + 2_000)])
    finally:
        log.close()
        os.kill(learner, signal.SIGCONT)
    running.until_firing("PlauditLearnerBehind")


def test_a_learner_that_ends_after_every_start(start: Start) -> None:
    running = start(window="2s")
    assert running.prometheus.firing() == set()

    def end() -> None:
        with contextlib.suppress(ProcessLookupError, StopIteration):
            os.kill(running.pid("learn"), signal.SIGKILL)

    running.until_firing("PlauditLearnerDown", end)


def test_replicas_of_which_one_has_no_version_and_one_another(tmp_path: Path) -> None:
    services, pages = [], []
    try:
        for number, live in enumerate((1, 2, None)):
            (tmp_path / f"replica-{number}").mkdir()
            config = deployed(tmp_path / f"replica-{number}")
            registry = model_registry(load_settings(config))
            if live != 1:
                shutil.rmtree(tmp_path / f"replica-{number}/made")
                builders.tiny_bundle(tmp_path / f"replica-{number}/made", seed=number)
                registry.publish(tmp_path / f"replica-{number}/made")
                registry.set_rollout(promote(registry.rollout(), 2, Change("a test", 1.0, "")))
            if live is None:
                for version in (1, 2):
                    graph = registry.folder(version) / "trunk.onnx"
                    graph.unlink()
                    graph.write_bytes(b"damaged")
            services.append(Service([*PLAUDIT, "serve", "--config", str(config), "--json"]))
            pages.append(str(services[-1].event(event="ready")["metrics"]))
        with scraping(tmp_path / "scraped", {"plaudit-serve": pages, "plaudit-learn": []}) as asked:
            until(lambda: asked.firing() >= {"PlauditReplicasDisagree", "PlauditNoLiveVersion"})
    finally:
        for service in services:
            service.kill()
