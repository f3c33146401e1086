"""Client for asyncio. One per server and event loop is enough."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc

from plaudit.client import calls, channel, tracing
from plaudit.client.calls import Call, serialize
from plaudit.client.errors import from_rpc_error
from plaudit.client.feedback import Feedback
from plaudit.client.methods import ClientMethods
from plaudit.client.results import Acknowledgement, Prediction, Receipt, RolloutSnapshot, Version, Versions

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Result = TypeVar("Result")


class AsyncClient(
    ClientMethods[
        Coroutine[Any, Any, Prediction],
        Coroutine[Any, Any, Acknowledgement],
        Coroutine[Any, Any, Receipt],
        Coroutine[Any, Any, Versions],
        Coroutine[Any, Any, Version],
        Coroutine[Any, Any, RolloutSnapshot],
    ]
):
    """Connection to one Plaudit server, or to several behind one name. Arguments and errors are those of
    :class:`~plaudit.client.Client`.
    """

    def __init__(
        self,
        target: str = channel.DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        admin_token: str | None = None,
        tls_ca: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = channel.DEFAULT_TIMEOUT_S,
        max_message_bytes: int = channel.DEFAULT_MAX_MESSAGE_BYTES,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._target = channel.checked(target)
        self._timeout_s = timeout_s
        self._identity = channel.Identity(api_key, admin_token, tls_ca, certificate, key)
        credentials = self._identity.credentials(target, credentials)
        options = channel.options(max_message_bytes)
        interceptors = None if tracer_provider is None else tracing.interceptors(tracer_provider)
        self._channel = (
            grpc.aio.secure_channel(target, credentials, options, interceptors=interceptors)
            if credentials
            else grpc.aio.insecure_channel(target, options, interceptors=interceptors)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    # --- streams -----------------------------------------------------------------------------------------------------

    def stream_feedback(
        self, pieces: Iterable[Feedback] | AsyncIterable[Feedback], *, timeout_s: float | None = None
    ) -> AsyncIterator[Acknowledgement]:
        """Send many; answers come in their order. One that is refused has ``error`` set and does not end the stream.

        A task of the channel reads ``pieces`` while the caller reads the answers.
        """
        call = calls.STREAM_FEEDBACK
        method: Any = self._channel.stream_stream(call.method, serialize, call.response.FromString)
        return self._read(call, method(pieces, timeout=timeout_s, metadata=self._identity.metadata(admin=False)))

    def watch_versions(self, *, model: str = "", timeout_s: float | None = None) -> AsyncIterator[RolloutSnapshot]:
        """Present rollout at once, then every change, for as long as it is read."""
        call = calls.watch_versions(model)
        method: Any = self._channel.unary_stream(call.method, serialize, call.response.FromString)
        return self._read(call, method(call.request, timeout=timeout_s, metadata=self._identity.metadata(admin=False)))

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _invoke(self, call: Call[Result], timeout_s: float | None) -> Result:
        method: Any = self._channel.unary_unary(call.method, serialize, call.response.FromString)
        try:
            answer = await method(
                call.request,
                timeout=self._timeout_s if timeout_s is None else timeout_s,
                metadata=self._identity.metadata(admin=call.admin),
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from error
        return call.read(answer)

    async def _read(self, call: Call[Result], answers: Any) -> AsyncIterator[Result]:
        try:
            async for answer in answers:
                yield call.read(answer)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from error
        finally:
            answers.cancel()
