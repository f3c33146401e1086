"""Common to all calls of our services: errors become statuses, calls are counted and timed.

The table here is the only place where a class of error meets a gRPC status.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from plaudit.core import errors
from plaudit.core.errors import InvalidInput
from plaudit.core.limits import MAX_SMALL_CALL_BYTES, MAX_STATUS_BYTES
from plaudit.core.message_bounds import check_message
from plaudit.serving.engine.admission import ByteBudget
from plaudit.serving.engine.call_context import ClientGone
from plaudit.serving.grpc.open_calls import OpenCalls
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.request_log import ids_of, log_refusal

STATUSES: Final[Mapping[type[errors.PlauditError], grpc.StatusCode]] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnstorableValue: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RolloutMoved: grpc.StatusCode.ABORTED,
    errors.StoreMoved: grpc.StatusCode.ABORTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    errors.WrongToken: grpc.StatusCode.PERMISSION_DENIED,
    errors.OtherFeedback: grpc.StatusCode.ALREADY_EXISTS,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.QuotaSpent: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnprovenVersion: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
}
"""The nearest class an error is of decides."""

_OURS: Final = {"/plaudit.v1.": "", "/inference.": "inference.", "/grpc.reflection.": "reflection."}
"""Prefixes of the methods that are wrapped, and what replaces them in metrics."""
_RETRY_S: Final = 0.05
"""When a client that found the queue full may try again: a full queue is worked off in about that time."""

logger = structlog.get_logger(__name__)


def status_of(error: Exception, method: str, request: Any = None) -> tuple[grpc.StatusCode, str]:
    """Status and text for the client. An error that was not raised on purpose is logged in full; the text is a
    reference.

    Args:
        request: the message, for its ids; None if there is none.
    """
    for cls in type(error).__mro__:
        if cls in STATUSES:
            assert isinstance(error, errors.PlauditError)
            return STATUSES[cls], _cut(error.for_clients)
    reference = uuid.uuid4().hex
    logger.error("internal_error", method=method, reference=reference, **ids_of(request), exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error; find it in the server's log by the reference {reference}"


def _cut(text: str) -> str:
    """As much of the text as fits into the trailers of a call, which clients limit to 8 KiB."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_STATUS_BYTES:
        return text
    return encoded[:MAX_STATUS_BYTES].decode(errors="ignore") + "…"


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps every method but those of health.

    Args:
        open_calls: which streams are open.
        budget: memory of the messages of unary calls.
        count_message: counts a message of a stream; raises QuotaSpent, which ends the stream.
        log_refusals: write a line for each call that is refused.
    """

    def __init__(
        self,
        metrics: ServingMetrics,
        open_calls: OpenCalls,
        budget: ByteBudget,
        count_message: Callable[[Any], None],
        *,
        log_refusals: bool = False,
    ) -> None:
        self._metrics = metrics
        self._open_calls = open_calls
        self._budget = budget
        self._count_message = count_message
        self._log_refusals = log_refusals
        self._wrapped: dict[str, Any] = {}

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        label = metric_label(method)
        if label is None:
            return handler
        self._wrapped[method] = self._wrap(handler, label)
        return self._wrapped[method]

    def _wrap(self, handler: Any, method: str) -> Any:
        """Requests are deserialised here, so that bytes that are no message are an error like any other."""
        read = reader_of(handler.request_deserializer, ids=not handler.stream_stream)
        write = {"response_serializer": handler.response_serializer}
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, read, method), **write)
        if handler.unary_stream:

            def answer_one(raw: bytes, context: Any) -> Iterator[Any]:
                return handler.unary_stream(read(raw), context)  # type: ignore[no-any-return]

            return grpc.unary_stream_rpc_method_handler(self._stream(answer_one, method, may_idle=True), **write)

        def answer_many(raws: Iterator[bytes], context: Any) -> Iterator[Any]:
            def messages() -> Iterator[Any]:
                for raw in self._open_calls.of(context).messages(raws):
                    self._count_message(context)
                    yield read(raw)

            return handler.stream_stream(messages(), context)  # type: ignore[no-any-return]

        return grpc.stream_stream_rpc_method_handler(self._stream(answer_many, method, may_idle=False), **write)

    def _unary(self, behaviour: Callable[..., Any], read: Callable[[bytes], Any], method: str) -> Callable[..., Any]:
        ok = self._metrics.requests.labels(method, "OK")
        seconds = self._metrics.request_seconds.labels(method)

        def call(raw: bytes, context: Any) -> Any:
            started_s = time.perf_counter()
            request = None
            held_bytes = 0
            try:
                if len(raw) > MAX_SMALL_CALL_BYTES:
                    self._budget.take(len(raw))
                    held_bytes = len(raw)
                request = read(raw)
                answer = behaviour(request, context)
            except Exception as error:
                self._abort(error, method, context, request)
            else:
                ok.inc()
                return answer
            finally:
                if held_bytes:
                    self._budget.give(held_bytes)
                seconds.observe(time.perf_counter() - started_s)

        return call

    def _stream(
        self, behaviour: Callable[..., Iterator[Any]], method: str, *, may_idle: bool
    ) -> Callable[..., Iterator[Any]]:
        def call(request: Any, context: Any) -> Iterator[Any]:
            started_s = time.perf_counter()
            try:
                with self._open_calls.stream(context, may_idle=may_idle) as opened:
                    for answer in behaviour(request, context):
                        yield answer
                        opened.touch()
                    if opened.closed is not None:
                        raise opened.closed
            except Exception as error:
                self._abort(error, method, context)
            except GeneratorExit:
                self._metrics.requests.labels(method, "CANCELLED").inc()
                raise
            else:
                self._metrics.requests.labels(method, "OK").inc()
            finally:
                self._metrics.request_seconds.labels(method).observe(time.perf_counter() - started_s)

        return call

    def _abort(self, error: Exception, method: str, context: Any, request: Any = None) -> NoReturn:
        if isinstance(error, ClientGone) or not context.is_active():
            left = left_as(context)
            self._metrics.requests.labels(method, left.name).inc()
            context.abort(left, "the client has left")
        code, text = status_of(error, method, request)
        if self._log_refusals:
            log_refusal(method, code.name, error, request)
        self._metrics.requests.labels(method, code.name).inc()
        abort(error, code, text, context)


def metric_label(method: str) -> str | None:
    """Name of a method in metrics; None for a method that is not wrapped."""
    return next(
        (label + method.removeprefix(prefix) for prefix, label in _OURS.items() if method.startswith(prefix)), None
    )


def left_as(context: Any) -> grpc.StatusCode:
    """What the client of a call that it no longer waits for has seen: its own cancellation, or its deadline."""
    return grpc.StatusCode.DEADLINE_EXCEEDED if context.time_remaining() == 0.0 else grpc.StatusCode.CANCELLED


def abort(error: Exception, code: grpc.StatusCode, text: str, context: Any) -> NoReturn:
    """End a call with a status; where trying again helps, it says when."""
    if isinstance(error, errors.Overloaded | errors.QuotaSpent):
        context.abort_with_status(_retry_later(code, text))
    context.abort(code, text)
    raise AssertionError("abort raises")


def abort_overloaded(error: errors.Overloaded, context: Any) -> NoReturn:
    """End a call that found no place."""
    abort(error, *status_of(error, ""), context)


def reader_of(deserialize: Callable[[bytes], Any] | None, *, ids: bool = True) -> Callable[[bytes], Any]:
    """Bytes → message, raising InvalidInput; for methods that take bytes, the bytes.

    Args:
        ids: see :func:`check_message`.
    """
    if deserialize is None:
        return lambda raw: raw
    descriptor = deserialize.__self__.DESCRIPTOR  # type: ignore[attr-defined]  # FromString of a message

    def read(raw: bytes) -> Any:
        check_message(raw, descriptor, ids=ids)
        try:
            return deserialize(raw)
        except DecodeError as error:
            raise InvalidInput(
                "request", f"its {len(raw)} bytes are not the message of this method ({error})"
            ) from error

    return read


def _retry_later(code: grpc.StatusCode, text: str) -> Any:
    """A status with a hint that clients and proxies understand: ``google.rpc.RetryInfo``."""
    status = Status(code=code.value[0], message=text)
    delay = Duration()
    delay.FromNanoseconds(round(_RETRY_S * 1e9))
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)
