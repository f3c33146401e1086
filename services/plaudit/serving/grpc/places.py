"""Threads and places of calls: unary calls, streams and health have their own, so that none takes the others'.

A call that finds no place is refused at once, unread, on the thread that all calls arrive on. A unary call whose
message has not arrived holds a thread, but no place. Health is never refused for what other calls do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import grpc

from plaudit.core.errors import Overloaded
from plaudit.core.limits import MAX_HEALTH_CALLS, MAX_LATE_CALLS
from plaudit.serving.grpc.interceptors import abort_overloaded
from plaudit.serving.grpc.open_calls import OpenCalls, WaitingMessages

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Send = Callable[[Any], None]
"""Sends an answer of a call whose thread does not wait."""
Gate = Callable[[str, Any], None]
"""Method and context → the call goes on, unless it is aborted."""

_HEALTH: Final = "/grpc.health.v1.Health/"


class CountedThreads(ThreadPoolExecutor):
    """Threads that know how many calls they have, those that wait for a thread included.

    Args:
        limit: number of threads.
    """

    def __init__(self, limit: int, name: str) -> None:
        super().__init__(limit, thread_name_prefix=name)
        self.limit = limit
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        return self._taken

    def submit(
        self, function: Callable[Arguments, Result], /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Future[Result]:
        with self._lock:
            self._taken += 1
        future = super().submit(function, *arguments, **named)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Any]) -> None:
        with self._lock:
            self._taken -= 1


class _NoThread(ThreadPoolExecutor):
    """Runs what it is given at once, on the caller's thread."""

    def submit(
        self, function: Callable[Arguments, Result], /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_result(function(*arguments, **named))
        return future


@dataclass(frozen=True, slots=True)
class _Kind:
    """Calls that share threads.

    Attributes:
        places: calls that may be worked on at once; those whose message is late do not count.
        full: what is full when there is no place, for the error.
    """

    name: str
    threads: CountedThreads
    waiting: WaitingMessages
    places: int
    full: str

    def has_room(self) -> bool:
        """True if one more call can be taken; a call that has been late for long may have to give way for it."""
        taken = self.threads.taken
        if taken >= self.places and taken - self.waiting.late() >= self.places:
            return False
        return taken < self.threads.limit or self.waiting.give_way()


class Places(grpc.ServerInterceptor):
    """The outermost interceptor of a server.

    Args:
        gate: lets a call of a method pass or aborts it, on the call's thread and before its message is waited for.
        max_calls: unary calls that may be worked on at once.
        max_streams: streams that may be open at once; :class:`OpenCalls` counts them.
        refused: counts refusals: of a method, for a reason.
    """

    def __init__(
        self,
        open_calls: OpenCalls,
        refused: Callable[[str, str], None],
        gate: Gate,
        *,
        max_calls: int,
        max_streams: int,
    ) -> None:
        def kind(name: str, places: int, full: str) -> _Kind:
            return _Kind(name, CountedThreads(places + MAX_LATE_CALLS, name), WaitingMessages(), places, full)

        self._calls = kind("call", max_calls, "the server's number of calls")
        # Those beyond the limit have a thread for as long as it takes to see whether another stream gives way.
        self._streams = kind("stream", 2 * max_streams, "the server's number of streams")
        self._health = kind("health", MAX_HEALTH_CALLS, "the number of calls for health")
        self._kinds = (self._calls, self._streams, self._health)
        open_calls.waiting += [each.waiting for each in self._kinds]
        self._open_calls = open_calls
        self._refused = refused
        self._gate = gate
        self._no_thread = _NoThread(1)
        self._prepared: dict[str, tuple[_Kind, Any, Any]] = {}

    @property
    def default_threads(self) -> ThreadPoolExecutor:
        return self._calls.threads

    def close(self) -> None:
        """End the threads; calls under way end first."""
        for kind in self._kinds:
            kind.threads.shutdown()
        self._no_thread.shutdown()

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        method = handler_call_details.method
        prepared = self._prepared.get(method)
        if prepared is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            kind = self._kind(method, handler)
            prepared = self._prepared[method] = kind, self._placed(method, handler, kind), self._refusal(method, kind)
        kind, placed, refusal = prepared
        return placed if kind.has_room() else refusal

    def _kind(self, method: str, handler: Any) -> _Kind:
        if method.startswith(_HEALTH):
            return self._health
        return self._streams if handler.request_streaming or handler.response_streaming else self._calls

    def _refusal(self, method: str, kind: _Kind) -> Any:
        error = Overloaded(kind.full, kind.places)

        def refuse(_: Iterator[Any], context: Any) -> NoReturn:
            self._refused(method, kind.name)
            abort_overloaded(error, context)

        refuse.experimental_thread_pool = self._no_thread  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _placed(self, method: str, handler: Any, kind: _Kind) -> Any:
        """The handler on the threads of its kind.

        gRPC would wait for the message of a unary call for ever; as a stream of one, which is the same on the wire, it
        can be watched while it waits.
        """
        behaviour = handler.stream_stream or handler.stream_unary
        if behaviour is None:
            behaviour = _one_message(handler.unary_stream or handler.unary_unary, kind.waiting)

        def call(requests: Iterator[Any], context: Any, send: Send | None = None) -> Any:
            self._gate(method, context)
            return behaviour(requests, context) if send is None else behaviour(requests, context, send)

        call.experimental_thread_pool = kind.threads  # type: ignore[attr-defined]
        if getattr(handler.unary_stream, "experimental_non_blocking", False):
            call.experimental_non_blocking = True  # type: ignore[attr-defined]
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(call, handler.request_deserializer, handler.response_serializer)


def _one_message(behaviour: Callable[..., Any], waiting: WaitingMessages) -> Callable[..., Any]:
    def read(requests: Iterator[Any], context: Any, send: Send | None = None) -> Any:
        request = waiting.first(requests, context)
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: the call ended without its message")
        return behaviour(request, context) if send is None else behaviour(request, context, send)

    return read
