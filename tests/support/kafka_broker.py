"""Real Kafka brokers for tests and benchmarks, from ``deploy/kafka/broker.py``.

Tests that only need a broker take the fixture ``kafka`` and keep apart by topic prefix;
``PLAUDIT_TEST_KAFKA=HOST:PORT`` names one that runs already. Tests that hurt brokers make their own :class:`Cluster`:
``brokers[0].kill()``, ``.pause()``, ``.resume()``, ``.start()`` again on the same data and port.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    """The script as a module; it lives with what is deployed, which is no package."""
    spec = importlib.util.spec_from_file_location("plaudit_deploy_broker", ROOT / "deploy/kafka/broker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


broker = _load()
Cluster = broker.Cluster


def missing() -> str | None:
    """Reason why no broker can run here; None if one can."""
    try:
        broker.java()
        broker.fetch()
    except broker.Missing as problem:
        return str(problem)
    return None


def need_broker() -> None:
    """Skip the test where no broker can run."""
    if reason := missing():
        pytest.skip(reason)


@dataclass(frozen=True)
class Kafka:
    """A broker, and a corner of it: topics with a prefix of their own.

    Attributes:
        bootstrap: where clients connect.
        prefix: what the names of topics and groups begin with.
    """

    bootstrap: str
    prefix: str = ""

    def corner(self) -> Kafka:
        return replace(self, prefix=f"t{uuid.uuid4().hex[:8]}.")

    def log(self, slot: Any = None, **changes: Any) -> Any:
        """A log in this corner, for tests: quick to give up. ``changes``: fields of what it is made of."""
        from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan
        from plaudit.adapters.log.kafka.log import Delivery, KafkaLog

        fields: dict[str, Any] = {"bootstrap_servers": self.bootstrap, "topic_prefix": self.prefix, "partitions": 1}
        fields |= changes

        def of(kind: Any) -> dict[str, Any]:
            return {name: value for name, value in fields.items() if name in kind.__dataclass_fields__}

        connection, plan = KafkaConnection(**of(KafkaConnection)), TopicPlan(**of(TopicPlan))
        return KafkaLog(connection, plan, Delivery(**of(Delivery)), slot)


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One broker for the whole run."""
    if named := os.environ.get("PLAUDIT_TEST_KAFKA"):
        yield Kafka(named)
        return
    need_broker()
    with Cluster(tmp_path_factory.mktemp("kafka")) as cluster:
        yield Kafka(cluster.bootstrap)


@pytest.fixture
def kafka(kafka_server: Kafka) -> Kafka:
    """A corner of the broker for one test."""
    return kafka_server.corner()
