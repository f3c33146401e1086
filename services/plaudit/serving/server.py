"""The inference service: puts the use cases behind gRPC, follows the registry, drains. Chooses no adapter."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import is_loopback
from plaudit.core.host.cores import available_cores
from plaudit.core.host.metrics_server import MetricsServer, page_of
from plaudit.core.limits import MAX_ADMIN_CALLS
from plaudit.core.ports.access import Authenticator, CertificateSource
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.registry import ModelCatalog
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.ports.store import StatusReaders
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings, admin_place
from plaudit.core.tracing import NO_TRACING, Tracing
from plaudit.inference import open_inference_pb2
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.engine.pipeline import Pipeline
from plaudit.serving.engine.shutdown import ShutdownSignal
from plaudit.serving.grpc.auth import AccessControl
from plaudit.serving.grpc.feedback_servicer import FeedbackServicer
from plaudit.serving.grpc.listener import Door, Listener
from plaudit.serving.grpc.model_servicer import ModelServicer
from plaudit.serving.grpc.open_calls import OpenCalls
from plaudit.serving.grpc.open_inference.servicer import InferenceServicer
from plaudit.serving.grpc.prediction_servicer import PredictionServicer
from plaudit.serving.grpc.quotas import Quotas
from plaudit.serving.grpc.tracing_interceptor import TracingInterceptor
from plaudit.serving.models.problems import Problems
from plaudit.serving.models.served_models import ServedModels
from plaudit.serving.telemetry.appends import Append, traced_append
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.request_log import logged_append
from plaudit.serving.use_cases.feedback import FeedbackUseCase
from plaudit.serving.use_cases.predict import PredictUseCase
from plaudit.serving.use_cases.rollouts import RolloutService
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc, model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc
from plaudit_models.limits import Limits

_PREDICTION: Final = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
_FEEDBACK: Final = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
_MODEL: Final = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
_INFERENCE: Final = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_NEED_MODELS: Final = ("", _PREDICTION, _INFERENCE)
"""Services whose health is that of the models; "" is the server as a whole."""
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_LEAST_DRAIN_S: Final = 2.0
"""Time for the decisions that wait to be logged, where calls have taken all of ``drain_s``."""
_REPORT_INTERVAL_S: Final = 1.0
"""Interval of reports on an experiment that is under way."""
_POLL_NICENESS: Final = 10
"""Loading and proving a version must not slow down the requests that are answered meanwhile."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Guard:
    """What guards the ports.

    Attributes:
        authenticator: knows keys and tokens; None: callers need none.
        certificates: of TLS; None: plain text. An admin port that only this machine reaches has none.
    """

    authenticator: Authenticator | None = None
    certificates: CertificateSource | None = None


NO_GUARD: Final = Guard()


