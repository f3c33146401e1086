"""What every call of ours has in common: errors become statuses, calls are counted and timed.

The table here is the only place where a class of error meets a gRPC status.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import structlog

from plaudit.core import errors
from plaudit.serving.metrics import ServingMetrics

STATUSES: Final[Mapping[type[errors.PlauditError], grpc.StatusCode]] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RolloutMoved: grpc.StatusCode.ABORTED,
    errors.StoreMoved: grpc.StatusCode.ABORTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    errors.WrongToken: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnprovenVersion: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
}
"""The nearest class an error is of decides."""

_OURS: Final = "/plaudit.v1."

logger = structlog.get_logger(__name__)


def status_of(error: Exception, method: str) -> tuple[grpc.StatusCode, str]:
    """Status and text for the caller. What was not raised on purpose is logged in full and told as a reference only."""
    for cls in type(error).__mro__:
        if cls in STATUSES:
            return STATUSES[cls], str(error)
    reference = uuid.uuid4().hex
    logger.error("internal_error", method=method, reference=reference, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error; the server's log tells more under the reference {reference}"


class Calls(grpc.aio.ServerInterceptor):
    """Wraps every method of the services in ``plaudit.v1``; leaves health and reflection alone."""

    def __init__(self, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = str(handler_call_details.method)
        if method in self._wrapped:
            return self._wrapped[method]
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(_OURS):
            return handler
        self._wrapped[method] = self._wrap(handler, method.removeprefix(_OURS))
        return self._wrapped[method]

    def _wrap(self, handler: Any, method: str) -> Any:
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method), **codecs)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, method), **codecs)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, method), **codecs)

    def _unary(self, behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        ok = self._metrics.requests.labels(method, "OK")
        seconds = self._metrics.request_seconds.labels(method)

        async def call(request: Any, context: Any) -> Any:
            started_s = time.perf_counter()
            try:
                answer = await behaviour(request, context)
            except Exception as error:
                await self._abort(error, method, context)
            except asyncio.CancelledError:
                self._metrics.requests.labels(method, "CANCELLED").inc()
                raise
            else:
                ok.inc()
                return answer
            finally:
                seconds.observe(time.perf_counter() - started_s)

        return call

    def _stream(self, behaviour: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            started_s = time.perf_counter()
            try:
                async for answer in behaviour(request, context):
                    yield answer
            except Exception as error:
                await self._abort(error, method, context)
            except (asyncio.CancelledError, GeneratorExit):
                self._metrics.requests.labels(method, "CANCELLED").inc()
                raise
            else:
                self._metrics.requests.labels(method, "OK").inc()
            finally:
                self._metrics.request_seconds.labels(method).observe(time.perf_counter() - started_s)

        return call

    async def _abort(self, error: Exception, method: str, context: Any) -> None:
        code, text = status_of(error, method)
        self._metrics.requests.labels(method, code.name).inc()
        await context.abort(code, text)
