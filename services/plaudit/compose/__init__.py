"""The composition: settings → adapters → services. With ``cli`` and ``demo`` the only place that chooses adapters.

What needs an extra is imported where it is used, so that one service runs without the extras of the other.

Layout of the data directory:
    log.sqlite            event log
    spool/                what the inference service has acknowledged and Kafka does not have yet
    registry/             versions and the rollout
    experiences.sqlite    the learner's experience store
    learner/              the learner's status, its seat, and a folder per fine-tuning run
    experiences-NAME.sqlite, learner-NAME/   the same for a model that was imported
    signing.key           what prediction ids are signed with
    tensorrt/             engines that TensorRT has built, where it is used
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from plaudit import demo
from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.adapters.log.spooled import SpooledLog
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryCatalog
from plaudit.adapters.runtime.nvml import gpus
from plaudit.core.cores import available_cores
from plaudit.core.errors import ConfigError
from plaudit.core.ports.jobs import JobLauncher
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.registry import ModelCatalog, ModelRegistry
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.prediction_id import PredictionIds, load_or_create_key
from plaudit.core.settings import ServingSettings, Settings
from plaudit.core.tracing import NO_TRACING, Tracing
from plaudit_models.preprocess import Limits

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.applications import Starlette

    from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan
    from plaudit.adapters.store.feedback_status import StoreFeedbackStatuses
    from plaudit.adapters.tracing.otel import OtelTracing
    from plaudit.client import AsyncClient
    from plaudit.console.ports import Learnings, Samples
    from plaudit.learner.loop import Learner
    from plaudit.serving.server import InferenceServer, ServerConfig

_AROUND_CONTENT_BYTES: Final = 1024 * 1024
"""What a decision's record has besides the content of the request, at the most: features, names, ids."""


