"""A span around each call of our services. Only a server that traces has this interceptor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from plaudit.core.tracing import TRACEPARENT, Tracing

_TRACED: Final = ("/plaudit.v1.", "/inference.")
"""Prefixes of the methods that are traced."""


class TracingInterceptor(grpc.ServerInterceptor):
    """Spans of calls, each below that of the client, if the call's metadata has a traceparent."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not method.startswith(_TRACED):
            return handler
        name = method.removeprefix("/")
        serialisers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, name), **serialisers)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, name), **serialisers)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, name), **serialisers)

    def _unary(self, behaviour: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Any]:
        service, _, method = name.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}

        def call(request: Any, context: Any) -> Any:
            with self._tracing.span(name, kind="server", parent=_parent(context), attributes=attributes):
                try:
                    return behaviour(request, context)
                finally:
                    code = context.code()
                    self._tracing.note({"rpc.grpc.status_code": 0 if code is None else code.value[0]})

        return call

    def _stream(self, behaviour: Callable[[Any, Any], Iterator[Any]], name: str) -> Callable[[Any, Any], Iterator[Any]]:
        def call(request: Any, context: Any) -> Iterator[Any]:
            return self._tracing.stream(
                name, lambda: behaviour(request, context), kind="server", parent=_parent(context)
            )

        return call


def _parent(context: Any) -> str:
    return next((str(value) for key, value in context.invocation_metadata() if key == TRACEPARENT), "")
