"""Traces of the client's calls with OpenTelemetry: each call is a span, and its context is sent to the server.

Streams send the context that they are called in and have no span of their own, as they last as long as they are read.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_W3C = TraceContextTextMapPropagator()


class _Details(
    namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    """Details of a call."""


class _Spans:
    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("plaudit.client")

    @contextmanager
    def span(self, method: str | bytes) -> Iterator[trace.Span]:
        """Span of a call. It records no error message, as these quote the request."""
        name = method.decode() if isinstance(method, bytes) else method
        with self._tracer.start_as_current_span(
            name.removeprefix("/"),
            kind=trace.SpanKind.CLIENT,
            attributes={"rpc.system": "grpc"},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span


def _with_traceparent(details: Any) -> Any:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return [*(details.metadata or ()), *carrier.items()]


def _record_status(span: trace.Span, code: grpc.StatusCode) -> None:
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code is not grpc.StatusCode.OK:
        span.set_status(trace.StatusCode.ERROR, code.name)


class _Sync(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    def __init__(self, provider: TracerProvider) -> None:
        self._spans = _Spans(provider)

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        with self._spans.span(details.method) as span:
            call = continuation(self._with_context(details), request)
            _record_status(span, call.code())
            return call

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_context(details), request)

    def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return continuation(self._with_context(details), requests)

    def _with_context(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            _with_traceparent(details),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


class _Unary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, provider: TracerProvider) -> None:
        self._spans = _Spans(provider)

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        with self._spans.span(details.method) as span:
            call = await continuation(_with_context(details), request)
            _record_status(span, await call.code())
            return call


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_context(details), request)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, request_iterator: Any) -> Any:
        return await continuation(_with_context(details), request_iterator)


def _with_context(details: Any) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*_with_traceparent(details))
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


def traced(channel: grpc.Channel, provider: TracerProvider) -> grpc.Channel:
    """Channel whose calls are traced."""
    return grpc.intercept_channel(channel, _Sync(provider))


def interceptors(provider: TracerProvider) -> list[Any]:
    """Interceptors that trace the calls of a channel for asyncio."""
    return [_Unary(provider), _UnaryStream(), _StreamStream()]
