"""Traces of the client's calls with OpenTelemetry: each call is a span, and its context is sent to the server.

Streams send the context that they are called in and have no span of their own, as they last as long as they are read.
OpenTelemetry is imported only where a tracer provider is given.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


class _Details(
    namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    """Details of a call."""


class _CallTracer:
    """Spans of calls, and the metadata that carry their context."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("plaudit.client")
        self._kind, self._error = trace.SpanKind.CLIENT, trace.StatusCode.ERROR
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, method: str | bytes) -> Iterator[Span]:
        """Span of a call. It records no error message, as these quote the request."""
        name = method.decode() if isinstance(method, bytes) else method
        with self._tracer.start_as_current_span(
            name.removeprefix("/"),
            kind=self._kind,
            attributes={"rpc.system": "grpc"},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    def record_status(self, span: Span, code: grpc.StatusCode) -> None:
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code is not grpc.StatusCode.OK:
            span.set_status(self._error, code.name)

    def metadata(self, details: Any) -> list[Any]:
        """Metadata of a call with the present context as ``traceparent``."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return [*(details.metadata or ()), *carrier.items()]


class _Sync(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    def __init__(self, tracer: _CallTracer) -> None:
        self._tracer = tracer

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        with self._tracer.span(details.method) as span:
            call = continuation(self._with_context(details), request)
            self._tracer.record_status(span, call.code())
            return call

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_context(details), request)

    def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return continuation(self._with_context(details), requests)

    def _with_context(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            self._tracer.metadata(details),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


class _Asyncio:
    def __init__(self, tracer: _CallTracer) -> None:
        self._tracer = tracer

    def _with_context(self, details: Any) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*self._tracer.metadata(details))
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _Unary(_Asyncio, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        with self._tracer.span(details.method) as span:
            call = await continuation(self._with_context(details), request)
            self._tracer.record_status(span, await call.code())
            return call


class _UnaryStream(_Asyncio, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with_context(details), request)


class _StreamStream(_Asyncio, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, request_iterator: Any) -> Any:
        return await continuation(self._with_context(details), request_iterator)


def traced(channel: grpc.Channel, provider: TracerProvider) -> grpc.Channel:
    """Channel whose calls are traced."""
    return grpc.intercept_channel(channel, _Sync(_CallTracer(provider)))


def interceptors(provider: TracerProvider) -> list[Any]:
    """Interceptors that trace the calls of a channel for asyncio."""
    tracer = _CallTracer(provider)
    return [_Unary(tracer), _UnaryStream(tracer), _StreamStream(tracer)]
