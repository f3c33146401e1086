"""The inference service: puts the use cases behind gRPC, follows the registry, drains. Chooses no adapter."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from plaudit.core.cores import available_cores
from plaudit.core.errors import ConfigError
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.registry import ModelCatalog
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.ports.store import ExperimentReports, FeedbackStatuses
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings
from plaudit.core.tracing import Tracing
from plaudit.inference import open_inference_pb2
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.engine.shutdown import ShutdownSignal
from plaudit.serving.grpc.interceptors import Calls
from plaudit.serving.grpc.open_inference.servicer import InferenceServicer
from plaudit.serving.grpc.servicers import FeedbackServicer, ModelServicer, PredictionServicer
from plaudit.serving.models.served_models import ServedModels
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.request_log import LoggedLog
from plaudit.serving.traced import (
    TracedCalls,
    TracedFeedback,
    TracedLog,
    TracedPool,
    TracedPredictor,
    TracedRecorder,
)
from plaudit.serving.use_cases.feedback import FeedbackUseCase
from plaudit.serving.use_cases.predict import PredictUseCase
from plaudit.serving.use_cases.rollouts import RolloutService
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc, model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc
from plaudit_models.preprocess import Limits

_PREDICTION: Final = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
_FEEDBACK: Final = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
_MODEL: Final = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
_INFERENCE: Final = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_NEED_MODELS: Final = ("", _PREDICTION, _INFERENCE)
"""Services whose health is that of the models; "" is the server as a whole."""
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_REPORT_INTERVAL_S: Final = 1.0
"""How often an experiment that is under way is reported on."""
_WATCH_NICENESS: Final = 10
"""Loading and proving a version must not slow the requests down that are answered meanwhile."""

logger = structlog.get_logger(__name__)


class InferenceServer:
    """One process of the inference service: ``start()``, later ``stop()``.

    A call has a thread of its own from beginning to end. Threads cost less than an event loop here: a request that
    waits for the model waits for one lock (README, "Performance").

    Args:
        catalog: the models that are served.
        log: where decisions and feedback go; the caller closes it after :meth:`stop`.
        runtime: runs the models.
        ids: signs and checks prediction ids.
        settings: see the README.
        metrics: of this server alone.
        fates: what learners make of feedback, for receipts; None: they say what log and registry know.
        experiments: what learners make of experiments; None: nothing is shown of them.
        seed: of the sampling of actions; None is fresh entropy.
        share_port: other processes listen on the port too.
        tracing: of calls, batches and swaps; None: nothing is traced, and no code of it is passed.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        log: EventLog,
        runtime: ModelRuntime,
        ids: PredictionIds,
        settings: ServingSettings,
        metrics: ServingMetrics,
        *,
        fates: FeedbackStatuses | None = None,
        experiments: ExperimentReports | None = None,
        seed: int | None = None,
        share_port: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        traced = _traced(tracing)
        log = traced.log(log)
        if settings.log_requests:
            log = cast(EventLog, LoggedLog(log, ids))
        self._settings = settings
        self._calls_of = traced.calls
        self._share_port = share_port
        self._metrics = metrics
        self._ending = ShutdownSignal()
        self._stopping = threading.Lock()
        self._watch = threading.Thread(target=self._follow, name="watch", daemon=True)
        self._calls = ThreadPoolExecutor(settings.max_calls, thread_name_prefix="call")
        self._streamed = traced.pool(settings.queue_limit, thread_name_prefix="streamed")
        self._models = ServedModels(
            catalog,
            runtime,
            metrics,
            max_batch=settings.max_batch,
            workers=settings.workers or default_workers(settings.threads * settings.processes),
            queue_limit=settings.queue_limit,
            seed=seed,
            tracing=tracing,
        )
        self._recorder = traced.recorder(log, metrics, queue_limit=settings.decision_queue_limit)
        self._limits = Limits(
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_audio_bytes=settings.max_audio_bytes,
            max_audio_duration_s=settings.max_audio_duration_s,
            max_text_bytes=settings.max_text_bytes,
        )
        self._predictor = traced.predictor(
            self._models,
            ids,
            self._recorder,
            metrics,
            limits=self._limits,
            store_content=settings.store_content,
            decoders=default_workers(settings.processes),
        )
        self._feedback = traced.feedback(self._models, log, ids, metrics, fates=fates)
        self._versions = RolloutService(
            self._models, self._recorder, watch_interval_s=settings.watch_interval_s, experiments=experiments
        )
        self._health = health.HealthServicer()
        self._ready = False
        self._reported_s = time.monotonic()
        metrics.decision_queue.set_function(self._recorder.waiting)

    def start(self) -> None:
        """Returns when the ports are open and the live versions, as far as there are any that can be proven, serve.

        Raises:
            ConfigError: a port is taken, or the host is not an address of this machine.
        """
        self._server = self._make_server()
        self.port = self._open_port()
        self.metrics_port = self._open_metrics_port()
        self._feedback.start()
        self._recorder.start()
        for service in _NEED_MODELS:
            self._health.set(service, _NOT_SERVING)
        for service in (_FEEDBACK, _MODEL):
            self._health.set(service, _SERVING)
        self._look()
        self._watch.start()
        self._server.start()
        logger.info("serving", host=self._settings.host, port=self.port, metrics_port=self.metrics_port)

    def stop(self) -> None:
        """Drain: take nothing new, finish what is under way within ``drain_s``, log every decision, close.

        A second call does nothing.
        """
        with self._stopping:
            if self._ending.is_set():
                return
            self._ending.set()
        self._health.enter_graceful_shutdown()
        self._server.stop(self._settings.drain_s).wait()
        self._watch.join()
        self._predictor.close()
        self._report()
        self._models.close()
        self._feedback.close()
        self._recorder.close(self._settings.drain_s)
        for pool in (self._calls, self._streamed):
            pool.shutdown()
        self._close_metrics()
        logger.info("drained")

    def _make_server(self) -> Any:
        server = grpc.server(
            self._calls,
            # One call more is refused at once, instead of waiting for a thread.
            maximum_concurrent_rpcs=self._settings.max_calls,
            interceptors=[self._calls_of(self._metrics, log_refusals=self._settings.log_requests)],
            options=[
                ("grpc.max_receive_message_length", self._settings.max_message_bytes),
                ("grpc.max_send_message_length", self._settings.max_message_bytes),
                # Unasked, a second server on the same port would start and take half of the calls.
                ("grpc.so_reuseport", int(self._share_port)),
                # Clients may ask every 30 s whether an idle stream is alive.
                ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        admin_token = self._settings.admin_token
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionServicer(self._predictor, self._limits, self._streamed, self._ending), server
        )
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(FeedbackServicer(self._feedback, self._ending), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(self._versions, admin_token, self._ending), server
        )
        inference = InferenceServicer(
            self._models,
            self._predictor,
            max_rows=self._settings.queue_limit,
            pool=self._streamed,
            ending=self._ending,
            admin_token=admin_token,
        )
        server.add_generic_rpc_handlers([inference.handlers()])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (_PREDICTION, _FEEDBACK, _MODEL, _INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
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

    def _open_metrics_port(self) -> int:
        host, port = self._settings.host, self._settings.metrics_port
        try:
            self._metrics_server, self._metrics_thread = start_http_server(port, host, self._metrics.registry)
        except OSError as error:
            self._server.stop(None)
            raise ConfigError(
                f"serving.metrics_port: {port} cannot be opened on {host} ({error.strerror}); "
                "set another one (0 picks one)"
            ) from error
        return int(self._metrics_server.server_port)

    def _close_metrics(self) -> None:
        self._metrics_server.shutdown()
        self._metrics_server.server_close()
        self._metrics_thread.join()

    def _follow(self) -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WATCH_NICENESS)
        while not self._ending.wait(self._settings.watch_interval_s):
            try:
                self._look()
                if time.monotonic() - self._reported_s >= _REPORT_INTERVAL_S:
                    self._report()
            except Exception:  # nothing that is known to happen, but the watch must outlive it
                logger.exception("watch_failed")

    def _report(self) -> None:
        """Tell what was seen of experiments since the last time."""
        self._reported_s = time.monotonic()
        for served in self._models.all():
            for report in served.live.experiment_reports(time.time()):
                self._recorder.record(report)

    def _look(self) -> None:
        """One step of every model, and what it means for our health."""
        self._models.look()
        ready = self._models.ready()
        if ready != self._ready:
            self._ready = ready
            for service in _NEED_MODELS:
                self._health.set(service, _SERVING if ready else _NOT_SERVING)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the server is made of: with spans or without."""

    calls: Callable[..., Calls]
    predictor: Callable[..., PredictUseCase]
    recorder: Callable[..., DecisionLog]
    feedback: Callable[..., FeedbackUseCase]
    pool: Callable[..., ThreadPoolExecutor]
    log: Callable[[EventLog], EventLog]


def _traced(tracing: Tracing | None) -> _Parts:
    if tracing is None:
        return _Parts(Calls, PredictUseCase, DecisionLog, FeedbackUseCase, ThreadPoolExecutor, lambda log: log)
    return _Parts(
        calls=partial(TracedCalls, tracing=tracing),
        predictor=partial(TracedPredictor, tracing=tracing),
        recorder=partial(TracedRecorder, tracing=tracing),
        feedback=partial(TracedFeedback, tracing=tracing),
        pool=TracedPool,
        log=lambda log: cast(EventLog, TracedLog(log, tracing)),
    )


def default_workers(threads: int) -> int:
    """As many evaluations at once as there are cores for, if each takes that many."""
    return max(1, available_cores() // threads)
