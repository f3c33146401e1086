"""Deployment under faults: a broker behind a proxy, the inference service and the learner as processes, and its jobs.

The model is small but a real one, so that fine-tuning jobs can train it; one is due every few rounds. What they make
never serves. The inference service keeps its port over restarts. Knows nothing about which faults there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final

from benchmarks.feedback.deployed import on_kafka
from faults.proxy import Proxy
from plaudit.compose.learner import job_launcher
from plaudit.compose.log import event_log
from plaudit.compose.paths import learner_dir
from plaudit.compose.settings import load_settings
from plaudit.compose.store import experience_store
from plaudit.core.ports.jobs import JobState
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.settings import Settings
from plaudit.learner.state import LearnerState
from plaudit.learner.tuning_state import Training, TuningState
from support.deployment import PLAUDIT, Service
from support.kafka_broker import Cluster

MODEL: Final = "tiny"
ACTIONS: Final = ("cat", "dog", "fish", "bird")

_SETTINGS: Final = """
data_dir = {data_dir}
[serving]
port = {port}
metrics_port = 0
[learner]
metrics_port = 0
# No comparison reverts refreshes and no rater is excluded, so that the learned state equals a recount of the log.
batch = 64
user_cap = 1.0
[model]
name = "{model}"
actions = {actions}
embedding_size = 8
[model.modalities.question]
kind = "text"
max_tokens = 8
[pretrain]
max_epochs = 2
threads = 1
# A job is short, its candidate passes the gate quickly and without a verdict, and then the next job is due.
[finetune]
every = 150
max_duration_s = 5.0
max_experiences = 500
[gate]
min_events = 1000000
max_events = 1
"""


class World:
    """A running deployment in a folder.

    Attributes:
        service: the inference service's process.
        learner: the learner's process.
        store: the experience store.
        jobs: outcome of each fine-tuning job that has ended, as far as :meth:`unnoticed_jobs` has looked.
    """

    service: Service
    learner: Service

    def __init__(self, folder: Path) -> None:
        proxy_port, broker_port, self._port = free_port(), free_port(), free_port()
        self.cluster = Cluster(folder / "kafka", properties=_behind(proxy_port, broker_port), heap_mb=256)
        self.broker = self.cluster.brokers[0]
        self.proxy = Proxy(proxy_port, f"127.0.0.1:{broker_port}")
        self.config = folder / "plaudit.toml"
        self.config.write_text(
            _SETTINGS.format(
                data_dir=json.dumps(str(folder / "data")), port=self._port, model=MODEL, actions=json.dumps(ACTIONS)
            ),
            encoding="utf-8",
        )
        on_kafka(self.config, f"127.0.0.1:{proxy_port}")
        self.settings: Settings = load_settings(self.config)
        self._labelled = folder / "labelled"
        self.killed_jobs: set[str] = set()
        self.jobs: dict[str, str] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._labelled.mkdir()
        rows = [f"{split},{action},which animal is a {action}?" for split in ("train", "val") for action in ACTIONS * 4]
        (self._labelled / "manifest.csv").write_text(
            "\n".join(["split,action,question", *rows]) + "\n", encoding="utf-8"
        )
        pretrain = [*PLAUDIT, "pretrain", "--data", str(self._labelled), "--config", str(self.config), "--json"]
        subprocess.run(pretrain, stdout=subprocess.DEVNULL, check=True)
        self.proxy.start()
        self.cluster.start()
        self.start_service()
        self.start_learner()
        self.service.event(event="ready")
        self.learner.event(event="ready")
        self.store: ExperienceStore = experience_store(self.settings, MODEL)

    def start_service(self) -> None:
        self.service = Service([*PLAUDIT, "serve", "--config", str(self.config), "--json"])

    def start_learner(self) -> None:
        self.learner = Service([*PLAUDIT, "learn", "--config", str(self.config), "--json"])

    def tuning(self) -> TuningState:
        """State of fine-tuning, as the learner has saved it."""
        return LearnerState(self.store).tuning

    def kill_job(self, after_s: float) -> bool:
        """kill -9 for the job that is running, in so many seconds; False if there is none, or it is done by then."""
        phase = self.tuning().phase
        if not isinstance(phase, Training):
            return False
        time.sleep(after_s)
        if killed := self._kill(phase.run):
            self.killed_jobs.add(phase.run)
        return killed

    def unnoticed_jobs(self) -> Set[str]:
        """Killed jobs whose end the learner has not reported."""
        self.jobs |= {each.run: each.outcome for each in self.tuning().outcomes}
        return self.killed_jobs - self.jobs.keys()

    def _kill(self, run: str) -> bool:
        folder = learner_dir(self.settings, MODEL) / "runs" / run
        jobs = job_launcher(self.settings, MODEL)
        with contextlib.suppress(OSError):
            if jobs.status(folder).state != JobState.RUNNING:
                return False
            os.killpg(int((folder / "job.pid").read_text(encoding="ascii")), signal.SIGKILL)
            while jobs.status(folder).state == JobState.RUNNING:
                time.sleep(0.01)
            return jobs.status(folder).state == JobState.FAILED
        return False

    def stop(self) -> None:
        """Drain both services; broker and proxy stay."""
        for service in (self.service, self.learner):
            if (code := service.stop(signal.SIGTERM)) != 0:
                raise RuntimeError(f"a service ended with {code}: {service.logged()[-2000:]}")

    def close(self) -> None:
        for service in (self.service, self.learner):
            service.kill()
        if isinstance(phase := self.tuning().phase, Training):
            self._kill(phase.run)
        self.store.close()
        self.cluster.kill()
        self.proxy.stop()

    @contextlib.contextmanager
    def log(self) -> Iterator[EventLog]:
        with contextlib.closing(event_log(self.settings)) as log:
            yield log

    def not_taken_in(self, feedback_ids: Set[str]) -> set[str]:
        """Feedback ids that are not in the learner's store."""
        return set(feedback_ids) - set(self.store.feedback(sorted(feedback_ids)))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _behind(proxy_port: int, broker_port: int) -> dict[str, str]:
    """Properties of a broker that listens on one port and tells its clients to come by another."""
    internal, control = f"INTERNAL://127.0.0.1:{free_port()}", free_port()
    return {
        "listeners": f"CLIENT://127.0.0.1:{broker_port},{internal},CONTROLLER://127.0.0.1:{control}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{proxy_port},{internal}",
        "controller.quorum.voters": f"0@127.0.0.1:{control}",
    }