def data_dir(settings: Settings) -> Path:
    """The data directory, made if it is not there.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    path = settings.data_dir.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"data_dir: {path} is not a folder that can be written to ({error.strerror})") from error
    return path


def model_registry(settings: Settings) -> ModelRegistry:
    """Of the model that the [model] table describes."""
    return registry_of(settings, settings.spec().name)


def registry_of(settings: Settings, model: str) -> ModelRegistry:
    return model_catalog(settings).registry(model)


def model_catalog(settings: Settings) -> ModelCatalog:
    return DirectoryCatalog(data_dir(settings) / "registry")


def event_log(settings: Settings, seats: Path | None = None) -> EventLog:
    """Kafka is not asked anything before the log is used.

    Args:
        seats: a folder; the log's readers have the name in their groups that goes with its first free seat.

    Raises:
        ConfigError: Kafka cannot be used.
        LogUnavailable: the folder cannot be written.
    """
    if settings.log.kind == "sqlite":
        return SqliteLog(data_dir(settings) / "log.sqlite", settings.log.synchronous)
    connection, plan = kafka_cluster(settings)
    from plaudit.adapters.log.kafka.log import Delivery, KafkaLog

    kafka = settings.kafka
    delivery = Delivery(
        compression=kafka.compression, linger_s=kafka.linger_s, delivery_timeout_s=kafka.delivery_timeout_s
    )
    return KafkaLog(connection, plan, delivery, None if seats is None else ProcessSlot(seats))


def learner_log(settings: Settings, model: str) -> EventLog:
    """The log as a learner needs it: one that is started again takes the place of the one before it at once.

    Raises:
        ConfigError, LogUnavailable: as :func:`event_log`.
    """
    return event_log(settings, learner_dir(settings, model) / "seats")


def serving_log(settings: Settings) -> EventLog:
    """The log as the inference service needs it: it goes on taking events while Kafka is away.

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
        ConfigError: kafka-python is not installed, or a request that is taken would not fit into a record.
    """
    try:
        from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"log.kind: 'kafka' needs {error.name}, which is not installed; pip install 'plaudit[kafka]'"
        ) from error
    kafka = settings.kafka
    if kafka.max_record_bytes < settings.serving.max_message_bytes + _AROUND_CONTENT_BYTES:
        raise ConfigError(
            f"kafka.max_record_bytes: {kafka.max_record_bytes} is too little for the content of a request of "
            f"serving.max_message_bytes = {settings.serving.max_message_bytes}, and {_AROUND_CONTENT_BYTES} around it"
        )
    connection = KafkaConnection(
        bootstrap_servers=kafka.bootstrap_servers,
        security=kafka.security,
        sasl_mechanism=kafka.sasl_mechanism,
        sasl_username=kafka.sasl_username,
        sasl_password=kafka.sasl_password.get_secret_value(),
        tls_ca_file=_text(kafka.tls_ca_file),
        tls_cert_file=_text(kafka.tls_cert_file),
        tls_key_file=_text(kafka.tls_key_file),
        timeout_s=kafka.delivery_timeout_s,
    )
    plan = TopicPlan(
        topic_prefix=kafka.topic_prefix,
        partitions=kafka.partitions,
        replication_factor=kafka.replication_factor,
        min_insync_replicas=kafka.min_insync_replicas,
        retention_s=kafka.retention_s,
        retention_bytes=kafka.retention_bytes,
        max_record_bytes=kafka.max_record_bytes,
    )
    return connection, plan


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def model_runtime(settings: Settings) -> ModelRuntime:
    """Raises ConfigError: the GPU, or what is to be used of it, is not there."""
    from plaudit.adapters.runtime.onnx import OnnxRuntime

    serving = settings.serving
    engines = None
    if serving.tensorrt:
        engines = data_dir(settings) / "tensorrt"
        engines.mkdir(exist_ok=True)
    return OnnxRuntime(
        serving.device,
        serving.threads,
        gpu_mem_limit_bytes=serving.gpu_mem_limit_bytes,
        cuda_graphs=serving.cuda_graphs,
        tensorrt_dir=engines,
    )


def models(settings: Settings) -> Sequence[str]:
    """The model that the [model] table describes, if there is one, then those that were imported."""
    described = [settings.spec().name] if settings.model else []
    return described + [name for name in model_catalog(settings).models() if name not in described]


def model_named(settings: Settings, name: str) -> str:
    """Which model is meant; "" is the one that the [model] table describes, or the only one there is.

    Raises:
        ConfigError: there is none of that name, or several to choose from.
    """
    known = models(settings)
    if name in known:
        return name
    if name:
        raise ConfigError(f"model: {name!r} is not known; there are {list(known)}")
    if not settings.model and len(known) != 1:
        raise ConfigError(f"model: there is no [model] table and {len(known)} models were imported; name one: {known}")
    return known[0]


def _of(settings: Settings, model: str) -> str:
    """What names of files that belong to a model end in: nothing for the one that the [model] table describes."""
    return "" if settings.model and settings.spec().name == model else f"-{model}"


def _store_file(settings: Settings, model: str) -> Path:
    return data_dir(settings) / f"experiences{_of(settings, model)}.sqlite"


def store_url(settings: Settings, model: str) -> str:
    """With its password, if it has one: not to be shown. Raises ConfigError."""
    from plaudit.adapters.store.sql import sqlite_url

    if settings.store.url is None:
        return sqlite_url(_store_file(settings, model))
    if len(models(settings)) > 1:
        raise ConfigError(
            f"store.url: one store holds the experiences of one model, and there are {list(models(settings))}; "
            "give each model a data directory and a store of its own"
        )
    return settings.store.url.get_secret_value()


def experience_store(settings: Settings, model: str) -> ExperienceStore:
    """Raises ConfigError, StoreUnavailable, WrongStore."""
    from plaudit.adapters.store.sql import SqlStore

    return SqlStore(store_url(settings, model))


def feedback_statuses(settings: Settings) -> StoreFeedbackStatuses:
    """What the learners make of feedback and experiments; nothing is made where no learner has run yet."""
    from plaudit.adapters.store.feedback_status import StoreFeedbackStatuses

    def open_store(model: str) -> ExperienceStore | None:
        if settings.store.url is None and not _store_file(settings, model).exists():
            return None
        return experience_store(settings, model)

    return StoreFeedbackStatuses(open_store)


def job_launcher(settings: Settings, model: str) -> JobLauncher:
    """Its jobs are told where the store is, with its password: a run folder holds no secrets."""
    from plaudit.adapters.jobs.subprocess import SubprocessJobs

    return SubprocessJobs(told=store_url(settings, model))


def learner_dir(settings: Settings, model: str) -> Path:
    return data_dir(settings) / f"learner{_of(settings, model)}"


def tracing(settings: Settings, service: str) -> OtelTracing | None:
    """Where spans of this service go; None: it is not traced.

    Raises:
        ConfigError: what it needs is not installed.
    """
    if not settings.tracing.on:
        return None
    try:
        from plaudit.adapters.tracing.otel import otlp_tracing

        return otlp_tracing(
            service,
            endpoint=settings.tracing.endpoint,
            protocol=settings.tracing.wire,
            sample_ratio=settings.tracing.sample_ratio,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.endpoint: traces need {error.name}, which is not installed; pip install 'plaudit[tracing]', "
            "or set neither it nor OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from error
    except ValueError as error:
        raise ConfigError(f"tracing.protocol: {error}") from error


def inference_server(
    settings: Settings, log: EventLog, *, share_port: bool = False, tracing: Tracing | None = None
) -> InferenceServer:
    """A server ready to start.

    Args:
        share_port: it is one of several processes that listen on the port.
        tracing: see :func:`tracing`.

    Raises:
        ConfigError: a setting is wrong.
    """
    from prometheus_client import CollectorRegistry

    from plaudit.serving.server import InferenceServer
    from plaudit.serving.telemetry.metrics import ServingMetrics

    key = load_or_create_key(data_dir(settings) / "signing.key")
    if settings.model:
        model_registry(settings)  # made, so that it is served as soon as it has a version
    metrics = ServingMetrics(CollectorRegistry())
    if isinstance(log, SpooledLog):
        metrics.spool_events.set_function(log.spooled)
        metrics.spool_age.set_function(log.age_s)
    if settings.serving.device != "cpu":
        for gpu in gpus():
            metrics.gpu_memory.labels(gpu.name).set(gpu.memory_bytes)
            metrics.gpu_memory_used.labels(gpu.name).set_function(gpu.used_bytes)
    fates = feedback_statuses(settings)
    return InferenceServer(
        model_catalog(settings),
        log,
        model_runtime(settings),
        PredictionIds(key, settings.serving.feedback_window_s),
        server_config(settings.serving),
        content_limits(settings.serving),
        metrics,
        fates=fates,
        experiments=fates,
        share_port=share_port,
        tracing=tracing or NO_TRACING,
    )


def server_config(serving: ServingSettings) -> ServerConfig:
    """The settings of the inference service as plain values."""
    from plaudit.serving.server import ServerConfig

    cores = available_cores()
    token = serving.admin_token
    derived: dict[str, Any] = {
        "workers": serving.workers or max(1, cores // (serving.threads * serving.processes)),
        "max_decoding": max(1, cores // serving.processes),
        "admin_token": None if token is None else token.get_secret_value(),
    }
    same = {each.name: getattr(serving, each.name) for each in fields(ServerConfig) if each.name not in derived}
    return ServerConfig(**same, **derived)


def content_limits(serving: ServingSettings) -> Limits:
    """Sizes beyond which content is refused."""
    return Limits(**{each.name: getattr(serving, each.name) for each in fields(Limits)})


def learner(
    settings: Settings,
    model: str,
    log: EventLog,
    store: ExperienceStore,
    metrics: CollectorRegistry,
    tracing: Tracing | None = None,
) -> Learner:
    """A learner ready to run. Raises ConfigError."""
    from plaudit.compose.build import build_learner

    return build_learner(
        settings,
        log=log,
        store=store,
        registry=registry_of(settings, model),
        runtime=model_runtime(settings),
        jobs=job_launcher(settings, model),
        work_dir=learner_dir(settings, model),
        metrics_registry=metrics,
        tracing=tracing,
    )


def learnings(settings: Settings) -> Learnings:
    """What learners let the console see; nothing is made where none has run yet."""
    from plaudit.console.judged import Judged
    from plaudit.console.ports import Learning, Learnings
    from plaudit.core.job_run import read_json
    from plaudit.learner.status import STATUS

    def learning(model: str) -> Learning:
        status = learner_dir(settings, model) / STATUS
        return Learning(
            status=lambda: read_json(status) if status.exists() else None,
            judged=Judged(lambda: experience_store(settings, model) if status.exists() else None),
        )

    return Learnings(learning)


def console(settings: Settings, client: AsyncClient, learnings: Learnings) -> Starlette:
    """The console's application. Raises ConfigError."""
    from plaudit.console.app import application
    from plaudit.console.ports import Sources

    host = settings.console.host
    return application(
        client,
        Sources(model_catalog(settings), learnings, _samples(settings)),
        # Other names come from sites that had theirs resolved to us. Where all addresses are listened on, so are names.
        hosts=["*"] if host in ("0.0.0.0", "::") else sorted({host, "127.0.0.1", "localhost", "::1", "[::1]"}),
        max_body_bytes=2 * settings.serving.max_message_bytes,
    )


def _samples(settings: Settings) -> dict[str, Samples]:
    """For the demo's model, where the demo's extra is installed."""
    if not settings.model or settings.spec().name != demo.MODEL:
        return {}
    try:
        from plaudit.demo.samples import DemoSamples
    except ModuleNotFoundError:
        return {}
    return {demo.MODEL: DemoSamples()}
