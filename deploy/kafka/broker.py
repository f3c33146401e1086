#!/usr/bin/env python3
"""Apache Kafka on this machine: fetches server and tools by coordinates (pom.xml), runs one broker or a cluster.

    python deploy/kafka/broker.py start [--brokers 3] [--data DIR] [--port 9092] [--set key=value]
    python deploy/kafka/broker.py run [--brokers 3] [--data DIR] -- COMMAND    its environment says where the broker is
    python deploy/kafka/broker.py tool kafka-topics --bootstrap-server HOST:PORT --list
    python deploy/kafka/broker.py fetch

``start`` prints the bootstrap address when the brokers answer, and stops them on SIGTERM or ctrl-C; what they hold
stays in the data folder, and the next start on the same folder uses the same ports. Needs Java 17 or newer and, once,
Maven. Also a library for tests: :class:`Cluster`. Uses the standard library alone and knows nothing about Plaudit.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
CACHE: Final = HERE.parents[1] / ".cache" / "kafka"
POM: Final = HERE / "pom.xml"
CHECKSUMS: Final = HERE / "jars.sha256"
LOGGING: Final = HERE / "log4j2.properties"
TOOLS: Final = {
    "kafka-configs": "kafka.admin.ConfigCommand",
    "kafka-console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-dump-log": "org.apache.kafka.tools.DumpLogSegments",
    "kafka-get-offsets": "org.apache.kafka.tools.GetOffsetShell",
    "kafka-reassign-partitions": "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
    "kafka-storage": "kafka.tools.StorageTool",
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
}

_PORTS: Final = range(15_000, 32_000)
"""Below what the system gives to outgoing connections, so that a stopped broker finds its port free again."""
_STARTED: Final = b"Kafka Server started"
_START_S: Final = 60.0
_TOOL_S: Final = 60.0
_STOP_S: Final = 20.0
_QUORUM_STOP_S: Final = 3.0
"""The last ones of a quorum wait in vain for a controller to let them go."""
_PROPERTIES: Final = "server.properties"
_CLUSTER: Final = "cluster.json"


class Missing(Exception):
    """This machine lacks what is needed; the message says what, and how to get it."""


class Failed(Exception):
    """Kafka did not start or answer; the message says where to look."""


# --- what runs -------------------------------------------------------------------------------------------------------


def java() -> str:
    """The Java launcher. Raises Missing: there is none, or it is too old."""
    found = shutil.which("java")
    if found is None:
        raise Missing("no Java here; install a JRE, 17 or newer (Debian: apt install openjdk-17-jre-headless)")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        raise Missing(f"Kafka needs Java 17 or newer, and {found} is: {said.splitlines()[0] if said else 'unusable'}")
    return found


def kafka_version() -> str:
    version = ET.parse(POM).getroot().findtext("{http://maven.apache.org/POM/4.0.0}version")
    assert version is not None
    return version


def fetch() -> Path:
    """The folder with all jars, fetched unless it is there, each compared with its checksum in jars.sha256.

    Raises:
        Missing: there is no Maven, it cannot reach its repository, or a jar is not the one that was pinned.
    """
    folder = CACHE / kafka_version()
    if folder.exists():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise Missing("no Maven here to fetch Kafka with; install it (Debian: apt install maven)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        jars = Path(scratch) / "jars"
        fetched = subprocess.run(
            [
                *(maven, "--quiet", "--batch-mode", "--strict-checksums", "--file", str(POM)),
                *("dependency:copy-dependencies", f"-DoutputDirectory={jars}", "-DincludeScope=runtime"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if fetched.returncode != 0:
            raise Missing(f"Maven cannot fetch Kafka {kafka_version()}: {fetched.stdout.strip()[-1000:]}")
        _compare_checksums(jars)
        with contextlib.suppress(OSError):  # somebody else was faster
            jars.rename(folder)
    return folder


def _compare_checksums(jars: Path) -> None:
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in sorted(jars.glob("*.jar"))}
    if not CHECKSUMS.exists():
        CHECKSUMS.write_text("".join(f"{digest}  {name}\n" for name, digest in found.items()), encoding="utf-8")
        return
    pinned = dict(reversed(line.split()) for line in CHECKSUMS.read_text(encoding="utf-8").splitlines())
    if found != pinned:
        wrong = sorted(name for name in found.keys() | pinned.keys() if found.get(name) != pinned.get(name))
        raise Missing(f"these jars are not the ones pinned in {CHECKSUMS.name}: {', '.join(wrong)}")


def jvm(main: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """The command that runs a class of Kafka's. Raises Missing."""
    return [java(), *options, f"-Dlog4j2.configurationFile={LOGGING}", "-cp", f"{fetch()}/*", main, *arguments]


def tool(name: str, *arguments: str) -> list[str]:
    """The command that runs one of Kafka's console tools. Raises Missing."""
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m")
    return jvm(TOOLS[name], *arguments, options=quick)


