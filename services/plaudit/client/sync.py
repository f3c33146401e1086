"""Client for threads. Safe to use from several threads; one per server is enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from plaudit.client import calls, channel, feedback
from plaudit.client.calls import Call, ChangeOptions, PredictOptions
from plaudit.client.errors import from_rpc_error
from plaudit.client.feedback import Feedback, FeedbackOptions, ImplicitKind, Subject
from plaudit.client.results import Acknowledgement, Prediction, Receipt, Rollout, Version, Versions

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from plaudit.client.content import Part

Result = TypeVar("Result")


class Client:
    """Connection to one Plaudit server, or to several behind one name.

    Every method raises :class:`~plaudit.client.ClientError`. Other keyword arguments are those of
    :class:`~plaudit.client.calls.PredictOptions`, :class:`~plaudit.client.feedback.FeedbackOptions` and
    :class:`~plaudit.client.calls.ChangeOptions`; ``timeout_s``, in seconds, replaces the client's own for one call.

    Args:
        target: ``host:port`` of the gRPC port.
        admin_token: for promote, rollback and pin, where the server asks for one.
        credentials: such as ``grpc.ssl_channel_credentials()``; None: plain text.
        timeout_s: time limit of a call in seconds, retries included. Streams have none unless the method gets one.
        max_message_bytes: size of the largest message sent or received.
        tracer_provider: of OpenTelemetry, for a span around each call; None: calls are not traced.
    """

    def __init__(
        self,
        target: str = channel.DEFAULT_TARGET,
        *,
        admin_token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = channel.DEFAULT_TIMEOUT_S,
        max_message_bytes: int = channel.DEFAULT_MAX_MESSAGE_BYTES,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._admin_metadata = channel.metadata(admin_token)
        options = channel.options(max_message_bytes)
        self._channel = (
            grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        )
        if tracer_provider is not None:
            from plaudit.client.tracing import traced

            self._channel = traced(self._channel, tracer_provider)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # --- predictions -------------------------------------------------------------------------------------------------

    def predict(
        self, content: Mapping[str, Part], *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> Prediction:
        """Get an action for the content.

        Args:
            content: by modality name; a modality may be missing. ``str`` is text, a ``Path`` or bytes an image or a
                sound (told apart by their first bytes), a numpy array a tensor; the functions ``image``, ``audio``,
                ``text`` and ``tensor`` state the kind.
        """
        return self._invoke(calls.predict(content, **options), timeout_s)

    # --- feedback: durable when a method returns ----------------------------------------------------------------------

    def thumbs_up(
        self, subject: Subject, *, timeout_s: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> Acknowledgement:
        """Say that the answer was good."""
        return self.send_feedback(feedback.thumbs_up(subject, **options), timeout_s=timeout_s)

    def thumbs_down(
        self, subject: Subject, *, timeout_s: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> Acknowledgement:
        """Say that the answer was bad."""
        return self.send_feedback(feedback.thumbs_down(subject, **options), timeout_s=timeout_s)

    def rate(
        self, subject: Subject, rating: float, *, timeout_s: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> Acknowledgement:
        """Rate the answer in [0, 1], 1 being best."""
        return self.send_feedback(feedback.rate(subject, rating, **options), timeout_s=timeout_s)

    def correct(
        self, subject: Subject, action: str, *, timeout_s: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> Acknowledgement:
        """Name the action that would have been right."""
        return self.send_feedback(feedback.correct(subject, action, **options), timeout_s=timeout_s)

    def prefer(
        self,
        subject: Subject,
        preferred: str,
        rejected: str,
        *,
        timeout_s: float | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> Acknowledgement:
        """Say that for this content the action ``preferred`` is better than ``rejected``."""
        return self.send_feedback(feedback.prefer(subject, preferred, rejected, **options), timeout_s=timeout_s)

    def implicit(
        self,
        subject: Subject,
        kind: ImplicitKind,
        *,
        timeout_s: float | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> Acknowledgement:
        """Report what the user did after the answer."""
        return self.send_feedback(feedback.implicit(subject, kind, **options), timeout_s=timeout_s)

    def retract(
        self,
        subject: Subject,
        retracted: str = "",
        *,
        timeout_s: float | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> Acknowledgement:
        """Retract the feedback with the id ``retracted``; "": all of this user's feedback on the prediction."""
        return self.send_feedback(feedback.retract(subject, retracted, **options), timeout_s=timeout_s)

    def send_feedback(self, piece: Feedback, *, timeout_s: float | None = None) -> Acknowledgement:
        """Send feedback made with :mod:`plaudit.client.feedback`."""
        return self._invoke(calls.send_feedback(piece), timeout_s)

    def stream_feedback(
        self, pieces: Iterable[Feedback], *, timeout_s: float | None = None
    ) -> Iterator[Acknowledgement]:
        """Send many; answers come in their order. One that is refused has ``error`` set and does not end the stream.

        A thread of the channel reads ``pieces`` while the caller reads the answers.
        """
        call = calls.STREAM_FEEDBACK
        method: grpc.StreamStreamMultiCallable[Feedback, Any] = self._channel.stream_stream(
            call.method, Feedback.SerializeToString, call.response.FromString
        )
        return self._read(call, method(iter(pieces), timeout=timeout_s))

    def receipt(self, feedback_id: str, *, timeout_s: float | None = None) -> Receipt:
        """Receipt of a piece of feedback: its state on the way into a version."""
        return self._invoke(calls.receipt(feedback_id), timeout_s)

    # --- versions ----------------------------------------------------------------------------------------------------

    def versions(self, *, model: str = "", timeout_s: float | None = None) -> Versions:
        """Versions of a model, oldest first, and its rollout."""
        return self._invoke(calls.versions(model), timeout_s)

    def version(self, number: int, *, model: str = "", timeout_s: float | None = None) -> Version:
        """One version with its manifest and the report on its latest experiment."""
        return self._invoke(calls.version(number, model), timeout_s)

    def watch_versions(self, *, model: str = "", timeout_s: float | None = None) -> Iterator[Rollout]:
        """Present rollout at once, then every change, for as long as it is read."""
        call = calls.watch_versions(model)
        assert call.request is not None
        method: grpc.UnaryStreamMultiCallable[Any, Any] = self._channel.unary_stream(
            call.method, type(call.request).SerializeToString, call.response.FromString
        )
        return self._read(call, method(call.request, timeout=timeout_s))

    def promote(self, number: int, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> Rollout:
        """Make a version live."""
        return self._invoke(calls.promote(number, **options), timeout_s)

    def rollback(self, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> Rollout:
        """Make the previous version live again."""
        return self._invoke(calls.rollback(**options), timeout_s)

    def pin(self, number: int, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> Rollout:
        """Make a version live and keep it, whatever the learner publishes."""
        return self._invoke(calls.pin(number, **options), timeout_s)

    def unpin(self, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> Rollout:
        """Let the learner change what is live again."""
        return self._invoke(calls.pin(None, **options), timeout_s)

    def start_canary(
        self,
        number: int,
        share: float,
        *,
        shadow: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[ChangeOptions],
    ) -> Rollout:
        """Begin an experiment with a share of the users, in (0, 1); in the shadow, with a share of the requests."""
        return self._invoke(calls.start_canary(number, share, shadow=shadow, **options), timeout_s)

    def stop_canary(
        self, number: int | None = None, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]
    ) -> Rollout:
        """End the experiment of a version (None: of any); the live version serves all users again."""
        return self._invoke(calls.stop_canary(number, **options), timeout_s)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _invoke(self, call: Call[Result], timeout_s: float | None) -> Result:
        assert call.request is not None
        method: grpc.UnaryUnaryMultiCallable[Any, Any] = self._channel.unary_unary(
            call.method, type(call.request).SerializeToString, call.response.FromString
        )
        try:
            answer = method(
                call.request,
                timeout=self._timeout_s if timeout_s is None else timeout_s,
                metadata=self._admin_metadata if call.admin else None,
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
