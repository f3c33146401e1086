"""Connection to Kafka, the topics that are needed, and explanations of what is wrong with either.

Knows nothing about events but their topics; log.py writes them, reader.py reads them.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import codec as codecs
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError, UnsupportedCodecError
from kafka.net.compat import KafkaNetClient

from plaudit.core.errors import LogUnavailable
from plaudit.core.events import Topic

TOGETHER: Final = (Topic.DECISIONS, Topic.FEEDBACK)
"""Topics whose records of one key must be in partitions of the same number."""

Client = TypeVar("Client")

_RECONNECT_S: Final = 0.5
_UNKNOWN_TOPIC: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConnection:
    """Connection to the brokers. Fields are the settings of [kafka] by the same names.

    Attributes:
        timeout_s: longest time to connect, and of any one request.
    """

    bootstrap_servers: str
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-256"
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    timeout_s: float = 10.0

    def options(self) -> dict[str, Any]:
        """Options of every client of kafka-python."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "security_protocol": self.security,
            "bootstrap_timeout_ms": milliseconds(self.timeout_s),
            "request_timeout_ms": milliseconds(self.timeout_s),
            "reconnect_backoff_max_ms": milliseconds(_RECONNECT_S),
        }
        if self.security.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        if self.security.endswith("SSL"):
            options |= {
                "ssl_cafile": self.tls_ca_file,
                "ssl_certfile": self.tls_cert_file,
                "ssl_keyfile": self.tls_key_file,
            }
        return options

    def build(self, kind: type[Client], **options: object) -> Client:
        """A client of kafka-python, connected. One that fails to connect leaves no thread and no socket behind."""
        made: list[KafkaNetClient] = []

        def remember(**configs: object) -> KafkaNetClient:
            made.append(_with_backoff(KafkaNetClient(**configs)))
            return made[-1]

        try:
            return kind(**self.options() | {"kafka_client": remember} | options)
        except BaseException:
            for client in made:
                client.close()
            raise

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """Raises LogUnavailable: no broker answers, or one refuses; the message says why, and what to do."""
        with self.errors():
            self.probe()
            client = self.build(KafkaAdminClient)
            try:
                yield client
            finally:
                client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns kafka-python's errors into LogUnavailable."""
        with _logged_warnings() as heard:
            try:
                yield
            except KafkaError as error:
                raise LogUnavailable(self.explain(error, heard)) from error

    def probe(self) -> None:
        """Connect to one broker after another until one accepts.

        kafka-python would try for the whole of ``timeout_s`` without a reason, and has no timeout for TLS handshakes.

        Raises:
            LogUnavailable: none accepts.
        """
        problems = []
        for server in self.bootstrap_servers.split(","):
            host, _, port = server.strip().rpartition(":")
            try:
                with socket.create_connection((host.strip("[]"), int(port)), self.timeout_s) as connection:
                    if self.security.endswith("SSL"):
                        self._tls().wrap_socket(connection, server_hostname=host.strip("[]")).close()
                return
            except ssl.SSLError as error:
                problem = error.reason or error
                problems.append(f"{server} cannot agree on TLS ({problem}); see kafka.security, kafka.tls_ca_file")
            except (OSError, ValueError) as error:
                problems.append(f"{server} cannot be reached ({error})")
        raise LogUnavailable(f"kafka.bootstrap_servers: {'; '.join(problems)}")

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.tls_ca_file)
        if self.tls_cert_file is not None:
            context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        return context

    def explain(self, error: KafkaError, heard: Sequence[str] = ()) -> str:
        """Message with the problem, the setting and the way out. ``heard``: warnings that kafka-python logged
        meanwhile.
        """
        servers = self.bootstrap_servers
        if "AuthorizationFailed" in str(error):
            who = repr(self.sasl_username) if self.sasl_username else "clients without a user name"
            return f"Kafka at {servers} does not allow this to {who}: {error}"
        if "Unable to bootstrap" not in str(error):
            return f"Kafka at {servers}: {error}"
        # Brokers that refuse say so, or just hang up.
        refusals = [words for words in heard if "Sasl" in words and "Error" in words]
        logged = f" ({(refusals or heard)[-1]})" if heard else ""
        if self.security.startswith("SASL"):
            return (
                f"kafka.sasl_username: {servers} does not authenticate {self.sasl_username!r} by {self.sasl_mechanism} "
                f"within {self.timeout_s:g} s{logged}; see kafka.sasl_mechanism, kafka.sasl_password and kafka.security"
            )
        return (
            f"kafka.bootstrap_servers: {servers} accepts connections but does not answer as a broker within "
            f"{self.timeout_s:g} s{logged}; is kafka.security ({self.security}) that of the port?"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPlan:
    """Properties of the topics. Fields are the settings of [kafka] by the same names; None leaves it to the broker."""

    topic_prefix: str = ""
    partitions: int = 6
    replication_factor: int = 1
    min_insync_replicas: int = 1
    retention_s: float = 60 * 86_400.0
    retention_bytes: int | None = None
    max_record_bytes: int = 20 * 1024 * 1024

    def name(self, topic: Topic) -> str:
        return f"{self.topic_prefix}{topic}"

    def description(self, topic: Topic) -> dict[str, Any]:
        """Arguments of ``create_topics`` for one topic. Dead letters and versions are few, and kept for good."""
        forever = topic in (Topic.DEAD_LETTER, Topic.VERSIONS)
        configs = {
            "cleanup.policy": "delete",
            "retention.ms": "-1" if forever else str(milliseconds(self.retention_s)),
            "retention.bytes": "-1" if forever or self.retention_bytes is None else str(self.retention_bytes),
            "max.message.bytes": str(self.max_record_bytes),
            "min.insync.replicas": str(self.min_insync_replicas),
        }
        return {
            "num_partitions": self.partitions if topic in TOGETHER else 1,
            "replication_factor": self.replication_factor,
            "configs": configs,
        }


@dataclass(frozen=True, slots=True)
class TopicFound:
    """Properties of a topic in Kafka. ``replication_factor`` is the smallest of any of its partitions."""

    partitions: int
    replication_factor: int
    configs: Mapping[str, str]


def ensure_topics(
    connection: KafkaConnection, plan: TopicPlan, *, to_read: Iterable[Topic] = ()
) -> Mapping[Topic, int]:
    """Make the topics that are missing; leave the others as they are.

    Args:
        to_read: topics whose records must be readable here, however brokers compress them.

    Returns:
        Largest size of a record batch in bytes, by topic.

    Raises:
        LogUnavailable: they cannot be made, their numbers of partitions differ, or one cannot be read.
    """
    with connection.admin() as admin:
        found = _found(admin, plan)
        missing = [topic for topic in Topic if topic not in found]
        if missing:
            try:
                admin.create_topics(
                    {plan.name(topic): plan.description(topic) for topic in missing}, wait_for_metadata=True
                )
            except TopicAlreadyExistsError:
                admin.wait_for_topics([plan.name(topic) for topic in Topic])  # made by another process meanwhile
            found = _found(admin, plan)
        configs = _configs(admin, plan, found)
    counts = {plan.name(topic): found[topic].partitions for topic in TOGETHER if topic in found}
    if len(set(counts.values())) > 1:
        raise LogUnavailable(
            f"{counts}: these topics must have equally many partitions, for decisions to meet their feedback; "
            "add partitions to the one with fewer (kafka-topics --alter --partitions N)"
        )
    for topic in to_read:
        if problem := codec_problem(configs[topic]["compression.type"]):
            raise LogUnavailable(f"{plan.name(topic)}: {problem}")
    return {topic: int(configs[topic]["max.message.bytes"]) for topic in found}


def codec_problem(codec: str) -> str:
    """Why records that are compressed so cannot be read here; "" if they can."""
    libraries = {
        "snappy": (codecs.has_snappy, "python-snappy"),
        "lz4": (codecs.has_lz4, "lz4"),
        "zstd": (codecs.has_zstd, "zstandard"),
    }
    present, package = libraries.get(codec, (codecs.has_gzip, ""))
    if present():
        return ""
    return f"its records are compressed with {codec}, which needs {package}; pip install 'plaudit[kafka]'"


def unpacking_problem(topic: str, error: Exception) -> str:
    """Why records of a partition cannot be unpacked, and the way out."""
    if isinstance(error, UnsupportedCodecError):
        missing = next((found for found in ("snappy", "lz4", "zstd") if found in str(error)), "")
        return f"{topic}: {codec_problem(missing) or error}"
    return f"{topic}: a batch of records is damaged ({type(error).__name__}: {str(error)[:200]}); is a replica intact?"


def find_topics(connection: KafkaConnection, plan: TopicPlan) -> Mapping[Topic, TopicFound]:
    """The topics that exist, with every config. Raises LogUnavailable."""
    with connection.admin() as admin:
        found = _found(admin, plan)
        configs = _configs(admin, plan, found)
    return {topic: replace(each, configs=configs[topic]) for topic, each in found.items()}


def count_records(connection: KafkaConnection, plan: TopicPlan, topics: Sequence[Topic]) -> int:
    """Number of records in the topics. Raises LogUnavailable."""
    connection.probe()
    with connection.errors():
        consumer = connection.build(KafkaConsumer, enable_auto_commit=False, allow_auto_create_topics=False)
        try:
            partitions = [
                TopicPartition(plan.name(topic), number)
                for topic in topics
                for number in consumer.partitions_for_topic(plan.name(topic))
            ]
            first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        finally:
            consumer.close()
    return sum(end[partition] - first[partition] for partition in partitions)


def _found(admin: KafkaAdminClient, plan: TopicPlan) -> dict[Topic, TopicFound]:
    described = {each["name"]: each for each in admin.describe_topics([plan.name(topic) for topic in Topic])}
    found = {}
    for topic in Topic:
        each = described[plan.name(topic)]
        if each["error_code"] != _UNKNOWN_TOPIC:
            replicas = [len(partition["replica_nodes"]) for partition in each["partitions"]]
            found[topic] = TopicFound(len(replicas), min(replicas, default=0), {})
    return found


def milliseconds(seconds: float) -> int:
    """The unit of times in kafka-python."""
    return round(1000 * seconds)


def _configs(admin: KafkaAdminClient, plan: TopicPlan, topics: Iterable[Topic]) -> dict[Topic, Mapping[str, str]]:
    names = {plan.name(topic): topic for topic in topics}
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    described = admin.describe_configs(resources, config_filter="all")["topic"]
    return {topic: {key: config["value"] for key, config in described[name].items()} for name, topic in names.items()}


def _with_backoff(client: KafkaNetClient) -> KafkaNetClient:
    """The client with growing pauses also after connections that were opened and closed at once.

    Proxies and port forwards without their broker do that. kafka-python counts such a connection as a success, resets
    its backoff, and would try thousands of times a second.
    """
    manager = client._manager
    forget = manager.reset_backoff

    def after_connecting(node_id: Any) -> None:
        connection = manager._conns.get(node_id)
        lost = manager.cluster.broker_metadata(node_id) is not None and (connection is None or not connection.connected)
        (manager.update_backoff if lost else forget)(node_id)

    manager.reset_backoff = after_connecting
    return client


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        del self.heard[:-1000]


@contextmanager
def _logged_warnings() -> Iterator[Sequence[str]]:
    """Warnings that kafka-python logs meanwhile: only there it says why it cannot connect."""
    logger = logging.getLogger("kafka")
    listener = _Listener()
    logger.addHandler(listener)
    try:
        yield listener.heard
    finally:
        logger.removeHandler(listener)


# Failures are raised; without a handler they would be printed as well.
logging.getLogger("kafka").addHandler(logging.NullHandler())
