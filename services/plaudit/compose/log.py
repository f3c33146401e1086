"""Event logs: one SQLite file, or Kafka behind a local spool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.adapters.log.spooled import SpooledLog
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.compose.paths import data_dir, learner_dir
from plaudit.compose.settings import from_section
from plaudit.core.errors import ConfigError
from plaudit.core.ports.log import EventLog
from plaudit.core.settings import Settings

if TYPE_CHECKING:
    from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan

_RECORD_OVERHEAD_BYTES: Final = 1024 * 1024
"""Upper bound on what a decision's record holds besides the content of the request: features, names, ids."""


def event_log(settings: Settings, slots: Path | None = None) -> EventLog:
    """The event log. Kafka is not contacted before the log is used.

    Args:
        slots: folder of process slots; readers of this log join their groups under the name of its first free slot.

    Raises:
        ConfigError: Kafka cannot be used.
        LogUnavailable: the folder cannot be written.
    """
    if settings.log.kind == "sqlite":
        return SqliteLog(data_dir(settings) / "log.sqlite", settings.log.synchronous)
    connection, plan = kafka_cluster(settings)
    from plaudit.adapters.log.kafka.log import Delivery, KafkaLog

    delivery = from_section(Delivery, settings.kafka)
    return KafkaLog(connection, plan, delivery, None if slots is None else ProcessSlot(slots))


def learner_log(settings: Settings, model: str) -> EventLog:
    """The log of a learner: one that is started again takes over the partitions of its predecessor at once.

    Raises:
        ConfigError, LogUnavailable: as :func:`event_log`.
    """
    return event_log(settings, learner_dir(settings, model) / "slots")


def serving_log(settings: Settings) -> EventLog:
    """The log of the inference service: it goes on taking events while Kafka is away.

    An embedded log has no spool: what keeps it from writing would keep the spool too.

    Raises:
        ConfigError: as :func:`event_log`.
        LogUnavailable: the spool cannot be opened.
    """
    inner = event_log(settings)
    if settings.log.kind == "sqlite" or settings.log.spool_limit_bytes == 0:
        return inner
    return SpooledLog(
        inner,
        data_dir(settings) / "spool",
        limit_bytes=settings.log.spool_limit_bytes,
        after_s=settings.log.spool_after_s,
        synchronous=settings.log.synchronous,
    )


def kafka_cluster(settings: Settings) -> tuple[KafkaConnection, TopicPlan]:
    """How to reach Kafka, and which topics there must be.

    Raises:
        ConfigError: kafka-python is not installed, or the largest request would not fit into a record.
    """
    try:
        from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"log.kind: 'kafka' needs {error.name}, which is not installed; pip install 'plaudit[kafka]'"
        ) from error
    kafka = settings.kafka
    if kafka.max_record_bytes < settings.serving.max_message_bytes + _RECORD_OVERHEAD_BYTES:
        raise ConfigError(
            f"kafka.max_record_bytes: {kafka.max_record_bytes} is too little for the content of a request of "
            f"serving.max_message_bytes = {settings.serving.max_message_bytes}, and {_RECORD_OVERHEAD_BYTES} around it"
        )
    connection = from_section(
        KafkaConnection,
        kafka,
        tls_ca_file=_text(kafka.tls_ca_file),
        tls_cert_file=_text(kafka.tls_cert_file),
        tls_key_file=_text(kafka.tls_key_file),
        timeout_s=kafka.delivery_timeout_s,
    )
    return connection, from_section(TopicPlan, kafka)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