# --- brokers ---------------------------------------------------------------------------------------------------------


class Broker:
    """One broker's process, with all it needs in its folder.

    Attributes:
        address: where clients connect.
        internal: where brokers talk to each other, without security; for tools.
    """

    def __init__(self, folder: Path, *, address: str, internal: str, heap_mb: int) -> None:
        self.folder = folder
        self.address = address
        self.internal = internal
        self.process: subprocess.Popen[bytes] | None = None
        self._heap_mb = heap_mb

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def launch(self) -> None:
        """Start the process; :meth:`wait` for it to answer."""
        options = [f"-Xms{self._heap_mb // 2}m", f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command = jvm("kafka.Kafka", str(self.folder / _PROPERTIES), options=options)
        with self.log.open("wb") as log:
            # A session of its own: ctrl-C is for this script, which stops the brokers in its own time.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )

    def wait(self) -> None:
        """Raises Failed: it ended, or did not start in time."""
        deadline = time.monotonic() + _START_S
        while _STARTED not in self.log.read_bytes():
            if not self.running or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                self.kill()
                raise Failed(f"the broker on {self.address} did not start; {self.log} ends with:\n{tail}")
            time.sleep(0.02)

    def start(self) -> None:
        """Raises Failed."""
        self.launch()
        self.wait()

    def stop(self, patience_s: float = _STOP_S) -> None:
        """Let it end in its own time, but for so long; what is on disk is whole either way."""
        if self.process is None:
            return
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """Stop it in its tracks: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            assert self.process is not None
            self.process.send_signal(number)


class Cluster:
    """Brokers that are controllers too (KRaft), on free ports of this machine, with their data in one folder.

    A folder that holds a cluster's data already is used again with what it was made with: same ports, same properties.

    Args:
        folder: made if it is not there.
        brokers: how many.
        port: of the first broker; 0 picks free ones.
        properties: of every broker, over the ones set here, such as ``{"message.max.bytes": "1000000"}``.
        users: names and passwords; if there are any, clients must be one of them, by SASL PLAIN or SCRAM-SHA-256.
        keystore: PEM file with the brokers' private key and certificate; if given, clients must use TLS.
        heap_mb: memory of each JVM's heap.
    """

    def __init__(
        self,
        folder: Path,
        *,
        brokers: int = 1,
        port: int = 0,
        properties: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        keystore: Path | None = None,
        heap_mb: int = 512,
    ) -> None:
        self.folder = folder.resolve()
        made = self.folder / _CLUSTER
        if not made.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make(brokers, port, dict(properties or {}), dict(users or {}), keystore)
        nodes = json.loads(made.read_text(encoding="utf-8"))
        self.brokers = [Broker(self.folder / str(number), heap_mb=heap_mb, **node) for number, node in nodes.items()]

    @property
    def bootstrap(self) -> str:
        """Where clients connect."""
        return ",".join(broker.address for broker in self.brokers)

    @property
    def internal(self) -> str:
        """Where tools connect that have no credentials."""
        return ",".join(broker.internal for broker in self.brokers)

    def start(self) -> None:
        """Raises Failed, and then none of them runs."""
        try:
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:
                broker.wait()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        for broker in self.brokers:
            if broker.running:
                broker.resume()
                broker.process.terminate()  # type: ignore[union-attr]
        for broker in self.brokers:
            broker.stop(_STOP_S if len(self.brokers) == 1 else _QUORUM_STOP_S)

    def kill(self) -> None:
        for broker in self.brokers:
            broker.kill()

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tool(self, name: str, *arguments: str) -> str:
        """What one of Kafka's console tools prints about this cluster. Raises Failed."""
        done = _finish(tool(name, "--bootstrap-server", self.internal, *arguments))
        if done.returncode != 0:
            raise Failed(f"{name} {' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return done.stdout

    def _make(
        self, brokers: int, port: int, properties: dict[str, str], users: dict[str, str], keystore: Path | None
    ) -> None:
        ports = [_free_ports(3) for _ in range(brokers)]
        if port:
            ports = [[port + number, *rest] for number, (_, *rest) in enumerate(ports)]
        voters = ",".join(f"{number}@127.0.0.1:{control}" for number, (_, _, control) in enumerate(ports))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        nodes = {}
        for number, (client, internal, control) in enumerate(ports):
            folder = self.folder / str(number)
            folder.mkdir(exist_ok=True)
            settings = _properties(number, client, internal, control, voters, folder, brokers)
            settings |= _security(users, keystore) | properties
            text = "".join(f"{key}={value}\n" for key, value in settings.items())
            (folder / _PROPERTIES).write_text(text, encoding="utf-8")
            scram = [f"SCRAM-SHA-256=[name={name},password={password}]" for name, password in users.items()]
            _format(folder, cluster_id, scram)
            nodes[str(number)] = {"address": f"127.0.0.1:{client}", "internal": f"127.0.0.1:{internal}"}
        (self.folder / _CLUSTER).write_text(json.dumps(nodes), encoding="utf-8")


def _properties(
    number: int, client: int, internal: int, control: int, voters: str, folder: Path, brokers: int
) -> dict[str, str]:
    replicas = str(min(brokers, 3))
    return {
        "node.id": str(number),
        "process.roles": "broker,controller",
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL",
        "listeners": ",".join(
            f"{name}://127.0.0.1:{port}"
            for name, port in (("CLIENT", client), ("INTERNAL", internal), ("CONTROLLER", control))
        ),
        "log.dirs": str(folder / "data"),
        # Only who makes a topic knows how many partitions it needs.
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": "1",
        "min.insync.replicas": str(min(brokers, 2)),
        # A broker that was killed comes back when the controller has given its last session up.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "300",
        # A group's first reader reads at once.
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
    }


def _security(users: Mapping[str, str], keystore: Path | None) -> dict[str, str]:
    protocol = ("SASL_" if users else "") + ("SSL" if keystore else "PLAINTEXT")
    settings = {
        "listener.security.protocol.map": f"CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }
    if users:
        module = "org.apache.kafka.common.security"
        known = " ".join(f'user_{name}="{password}"' for name, password in users.items())
        settings["sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256"
        settings["listener.name.client.plain.sasl.jaas.config"] = f"{module}.plain.PlainLoginModule required {known};"
        settings["listener.name.client.scram-sha-256.sasl.jaas.config"] = f"{module}.scram.ScramLoginModule required;"
    if keystore:
        settings["listener.name.client.ssl.keystore.type"] = "PEM"
        settings["listener.name.client.ssl.keystore.location"] = str(keystore.resolve())
    return settings


def _format(folder: Path, cluster_id: str, scram: Sequence[str]) -> None:
    users = [part for user in scram for part in ("--add-scram", user)]
    command = tool("kafka-storage", "format", f"--cluster-id={cluster_id}", f"--config={folder / _PROPERTIES}", *users)
    done = _finish(command)
    if done.returncode != 0:
        raise Failed(f"{folder} cannot be formatted: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def _finish(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end. Raises Failed: it does not come to one."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TOOL_S
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}: not done after {_TOOL_S:g} s") from error


def _free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        port = random.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return sorted(found)


# --- the commands ----------------------------------------------------------------------------------------------------


def _start(options: argparse.Namespace) -> int:
    with _cluster(options) as cluster:
        print(cluster.bootstrap, flush=True)
        _until_told_to_stop(cluster)
    return 0


def _run(options: argparse.Namespace) -> int:
    with _cluster(options) as cluster:
        environment = {"PLAUDIT_LOG__KIND": "kafka", "PLAUDIT_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap}
        return subprocess.run(options.command, env=os.environ | environment, check=False).returncode


@contextlib.contextmanager
def _cluster(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The brokers that the options describe; without a data folder in one that is removed afterwards."""
    with contextlib.ExitStack() as stack:
        folder = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kafka-")))
        properties = dict(pair.split("=", 1) for pair in options.set)
        cluster = Cluster(folder, brokers=options.brokers, port=options.port, properties=properties)
        yield stack.enter_context(cluster)


def _until_told_to_stop(cluster: Cluster) -> None:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    while not told.wait(0.5):
        if not any(broker.running for broker in cluster.brokers):
            raise Failed(f"every broker ended; see {cluster.brokers[0].log}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Apache Kafka on this machine, for tests and experiments.")
    commands = parser.add_subparsers(required=True)
    for name, action, about in (
        ("start", _start, "run brokers until told to stop"),
        ("run", _run, "run a command beside brokers: its log is Kafka, by environment"),
    ):
        command = commands.add_parser(name, help=about)
        command.set_defaults(action=action)
        command.add_argument("--brokers", type=int, default=1)
        command.add_argument("--data", type=Path, help="where they keep their data; without it nothing is kept")
        command.add_argument("--port", type=int, default=0, help="of the first broker; 0 picks free ones")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a broker property")
        if name == "run":
            command.add_argument("command", nargs="+")
    command = commands.add_parser("tool", help="run one of Kafka's console tools")
    command.add_argument("name", choices=sorted(TOOLS))
    command.add_argument("arguments", nargs=argparse.REMAINDER)
    command.set_defaults(action=lambda options: subprocess.run(tool(options.name, *options.arguments)).returncode)
    command = commands.add_parser("fetch", help="fetch Kafka; print where it is")
    command.set_defaults(action=lambda options: print(fetch()) or 0)
    options = parser.parse_args(arguments)
    try:
        return int(options.action(options))
    except (Missing, Failed) as problem:
        print(f"broker.py: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
