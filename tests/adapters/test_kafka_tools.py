"""Other people's tools on our topics, and our launcher for brokers and tools, run as a person runs them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit.core.events import Topic
from plaudit.core.wire import encode_event
from support.builders import a_decision, some_feedback
from support.kafka_broker import ROOT, Cluster, Kafka, broker, need_broker

pytestmark = pytest.mark.kafka

SCRIPT = ROOT / "deploy/kafka/broker.py"
UNPACKED = ROOT / ".cache/debian/kcat"


@pytest.fixture
def written(kafka: Kafka) -> Iterator[Kafka]:
    """A corner with a decision and two pieces of feedback."""
    with contextlib.closing(kafka.log()) as log:
        log.append([a_decision("p1"), *(some_feedback("p1", feedback_id=name) for name in ("f1", "f2"))])
        yield kafka


def kcat(*arguments: str) -> bytes:
    """What kcat prints: Debian's, installed or unpacked by ``make programs``."""
    environment = dict(os.environ)
    program = shutil.which("kcat")
    if program is None:
        program = str(UNPACKED / "usr/bin/kcat")
        if not Path(program).exists():
            pytest.skip("no kcat here; `make programs` unpacks Debian's, or: apt install kcat")
        libraries = [str(folder) for folder in (UNPACKED / "usr/lib").glob("*-linux-gnu")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return subprocess.run([program, *arguments], env=environment, capture_output=True, check=True, timeout=60).stdout


def test_kcat_reads_keys_headers_and_payloads(written: Kafka) -> None:
    topic = written.prefix + Topic.FEEDBACK
    where = ("-b", written.bootstrap, "-t", topic, "-C", "-e", "-q")
    lines = kcat(*where, "-f", "%k|%h|%S\n").decode().splitlines()
    size = len(encode_event(some_feedback("p1", feedback_id="f1")))
    headers = "content-type=application/x-protobuf,event-type=plaudit.v1.FeedbackEvent"
    assert lines == [f"p1|{headers}|{size}"] * 2
    first = kcat(*where, "-o", "0", "-c", "1", "-f", "%s")
    assert first == encode_event(some_feedback("p1", feedback_id="f1"))


def test_kafkas_console_consumer_reads_our_topics(written: Kafka) -> None:
    command = broker.tool(
        "kafka-console-consumer",
        *("--bootstrap-server", written.bootstrap, "--topic", written.prefix + Topic.DECISIONS),
        *("--from-beginning", "--max-messages", "1"),
        *("--formatter-property", "print.key=true", "--formatter-property", "print.headers=true"),
    )
    printed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=60).stdout
    headers, key, payload = printed.split("\t", 2)
    assert headers == "content-type:application/x-protobuf,event-type:plaudit.v1.DecisionEvent"
    assert key == "p1"
    assert "cat" in payload


def test_kafkas_group_tool_sees_how_far_a_reader_is(written: Kafka) -> None:
    with (
        contextlib.closing(written.log()) as log,
        contextlib.closing(log.reader("g", [Topic.FEEDBACK], dict)) as reader,
    ):
        (record,) = reader.poll(1, 60)
        reader.commit({record.partition: record.cursor})
    command = broker.tool(
        "kafka-consumer-groups",
        *("--bootstrap-server", written.bootstrap, "--describe", "--group", written.prefix + "g"),
    )
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    (row,) = (line.split() for line in printed.splitlines() if Topic.FEEDBACK in line)
    assert row[2:6] == ["0", "1", "2", "1"], "partition, committed offset, end of the log, lag"


def test_the_script_starts_a_broker_and_stops_it_on_sigterm(tmp_path: Path) -> None:
    need_broker()
    command = [sys.executable, str(SCRIPT), "start", "--data", str(tmp_path / "data")]
    for expected in ([], ["f1"]):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        bootstrap = process.stdout.readline().strip()
        with contextlib.closing(Kafka(bootstrap).log()) as log:
            with contextlib.closing(log.reader("g", [Topic.FEEDBACK], dict)) as reader:
                assert reader.lag() == len(expected), "what was written before is there again"
            log.append([some_feedback("p1", feedback_id="f1")])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
    assert not any(_answers(address) for address in [bootstrap])


def test_the_script_runs_a_command_beside_a_broker() -> None:
    need_broker()
    inner = "import os; print(os.environ['PLAUDIT_LOG__KIND'], os.environ['PLAUDIT_KAFKA__BOOTSTRAP_SERVERS'])"
    command = [sys.executable, str(SCRIPT), "run", "--", sys.executable, "-c", inner]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    kind, _, bootstrap = done.stdout.strip().partition(" ")
    assert kind == "kafka"
    assert not _answers(bootstrap)


@pytest.mark.slow
def test_three_brokers_go_on_without_one(tmp_path: Path) -> None:
    need_broker()
    with Cluster(tmp_path, brokers=3, heap_mb=256) as cluster:
        log = Kafka(cluster.bootstrap).log(replication_factor=3, min_insync_replicas=2, delivery_timeout_s=30.0)
        with contextlib.closing(log):
            log.append([some_feedback("p1", feedback_id="f1")])
            cluster.brokers[0].kill()
            log.append([some_feedback("p1", feedback_id="f2")])
            with contextlib.closing(log.reader("g", [Topic.FEEDBACK], dict)) as reader:
                assert reader.lag() == 2


def _answers(address: str) -> bool:
    import socket

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True
