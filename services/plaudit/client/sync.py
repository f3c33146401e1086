"""Client for threads. Safe to use from several threads; one per server is enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


class Client(ClientMethods[Prediction, Acknowledgement, Receipt, Versions, Version, RolloutSnapshot]):
    """Connection to one Plaudit server, or to several behind one name.

    Every method raises :class:`~plaudit.client.ClientError`. Other keyword arguments are those of
    :class:`~plaudit.client.calls.PredictOptions`, :class:`~plaudit.client.feedback.FeedbackOptions` and
    :class:`~plaudit.client.calls.ChangeOptions`; ``timeout_s``, in seconds, replaces the client's own for one call.

    Args:
        target: ``host:port`` of the gRPC port.
        api_key: key, or token of an identity provider, where the server asks for one; sent to another machine over TLS
            alone.
        admin_token: for promote, rollback and pin, where the server asks for one and has no keys.
        tls_ca: file with the certificates, PEM, of which one must have signed the server's, such as itself.
            ``"system"``: those of the well-known authorities. None: plain text.
        certificate: file with the client's own certificate, PEM, where the server asks for one.
        key: file with its private key, PEM.
        credentials: of the channel, in place of files.
        timeout_s: time limit of a call in seconds, retries included. Streams have none unless the method gets one.
        max_message_bytes: size of the largest message sent or received.
        tracer_provider: of OpenTelemetry, for a span around each call; None: calls are not traced.
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
        self._channel = (
            grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        )
        if tracer_provider is not None:
            self._channel = tracing.traced(self._channel, tracer_provider)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # --- streams -----------------------------------------------------------------------------------------------------

    def stream_feedback(
        self, pieces: Iterable[Feedback], *, timeout_s: float | None = None
    ) -> Iterator[Acknowledgement]:
        """Send many; answers come in their order. One that is refused has ``error`` set and does not end the stream.

        A thread of the channel reads ``pieces`` while the caller reads the answers.
        """
        call = calls.STREAM_FEEDBACK
        method: Any = self._channel.stream_stream(call.method, serialize, call.response.FromString)
        return self._read(call, method(iter(pieces), timeout=timeout_s, metadata=self._identity.metadata(admin=False)))

    def watch_versions(self, *, model: str = "", timeout_s: float | None = None) -> Iterator[RolloutSnapshot]:
        """Present rollout at once, then every change, for as long as it is read."""
        call = calls.watch_versions(model)
        method: Any = self._channel.unary_stream(call.method, serialize, call.response.FromString)
        return self._read(call, method(call.request, timeout=timeout_s, metadata=self._identity.metadata(admin=False)))

    # --- calls -------------------------------------------------------------------------------------------------------

    def _invoke(self, call: Call[Result], timeout_s: float | None) -> Result:
        method: Any = self._channel.unary_unary(call.method, serialize, call.response.FromString)
        try:
            answer = method(
                call.request,
                timeout=self._timeout_s if timeout_s is None else timeout_s,
                metadata=self._identity.metadata(admin=call.admin),
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from error
        return call.read(answer)

    def _read(self, call: Call[Result], answers: Any) -> Iterator[Result]:
        try:
            for answer in answers:
                yield call.read(answer)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from error
        finally:
            answers.cancel()
