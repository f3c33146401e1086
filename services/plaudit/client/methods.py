# mypy: disable-error-code="no-any-return"
# A type parameter cannot say "a result, or a coroutine of it", so that _invoke returns Any here.
"""Methods of both clients, written once: each returns a result from one client, and a coroutine of it from the other.

A client names what its methods return as type parameters, and says in ``_invoke`` how it waits. Streams, which it reads
in its own way, are methods of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from plaudit.client import calls, feedback
from plaudit.client.calls import Call, ChangeOptions, PredictOptions
from plaudit.client.feedback import Feedback, FeedbackOptions, ImplicitKind, Subject

if TYPE_CHECKING:
    from plaudit.client.content import Part

PredictionT = TypeVar("PredictionT")
AcknowledgementT = TypeVar("AcknowledgementT")
ReceiptT = TypeVar("ReceiptT")
VersionsT = TypeVar("VersionsT")
VersionT = TypeVar("VersionT")
RolloutT = TypeVar("RolloutT")


class ClientMethods(ABC, Generic[PredictionT, AcknowledgementT, ReceiptT, VersionsT, VersionT, RolloutT]):
    """Methods with one request and one answer; arguments and errors are those of :class:`~plaudit.client.Client`."""

    @abstractmethod
    def _invoke(self, call: Call[Any], timeout_s: float | None) -> Any:
        """Result of the call, or a coroutine of it."""

    # --- predictions -------------------------------------------------------------------------------------------------

    def predict(
        self, content: Mapping[str, Part], *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> PredictionT:
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
    ) -> AcknowledgementT:
        """Say that the answer was good."""
        return self.send_feedback(feedback.thumbs_up(subject, **options), timeout_s=timeout_s)

    def thumbs_down(
        self, subject: Subject, *, timeout_s: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> AcknowledgementT:
        """Say that the answer was bad."""
        return self.send_feedback(feedback.thumbs_down(subject, **options), timeout_s=timeout_s)

    def rate(
        self, subject: Subject, rating: float, *, timeout_s: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> AcknowledgementT:
        """Rate the answer in [0, 1], 1 being best."""
        return self.send_feedback(feedback.rate(subject, rating, **options), timeout_s=timeout_s)

    def correct(
        self, subject: Subject, action: str, *, timeout_s: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> AcknowledgementT:
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
    ) -> AcknowledgementT:
        """Say that for this content the action ``preferred`` is better than ``rejected``."""
        return self.send_feedback(feedback.prefer(subject, preferred, rejected, **options), timeout_s=timeout_s)

    def implicit(
        self,
        subject: Subject,
        kind: ImplicitKind,
        *,
        timeout_s: float | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> AcknowledgementT:
        """Report what the user did after the answer."""
        return self.send_feedback(feedback.implicit(subject, kind, **options), timeout_s=timeout_s)

    def retract(
        self,
        subject: Subject,
        retracted: str = "",
        *,
        timeout_s: float | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> AcknowledgementT:
        """Retract the feedback with the id ``retracted``; "": all of this user's feedback on the prediction."""
        return self.send_feedback(feedback.retract(subject, retracted, **options), timeout_s=timeout_s)

    def send_feedback(self, piece: Feedback, *, timeout_s: float | None = None) -> AcknowledgementT:
        """Send feedback made with :mod:`plaudit.client.feedback`."""
        return self._invoke(calls.send_feedback(piece), timeout_s)

    def receipt(self, feedback_id: str, *, timeout_s: float | None = None) -> ReceiptT:
        """Receipt of a piece of feedback: its state on the way into a version."""
        return self._invoke(calls.receipt(feedback_id), timeout_s)

    # --- versions ----------------------------------------------------------------------------------------------------

    def versions(self, *, model: str = "", timeout_s: float | None = None) -> VersionsT:
        """Versions of a model, oldest first, and its rollout."""
        return self._invoke(calls.versions(model), timeout_s)

    def version(self, number: int, *, model: str = "", timeout_s: float | None = None) -> VersionT:
        """One version with its manifest and the report on its latest experiment."""
        return self._invoke(calls.version(number, model), timeout_s)

    def promote(self, number: int, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> RolloutT:
        """Make a version live."""
        return self._invoke(calls.promote(number, **options), timeout_s)

    def rollback(self, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> RolloutT:
        """Make the previous version live again."""
        return self._invoke(calls.rollback(**options), timeout_s)

    def pin(self, number: int, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> RolloutT:
        """Make a version live and keep it, whatever the learner publishes."""
        return self._invoke(calls.pin(number, **options), timeout_s)

    def unpin(self, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]) -> RolloutT:
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
    ) -> RolloutT:
        """Begin an experiment with a share of the users, in (0, 1); in the shadow, with a share of the requests."""
        return self._invoke(calls.start_canary(number, share, shadow=shadow, **options), timeout_s)

    def stop_canary(
        self, number: int | None = None, *, timeout_s: float | None = None, **options: Unpack[ChangeOptions]
    ) -> RolloutT:
        """End the experiment of a version (None: of any); the live version serves all users again."""
        return self._invoke(calls.stop_canary(number, **options), timeout_s)
