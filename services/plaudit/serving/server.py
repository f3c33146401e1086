"""The inference service: puts the use cases behind gRPC, follows the registry, drains. Chooses no adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from plaudit.core.errors import ConfigError
from plaudit.core.ports import EventLog, ModelRegistry, ModelRuntime
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings
from plaudit.serving.batcher import Batcher
from plaudit.serving.decisions import DecisionRecorder
from plaudit.serving.evaluation import Evaluated, Evaluator, Question
from plaudit.serving.feedback import FeedbackRecorder
from plaudit.serving.interceptors import Calls
from plaudit.serving.live_model import LiveModel
from plaudit.serving.metrics import ServingMetrics
from plaudit.serving.models import Versions
from plaudit.serving.predictor import Predictor
from plaudit.serving.servicers import FeedbackServicer, ModelServicer, PredictionServicer
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc, model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc
from plaudit_models.preprocess import Limits

_PREDICTION: Final = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
_FEEDBACK: Final = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
_MODEL: Final = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_IO_THREADS: Final = 4

logger = structlog.get_logger(__name__)


class InferenceServer:
    """One process of the inference service. ``await start()``, later ``await stop()``; on one event loop.

    Args:
        registries: one for each model that is served.
        log: where decisions and feedback go; the caller closes it after :meth:`stop`.
        runtime: runs the models.
        ids: signs and checks prediction ids.
        settings: see the README.
        metrics: of this server alone.
        seed: of the sampling of actions; None is fresh entropy.
    """

    def __init__(
        self,
        registries: Sequence[ModelRegistry],
        log: EventLog,
        runtime: ModelRuntime,
        ids: PredictionIds,
        settings: ServingSettings,
        metrics: ServingMetrics,
        *,
        seed: int | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._draining = asyncio.Event()
        self._io = ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="io")
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="watch")
        batch_sizes = range(1, settings.max_batch + 1)
        self._models = {
            registry.model: LiveModel(registry, runtime, metrics, batch_sizes=batch_sizes) for registry in registries
        }
        self._batcher: Batcher[Question, Evaluated] = Batcher(
            Evaluator(metrics, seed).run,
            name="the model",
            max_batch=settings.max_batch,
            queue_limit=settings.queue_limit,
        )
        self._recorder = DecisionRecorder(log, metrics, queue_limit=settings.decision_queue_limit)
        self._limits = Limits(
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_audio_bytes=settings.max_audio_bytes,
            max_audio_duration_s=settings.max_audio_duration_s,
            max_text_bytes=settings.max_text_bytes,
        )
        self._predictor = Predictor(
            self._models,
            self._batcher,
            ids,
            self._recorder,
            metrics,
            limits=self._limits,
            decode_threads=settings.decode_threads,
            decode_limit=settings.queue_limit,
            store_content=settings.store_content,
        )
        self._feedback = FeedbackRecorder(self._models, log, ids, metrics, self._io)
        self._versions = Versions(self._models, self._recorder, self._io, watch_interval_s=settings.watch_interval_s)
        self._health = health.aio.HealthServicer()
        self._ready = False
        metrics.queue_requests.set_function(self._batcher.waiting)
        metrics.decision_queue.set_function(self._recorder.waiting)

    async def start(self) -> None:
        """Returns when the ports are open and the live version, if there is one that can be proven, serves.

        Raises:
            ConfigError: a port is taken, or the host is not an address of this machine.
        """
        self._server = self._make_server()
        self.port = self._open_port()
        self.metrics_port = await self._open_metrics_port()
        self._batcher.start()
        self._feedback.start()
        self._recorder.start()
        for service in ("", _PREDICTION):
            await self._health.set(service, _NOT_SERVING)
        for service in (_FEEDBACK, _MODEL):
            await self._health.set(service, _SERVING)
        await self._look()
        self._watch = asyncio.create_task(self._follow())
        await self._server.start()
        logger.info("serving", host=self._settings.host, port=self.port, metrics_port=self.metrics_port)

    async def stop(self) -> None:
        """Drain: take nothing new, finish what is under way within ``drain_s``, log every decision, close.

        A second call does nothing.
        """
        if self._draining.is_set():
            return
        self._draining.set()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_s)
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._batcher.close()
        await self._feedback.close()
        await asyncio.to_thread(self._recorder.close, self._settings.drain_s)
        self._predictor.close()
        for pool in (self._watcher, self._io):
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(self._close_metrics)
        logger.info("drained")

    def _make_server(self) -> Any:
        server = grpc.aio.server(
            interceptors=[Calls(self._metrics)],
            options=[
                ("grpc.max_receive_message_length", self._settings.max_message_bytes),
                ("grpc.max_send_message_length", self._settings.max_message_bytes),
                # Otherwise a second server on the same port would start and take half of the calls.
                ("grpc.so_reuseport", 0),
                # Clients may ask every 30 s whether an idle stream is alive.
                ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        token = self._settings.admin_token
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionServicer(self._predictor, self._limits, self._draining), server
        )
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(
            FeedbackServicer(self._feedback, self._draining), server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(self._versions, None if token is None else token.get_secret_value(), self._draining), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (_PREDICTION, _FEEDBACK, _MODEL, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        return server

    def _open_port(self) -> int:
        host, port = self._settings.host, self._settings.port
        try:
            opened: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise ConfigError(
                f"serving.port: {port} cannot be opened on {host}; it is taken, or the address is not ours; "
                "set another one (0 picks one)"
            ) from error
        return opened

    async def _open_metrics_port(self) -> int:
        host, port = self._settings.host, self._settings.metrics_port
        try:
            self._metrics_server, self._metrics_thread = start_http_server(port, host, self._metrics.registry)
        except OSError as error:
            await self._server.stop(None)
            raise ConfigError(
                f"serving.metrics_port: {port} cannot be opened on {host} ({error.strerror}); "
                "set another one (0 picks one)"
            ) from error
        return int(self._metrics_server.server_port)

    def _close_metrics(self) -> None:
        self._metrics_server.shutdown()
        self._metrics_server.server_close()
        self._metrics_thread.join()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._settings.watch_interval_s)
            try:
                await self._look()
            except Exception:  # nothing that is known to happen, but the watch must outlive it
                logger.exception("watch_failed")

    async def _look(self) -> None:
        """One step of every model, and what it means for our health."""
        loop = asyncio.get_running_loop()
        for model in self._models.values():
            await loop.run_in_executor(self._watcher, model.step)
        ready = all(model.current is not None for model in self._models.values())
        if ready != self._ready:
            self._ready = ready
            for service in ("", _PREDICTION):
                await self._health.set(service, _SERVING if ready else _NOT_SERVING)