class InferenceServer:
    """One process of the inference service: ``start()``, later ``stop()``.

    A call has a thread of its own from beginning to end. Threads cost less than an event loop here: a request that
    waits for the model waits for one lock (docs/benchmarks/serving.md).

    Args:
        catalog: the models that are served.
        log: where decisions and feedback go; the caller closes it after :meth:`stop`.
        runtime: runs the models.
        ids: signs and checks prediction ids.
        settings: of the inference service.
        limits: sizes beyond which content is refused.
        metrics: of this server alone.
        statuses: what the learners made of feedback and of experiments; None: receipts say what log and registry know,
            and nothing is shown of experiments.
        guard: certificate and keys of the ports.
        raters: who may give feedback on a prediction: who asked for it, or anyone.
        seed: of the sampling of actions; None is fresh entropy.
        share_port: other processes listen on the port too.
        tracing: of calls, batches, appends and swaps.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        log: EventLog,
        runtime: ModelRuntime,
        ids: PredictionIds,
        settings: ServingSettings,
        limits: Limits,
        metrics: ServingMetrics,
        *,
        statuses: StatusReaders | None = None,
        guard: Guard = NO_GUARD,
        raters: Literal["asker", "anyone"] = "asker",
        seed: int | None = None,
        share_port: bool = False,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        append: Append = log.append
        if tracing.enabled:
            append = traced_append(append, tracing)
        if settings.log_requests:
            append = logged_append(append, ids)
        self._settings = settings
        self._limits = limits
        self._tracing = tracing
        self._share_port = share_port
        self._metrics = metrics
        self._shutdown = ShutdownSignal()
        self._stopping = threading.Lock()
        self._poller = threading.Thread(target=self._follow, name="poll", daemon=True)
        self._guard = guard
        self._listeners: list[Listener] = []
        self._streamed = ThreadPoolExecutor(settings.queue_limit, thread_name_prefix="streamed")
        self._models = ServedModels(
            catalog,
            runtime,
            metrics,
            max_batch=settings.max_batch,
            workers=settings.workers or max(1, available_cores() // (settings.threads * settings.processes)),
            queue_limit=settings.queue_limit,
            seed=seed,
            tracing=tracing,
        )
        self._decision_log = DecisionLog(append, metrics, queue_limit=settings.decision_queue_limit)
        pipeline = Pipeline(
            ids,
            self._decision_log,
            metrics,
            limits,
            store_content=settings.store_content,
            max_decoding=max(1, available_cores() // settings.processes),
            tracing=tracing,
        )
        self._predict = PredictUseCase(self._models, pipeline, metrics, limits, tracing=tracing)
        self._feedback = FeedbackUseCase(
            self._models, append, log.feedback_recorded, ids, metrics, statuses=statuses, tracing=tracing, raters=raters
        )
        self._rollouts = RolloutService(
            self._models, self._decision_log, watch_interval_s=settings.watch_interval_s, statuses=statuses
        )
        self._health = health.HealthServicer()
        self._ready = False
        self._reported_s = time.monotonic()
        metrics.decision_queue.set_function(self._decision_log.waiting)

    def start(self) -> None:
        """Returns when the ports are open and the live versions that pass their proof serve.

        Raises:
            ConfigError: a port is taken, or the host is not an address of this machine.
        """
        self._open_listeners()
        self.port, self.admin_port = self._listeners[0].port, self._listeners[-1].port
        self.metrics_port = self._open_metrics_port()
        self._feedback.start()
        self._decision_log.start()
        for service in _NEED_MODELS:
            self._health.set(service, _NOT_SERVING)
        for service in (_FEEDBACK, _MODEL):
            self._health.set(service, _SERVING)
        self._poll()
        self._poller.start()
        for listener in self._listeners:
            listener.start()
        logger.info(
            "serving",
            host=self._settings.host,
            port=self.port,
            tls=self._guard.certificates is not None,
            admin_port=self.admin_port,
            metrics_port=self.metrics_port,
        )

    def stop(self) -> None:
        """Drain: take no new calls, finish those under way within ``drain_s``, log every decision, close.

        A second call does nothing.
        """
        with self._stopping:
            if self._shutdown.is_set():
                return
            self._shutdown.set()
        give_up_s = time.monotonic() + self._settings.drain_s
        self._health.enter_graceful_shutdown()
        for stopped in [listener.stop(self._settings.drain_s) for listener in self._listeners]:
            stopped.wait()
        self._poller.join()
        self._predict.close()
        self._report()
        self._models.close()
        self._feedback.close()
        self._decision_log.close(max(_LEAST_DRAIN_S, give_up_s - time.monotonic()))
        for listener in self._listeners:
            listener.close()
        self._streamed.shutdown()
        self._metrics_server.close()
        logger.info("drained")

    def _open_listeners(self) -> None:
        """The gRPC port, and the admin port where it is another one."""
        settings = self._settings
        own = admin_place(settings)
        quotas = Quotas()
        self._listen(
            Door(
                "serving.port",
                settings.host,
                settings.port,
                AccessControl(self._guard.authenticator, settings.admin_token, quotas, admin_calls=own is None),
                settings.max_calls,
                settings.max_streams,
                self._guard.certificates,
            )
        )
        if own is not None:
            host, port = own
            self._listen(
                Door(
                    "serving.admin_address",
                    host,
                    port,
                    AccessControl(self._guard.authenticator, settings.admin_token, quotas, admin_calls=True),
                    MAX_ADMIN_CALLS,
                    MAX_ADMIN_CALLS,
                    None if is_loopback(host) else self._guard.certificates,
                )
            )

    def _listen(self, door: Door) -> None:
        try:
            self._listeners.append(
                Listener(
                    door,
                    self._register,
                    self._settings,
                    self._shutdown,
                    self._metrics,
                    self._between(),
                    share_port=self._share_port,
                )
            )
        except ConfigError:
            self._discard_listeners()
            raise

    def _between(self) -> list[grpc.ServerInterceptor]:
        """Interceptors between the places of calls and the counting of them."""
        return [TracingInterceptor(self._tracing)] if self._tracing.enabled else []

    def _discard_listeners(self) -> None:
        for listener in self._listeners:
            listener.discard()

    def _register(self, server: grpc.Server, open_calls: OpenCalls) -> None:
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionServicer(
                self._predict, self._limits, self._settings.max_message_bytes, self._streamed, open_calls
            ),
            server,
        )
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(FeedbackServicer(self._feedback, open_calls), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(self._rollouts, open_calls), server)
        inference = InferenceServicer(
            self._models,
            self._predict,
            max_rows=self._settings.queue_limit,
            pool=self._streamed,
            open_calls=open_calls,
        )
        server.add_generic_rpc_handlers((inference.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (_PREDICTION, _FEEDBACK, _MODEL, _INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )

    def _open_metrics_port(self) -> int:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        try:
            self._metrics_server = MetricsServer(host, port, page_of(self._metrics.registry), self._problem)
        except OSError as error:
            self._discard_listeners()
            raise ConfigError(
                f"serving.metrics_port: {port} cannot be opened on {host} ({error.strerror}); "
                "set another one (0 picks one)"
            ) from error
        return self._metrics_server.port

    def _problem(self) -> str | None:
        """Reason why calls are not served here; None while they are."""
        if self._shutdown.is_set():
            return "the server is shutting down"
        return None if self._ready else "there is no model, or one without a live version that is proven here"

    def _follow(self) -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _POLL_NICENESS)
        problems = Problems(self._metrics)
        while not self._shutdown.wait(self._settings.watch_interval_s):
            with problems.of("following the registry"):  # nothing that is known to happen, but it must go on
                self._poll()
                if time.monotonic() - self._reported_s >= _REPORT_INTERVAL_S:
                    self._report()

    def _report(self) -> None:
        """Log the counts of experiments since the last report."""
        self._reported_s = time.monotonic()
        for served in self._models.all():
            for report in served.live.experiment_reports(time.time()):
                self._decision_log.record(report)

    def _poll(self) -> None:
        """Poll every model, and set the health of the services that need them."""
        self._models.poll()
        ready = self._models.ready()
        if ready != self._ready:
            self._ready = ready
            for service in _NEED_MODELS:
                self._health.set(service, _SERVING if ready else _NOT_SERVING)
