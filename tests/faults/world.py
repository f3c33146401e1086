"""Everything that is hurt: a broker behind a proxy, the inference service and the learner as processes, the tiny model.

The inference service keeps its port over restarts. Knows nothing about which faults there are.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator, Set
from pathlib import Path

from benchmarks.feedback.deployed import on_kafka
from deployment import PLAUDIT, Service, deployed
from faults.proxy import Proxy
from kafka_broker import Cluster
from plaudit import compose
from plaudit.core.ports import EventLog, ExperienceStore
from plaudit.core.settings import Settings, load_settings

MODEL = "tiny"


class World:
    """A running deployment in a folder.

    Attributes:
        service: the inference service's process.
        learner: the learner's process.
        store: what the learner has taken in.
    """

    service: Service
    learner: Service

    def __init__(self, folder: Path) -> None:
        proxy_port, broker_port, self._port = free_port(), free_port(), free_port()
        self.cluster = Cluster(folder / "kafka", properties=_behind(proxy_port, broker_port), heap_mb=256)
        self.broker = self.cluster.brokers[0]
        self.proxy = Proxy(proxy_port, f"127.0.0.1:{broker_port}")
        self.config = deployed(folder)
        toml = self.config.read_text(encoding="utf-8").replace("port = 0", f"port = {self._port}", 1)
        # No comparison takes refreshes back, nobody is set aside: what is learned is what the log says, no more.
        self.config.write_text(toml.replace("batch = 1\n", "batch = 64\nuser_cap = 1.0\n"), encoding="utf-8")
        on_kafka(self.config, f"127.0.0.1:{proxy_port}")
        self.settings: Settings = load_settings(self.config)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self.proxy.start()
        self.cluster.start()
        self.start_service()
        self.start_learner()
        self.service.event(event="ready")
        self.learner.event(event="ready")
        self.store: ExperienceStore = compose.experience_store(self.settings, MODEL)

    def start_service(self) -> None:
        self.service = Service([*PLAUDIT, "serve", "--config", str(self.config), "--json"])

    def start_learner(self) -> None:
        self.learner = Service([*PLAUDIT, "learn", "--config", str(self.config), "--json"])

    def stop(self) -> None:
        """Both services in their own time; broker and proxy stay."""
        for service in (self.service, self.learner):
            if (code := service.stop(signal.SIGTERM)) != 0:
                raise RuntimeError(f"a service ended with {code}: {service.logged()[-2000:]}")

    def close(self) -> None:
        for service in (self.service, self.learner):
            service.kill()
        self.store.close()
        self.cluster.kill()
        self.proxy.stop()

    @contextlib.contextmanager
    def log(self) -> Iterator[EventLog]:
        with contextlib.closing(compose.event_log(self.settings)) as log:
            yield log

    def not_taken_in(self, feedback_ids: Set[str]) -> set[str]:
        """Those of the ids that the learner's store does not know."""
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
