"""The composition: settings → adapters → services. With ``cli`` and ``demo`` the only place that chooses adapters.

What needs an extra is imported where it is used, so that one service runs without the extras of the other.

Layout of the data directory:
    log.sqlite            event log
    registry/             versions and the rollout
    experiences.sqlite    the learner's experience store
    learner/              the learner's status, and a folder per fine-tuning run
    signing.key           what prediction ids are signed with
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit import demo
from plaudit.adapters.directory_registry import DirectoryCatalog
from plaudit.adapters.sqlite_log import SqliteLog
from plaudit.core.errors import ConfigError
from plaudit.core.ports import EventLog, ExperienceStore, JobLauncher, ModelCatalog, ModelRegistry, ModelRuntime
from plaudit.core.prediction_id import PredictionIds, load_or_create_key
from plaudit.core.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.applications import Starlette

    from plaudit.client import AsyncClient
    from plaudit.console.ports import Learning, Samples
    from plaudit.learner.loop import Learner
    from plaudit.serving.server import InferenceServer


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


def event_log(settings: Settings) -> EventLog:
    return SqliteLog(data_dir(settings) / "log.sqlite", settings.log.synchronous)


def model_runtime(settings: Settings) -> ModelRuntime:
    """Raises ConfigError: ``serving.device`` is not there."""
    from plaudit.adapters.onnx_runtime import OnnxRuntime

    return OnnxRuntime(settings.serving.device, settings.serving.threads)


def store_url(settings: Settings) -> str:
    """With its password, if it has one: not to be shown."""
    from plaudit.adapters.sql_store import sqlite_url

    if settings.store.url is not None:
        return settings.store.url.get_secret_value()
    return sqlite_url(data_dir(settings) / "experiences.sqlite")


def experience_store(settings: Settings) -> ExperienceStore:
    """Raises ConfigError, StoreUnavailable, WrongStore."""
    from plaudit.adapters.sql_store import SqlStore

    return SqlStore(store_url(settings))


def job_launcher(settings: Settings) -> JobLauncher:
    """Its jobs are told where the store is, with its password: a run folder holds no secrets."""
    from plaudit.adapters.subprocess_jobs import SubprocessJobs

    return SubprocessJobs(told=store_url(settings))


def learner_dir(settings: Settings) -> Path:
    return data_dir(settings) / "learner"


def inference_server(settings: Settings, log: EventLog, *, share_port: bool = False) -> InferenceServer:
    """A server ready to start.

    Args:
        share_port: it is one of several processes that listen on the port.

    Raises:
        ConfigError: a setting is wrong.
    """
    from prometheus_client import CollectorRegistry

    from plaudit.serving.metrics import ServingMetrics
    from plaudit.serving.server import InferenceServer

    key = load_or_create_key(data_dir(settings) / "signing.key")
    if settings.model:
        model_registry(settings)  # made, so that it is served as soon as it has a version
    return InferenceServer(
        model_catalog(settings),
        log,
        model_runtime(settings),
        PredictionIds(key, settings.serving.feedback_window_s),
        settings.serving,
        ServingMetrics(CollectorRegistry()),
        share_port=share_port,
    )


def learner(settings: Settings, log: EventLog, store: ExperienceStore, metrics: CollectorRegistry) -> Learner:
    """A learner ready to run. Raises ConfigError."""
    from plaudit.learner.build import build_learner

    return build_learner(
        settings,
        log=log,
        store=store,
        registry=model_registry(settings),
        runtime=model_runtime(settings),
        jobs=job_launcher(settings),
        work_dir=learner_dir(settings),
        metrics_registry=metrics,
    )


def learning(settings: Settings) -> Learning:
    """What the learner lets the console see; nothing is made where no learner has run yet."""
    from plaudit.console.judged import Judged
    from plaudit.console.ports import Learning
    from plaudit.core.runs import read_json
    from plaudit.learner.status import STATUS

    status = learner_dir(settings) / STATUS
    return Learning(
        model=settings.spec().name,
        status=lambda: read_json(status) if status.exists() else None,
        judged=Judged(lambda: experience_store(settings) if status.exists() else None),
    )


def console(settings: Settings, client: AsyncClient, learning: Learning) -> Starlette:
    """The console's application. Raises ConfigError."""
    from plaudit.console.app import application
    from plaudit.console.ports import Sources

    catalog = DirectoryCatalog(data_dir(settings) / "registry")
    host = settings.console.host
    return application(
        client,
        Sources(catalog, learning, _samples(settings)),
        # Other names come from sites that had theirs resolved to us. Where all addresses are listened on, so are names.
        hosts=["*"] if host in ("0.0.0.0", "::") else sorted({host, "127.0.0.1", "localhost", "::1", "[::1]"}),
        max_body_bytes=2 * settings.serving.max_message_bytes,
    )


def _samples(settings: Settings) -> dict[str, Samples]:
    """For the demo's model, where the demo's extra is installed."""
    if settings.spec().name != demo.MODEL:
        return {}
    try:
        from plaudit.demo.samples import DemoSamples
    except ModuleNotFoundError:
        return {}
    return {demo.MODEL: DemoSamples()}
