"""What the doctor finds of real brokers and topics."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient

from plaudit.cli.doctor.checks import examine
from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.log import event_log
from plaudit.compose.settings import load_settings
from plaudit.core.errors import ConfigError
from plaudit.core.events import Topic
from plaudit.core.settings import Settings
from support import builders
from support.kafka_broker import Cluster, Kafka, need_broker

pytestmark = pytest.mark.kafka

FREE = {"serving": {"port": 0, "metrics_port": 0}, "learner": {"metrics_port": 0}, "log": {"kind": "kafka"}}


def settings_for(kafka: Kafka, tmp_path: Path, **changes: Any) -> Settings:
    table = {"bootstrap_servers": kafka.bootstrap, "topic_prefix": kafka.prefix, "partitions": 2} | changes
    model = builders.tiny_spec().to_dict()
    return load_settings(None, FREE | {"data_dir": tmp_path / "data", "model": model, "kafka": table})


def found(settings: Settings) -> list[Finding]:
    return [each for each in examine(settings) if each.subject.startswith(("event log", "topic"))]


def about(findings: list[Finding], topic: str) -> Finding:
    (finding,) = (each for each in findings if each.subject.endswith(topic))
    return finding


def make_topics(kafka: Kafka, **config: str) -> None:
    """Topics of decisions and feedback that an operator made by hand."""
    with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
        admin.create_topics(
            {
                kafka.prefix + topic: {"num_partitions": 2, "replication_factor": 1, "configs": config}
                for topic in (Topic.DECISIONS, Topic.FEEDBACK)
            },
            wait_for_metadata=True,
        )


def test_topics_of_our_own_making_have_nothing_to_fix(kafka: Kafka, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path)
    with contextlib.closing(event_log(settings)) as log:
        log.append([builders.a_decision("p1"), builders.some_feedback("p1")])
    findings = found(settings)
    assert {each.state for each in findings} == {State.OK}
    assert findings[0].message == "Kafka answers; 2 decisions and pieces of feedback recorded"
    assert about(findings, Topic.FEEDBACK).message.startswith("2 partitions;")
    assert "60 days kept" in about(findings, Topic.FEEDBACK).message


def test_missing_topics_are_noted(kafka: Kafka, tmp_path: Path) -> None:
    finding = about(found(settings_for(kafka, tmp_path)), "topics")
    assert finding.state is State.NOTE
    assert kafka.prefix + Topic.DECISIONS in finding.message


@pytest.mark.parametrize(
    ("config", "state", "problem"),
    [
        ({"retention.ms": "3600000"}, State.ERROR, "less than serving.feedback_window_s"),
        ({"cleanup.policy": "compact"}, State.ERROR, "cleanup.policy is compact"),
        ({"min.insync.replicas": "2"}, State.ERROR, "min.insync.replicas is 2, and there are 1 copies"),
        ({"max.message.bytes": "1000000"}, State.ERROR, "less than kafka.max_record_bytes"),
    ],
)
def test_a_wrong_topic_is_an_error_and_the_fix_names_the_setting(
    kafka: Kafka, tmp_path: Path, config: dict[str, str], state: State, problem: str
) -> None:
    fine = {"retention.ms": "-1", "max.message.bytes": "30000000"}
    make_topics(kafka, **fine | config)
    finding = about(found(settings_for(kafka, tmp_path)), Topic.FEEDBACK)
    assert (finding.state, problem in finding.message) == (state, True), finding.message
    assert f"--add-config {next(iter(config))}=" in finding.fix


def test_too_few_partitions_and_copies(kafka: Kafka, tmp_path: Path) -> None:
    make_topics(kafka, **{"retention.ms": "-1", "max.message.bytes": "30000000"})
    settings = settings_for(kafka, tmp_path, partitions=6, replication_factor=3)
    findings = [each for each in found(settings) if each.subject.endswith(Topic.DECISIONS)]
    assert [each.state for each in findings] == [State.NOTE, State.ERROR]
    assert "2 partitions, fewer than kafka.partitions = 6" in findings[0].message
    assert "1 copies of each record" in findings[1].message


def test_unequal_partitions_are_bad(kafka: Kafka, tmp_path: Path) -> None:
    with contextlib.closing(kafka.log(partitions=2)) as log:
        log.append([builders.some_feedback("p1")])
    with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
        admin.create_partitions({kafka.prefix + Topic.FEEDBACK: 3})
        admin.wait_for_topics([kafka.prefix + Topic.FEEDBACK])
    finding = about(found(settings_for(kafka, tmp_path)), "topics")
    assert (finding.state, "different partitions" in finding.message) == (State.ERROR, True)


@pytest.mark.slow
def test_three_copies_of_which_one_counts(tmp_path: Path) -> None:
    need_broker()
    with Cluster(tmp_path / "brokers", brokers=3, heap_mb=256) as cluster:
        kafka = Kafka(cluster.bootstrap)
        settings = settings_for(kafka, tmp_path, replication_factor=3)
        with contextlib.closing(event_log(settings)) as log:
            log.append([builders.some_feedback("p1")])
        finding = about(found(settings), Topic.FEEDBACK)
    assert finding.state is State.NOTE
    assert "a record counts as durable on one broker" in finding.message


def test_no_broker_there(tmp_path: Path) -> None:
    (finding,) = found(settings_for(Kafka("127.0.0.1:9"), tmp_path))
    assert finding.state is State.ERROR
    assert "127.0.0.1:9 cannot be reached" in finding.message
    assert "kafka.bootstrap_servers" in finding.fix


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "plaudit.adapters.log.kafka.log", raising=False)
    monkeypatch.delitem(sys.modules, "plaudit.adapters.log.kafka.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "kafka", None)
    with pytest.raises(ConfigError, match=r"pip install 'plaudit\[kafka\]'"):
        event_log(settings_for(Kafka("127.0.0.1:9"), tmp_path))


def test_records_must_hold_the_largest_request(tmp_path: Path) -> None:
    settings = settings_for(Kafka("127.0.0.1:9"), tmp_path, max_record_bytes=1_000_000)
    with pytest.raises(ConfigError, match=r"kafka\.max_record_bytes: 1000000 is too little"):
        event_log(settings)
