"""The inference service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from plaudit.adapters.log.spooled import SpooledLog
from plaudit.adapters.runtime.nvml import gpus
from plaudit.compose.access import guard
from plaudit.compose.paths import data_dir
from plaudit.compose.registry import model_catalog
from plaudit.compose.runtime import content_limits, model_runtime
from plaudit.compose.store import status_readers
from plaudit.core.ports.log import EventLog
from plaudit.core.prediction_id import PredictionIds, SigningKeys
from plaudit.core.settings import Settings
from plaudit.core.tracing import NO_TRACING, Tracing
from plaudit.serving.server import InferenceServer
from plaudit.serving.telemetry.metrics import ServingMetrics


def inference_server(
    settings: Settings, log: EventLog, *, share_port: bool = False, tracing: Tracing | None = None
) -> InferenceServer:
    """A server ready to start.

    Args:
        share_port: it is one of several processes that listen on the port.
        tracing: see :func:`plaudit.compose.tracing.service_tracing`.

    Raises:
        ConfigError: a setting is wrong.
    """
    guarded = guard(settings)
    keys = SigningKeys(data_dir(settings) / "signing.key")
    metrics = ServingMetrics(CollectorRegistry())
    if isinstance(log, SpooledLog):
        metrics.spool_events.set_function(log.spooled)
        metrics.spool_age.set_function(log.age_s)
    if settings.serving.device != "cpu":
        for gpu in gpus():
            metrics.gpu_memory.labels(gpu.name).set(gpu.memory_bytes)
            metrics.gpu_memory_used.labels(gpu.name).set_function(gpu.used_bytes)
    return InferenceServer(
        model_catalog(settings),
        log,
        model_runtime(settings),
        PredictionIds(keys.current, settings.serving.feedback_window_s, others=keys.all(), reread=keys.all),
        settings.serving,
        content_limits(settings),
        metrics,
        statuses=status_readers(settings),
        guard=guarded,
        raters=settings.feedback.raters,
        share_port=share_port,
        tracing=tracing or NO_TRACING,
    )
