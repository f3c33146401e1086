"""The inference service with spans: what it does anyway, inside them. Where nothing is traced, nothing of this is used.

A request's span is its call's, with the decoding and the wait for the model below it. A batch has a span of its own,
which links to the requests it answers. Decisions and feedback carry the traceparent of their call into the log.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final, TypeVar

from plaudit.core.events import Content, Decision, Event, ExperimentReport, Feedback, RolloutChanged
from plaudit.core.ports.log import Appended, EventLog
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.tracing import TRACEPARENT, Attributes, Tracing
from plaudit.serving.engine.batcher import NO_DEADLINE, Batcher, Caller, Run
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.engine.decoding import Arrays
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest
from plaudit.serving.grpc.interceptors import Calls
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.use_cases.feedback import FeedbackRequest, FeedbackUseCase
from plaudit.serving.use_cases.predict import Prediction, PredictionRequest, PredictUseCase, RowsAnswer, RowsRequest

T = TypeVar("T")

_PACKAGE: Final = "plaudit.v1."
_INFERENCE: Final = "inference."


class TracedCalls(Calls):
    """A span for each call, below that of the caller who sent a traceparent."""

    def __init__(self, metrics: ServingMetrics, *, log_refusals: bool = False, tracing: Tracing) -> None:
        super().__init__(metrics, log_refusals=log_refusals)
        self._tracing = tracing

    def _unary(self, behaviour: Callable[..., Any], read: Callable[[bytes], Any], method: str) -> Callable[..., Any]:
        plain, name = super()._unary(behaviour, read, method), _span_name(method)
        attributes = _rpc(name)

        def call(raw: bytes, context: Any) -> Any:
            with self._tracing.span(name, kind="server", parent=_parent(context), attributes=attributes):
                try:
                    return plain(raw, context)
                finally:
                    self._note_status(context)

        return call

    def _stream(self, behaviour: Callable[..., Iterator[Any]], method: str) -> Callable[..., Iterator[Any]]:
        plain, name = super()._stream(behaviour, method), _span_name(method)

        def call(request: Any, context: Any) -> Iterator[Any]:
            return self._tracing.stream(name, lambda: plain(request, context), kind="server", parent=_parent(context))

        return call

    def _note_status(self, context: Any) -> None:
        code = context.code()
        self._tracing.note({"rpc.grpc.status_code": 0 if code is None else code.value[0]})


def _span_name(method: str) -> str:
    return method if method.startswith(_INFERENCE) else _PACKAGE + method


def _rpc(name: str) -> Mapping[str, str]:
    service, _, method = name.partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


def _parent(context: Any) -> str:
    return next((str(value) for key, value in context.invocation_metadata() if key == TRACEPARENT), "")


class TracedPredictor(PredictUseCase):
    """Says on the call's span what was answered, and has the decoding in one of its own."""

    def __init__(self, *parts: Any, tracing: Tracing, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._tracing = tracing

    def predict(self, request: PredictionRequest, caller: Caller = NO_DEADLINE) -> Prediction:
        answer = super().predict(request, caller)
        self._tracing.note(
            {
                "plaudit.model": answer.model,
                "plaudit.version": answer.version,
                "plaudit.role": str(answer.role),
                "plaudit.prediction_id": answer.prediction_id,
                "plaudit.request_id": answer.request_id,
            }
        )
        return answer

    def predict_rows(self, request: RowsRequest, caller: Caller = NO_DEADLINE) -> RowsAnswer:
        answer = super().predict_rows(request, caller)
        self._tracing.note(
            {
                "plaudit.model": answer.model.manifest.spec.name,
                "plaudit.version": answer.model.manifest.version,
                "plaudit.rows": len(answer.rows),
                "plaudit.request_id": request.request_id,
            }
        )
        return answer

    def _decode(self, content: Mapping[str, Content], model: ServableModel, caller: Caller) -> Arrays:
        with self._tracing.span("decode"):
            return super()._decode(content, model, caller)


class TracedBatcher:
    """A batcher of questions, each with the traceparent of who asks.

    Args:
        runs, name, max_batch: as the batcher's.
    """

    def __init__(
        self,
        runs: Sequence[Run[EvaluationRequest, Evaluation]],
        *,
        name: str,
        max_batch: Callable[[], int],
        tracing: Tracing,
    ) -> None:
        self._tracing = tracing
        self._inner: Batcher[tuple[EvaluationRequest, str], Evaluation] = Batcher(
            [self._traced(run) for run in runs], name=name, max_batch=max_batch
        )
        self.start, self.close, self.waiting = self._inner.start, self._inner.close, self._inner.waiting

    @property
    def taken(self) -> int:
        return self._inner.taken

    def submit(self, items: Sequence[EvaluationRequest], caller: Caller = NO_DEADLINE) -> list[Evaluation | Exception]:
        with self._asking():
            present = self._tracing.present()
            return self._inner.submit([(item, present) for item in items], caller)

    def ask(self, item: EvaluationRequest, caller: Caller = NO_DEADLINE) -> Evaluation:
        with self._asking():
            return self._inner.ask((item, self._tracing.present()), caller)

    def _asking(self) -> AbstractContextManager[object]:
        return self._tracing.span("wait for the model")

    def _traced(self, run: Run[EvaluationRequest, Evaluation]) -> Run[tuple[EvaluationRequest, str], Evaluation]:
        def traced(items: Sequence[tuple[EvaluationRequest, str]]) -> Sequence[Evaluation | Exception]:
            questions = [question for question, _ in items]
            manifest = questions[0].model.manifest
            attributes: Attributes = {
                "plaudit.model": manifest.spec.name,
                "plaudit.version": manifest.version,
                "plaudit.requests": len(questions),
            }
            with self._tracing.span("batch", links=[asked for _, asked in items], attributes=attributes):
                return run(questions)

        return traced


class TracedRecorder(DecisionLog):
    """Decisions know the call that they were made in."""

    def __init__(self, *parts: Any, tracing: Tracing, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._tracing = tracing

    def record(self, event: Decision | RolloutChanged | ExperimentReport) -> None:
        if isinstance(event, Decision):
            event = replace(event, traceparent=self._tracing.present())
        super().record(event)


class TracedFeedback(FeedbackUseCase):
    """Feedback knows the call that it came with."""

    def __init__(self, *parts: Any, tracing: Tracing, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._tracing = tracing

    def send_all(self, requests: Sequence[FeedbackRequest], caller: Caller = NO_DEADLINE) -> Sequence[bool | Exception]:
        present = self._tracing.present()
        if len(requests) == 1:
            request = requests[0]
            self._tracing.note(
                {"plaudit.feedback_id": request.feedback_id, "plaudit.prediction_id": request.prediction_id}
            )
        return super().send_all([replace(request, traceparent=present) for request in requests], caller)


class TracedLog:
    """An event log whose appends have spans that link to the calls which the events are of."""

    def __init__(self, log: EventLog, tracing: Tracing) -> None:
        self._log = log
        self._tracing = tracing

    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        links = [event.traceparent for event in events if isinstance(event, Decision | Feedback)]
        with self._tracing.span("append", links=links, attributes={"plaudit.events": len(events)}):
            return self._log.append(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class TracedPool(ThreadPoolExecutor):
    """What is worked on for a stream belongs to the stream's span."""

    def submit(self, work: Callable[..., T], /, *given: Any, **more: Any) -> Future[T]:
        return super().submit(contextvars.copy_context().run, work, *given, **more)
