"""Feedback as messages, to be sent with ``send_feedback`` or ``stream_feedback``.

Each gets a fresh ``feedback_id`` unless one is given. The id is the idempotency key: sending the same feedback again,
such as after a lost connection, records nothing new.
"""

from __future__ import annotations

import uuid
from typing import Final, Literal, TypedDict, Unpack

from plaudit.client.errors import invalid
from plaudit.client.results import Prediction
from plaudit.client.texts import sendable
from plaudit.v1 import feedback_pb2

Feedback = feedback_pb2.SendFeedbackRequest
Subject = Prediction | str
"""The prediction that feedback refers to: the result of ``predict``, or its prediction id."""

ImplicitKind = Literal["rephrased", "interrupted", "accepted"]
_IMPLICIT: Final = {
    "rephrased": feedback_pb2.IMPLICIT_KIND_REPHRASED,
    "interrupted": feedback_pb2.IMPLICIT_KIND_INTERRUPTED,
    "accepted": feedback_pb2.IMPLICIT_KIND_ACCEPTED,
}


class FeedbackOptions(TypedDict, total=False):
    """Keyword arguments of every kind of feedback.

    Attributes:
        user_id: user whose feedback it is; by default the user of the prediction, where that is known.
        feedback_id: idempotency key; by default a fresh UUID.
    """

    user_id: str
    feedback_id: str


def thumbs_up(subject: Subject, **options: Unpack[FeedbackOptions]) -> Feedback:
    """Thumb up: the answer was good."""
    return _about(subject, Feedback(thumb=feedback_pb2.THUMB_UP), **options)


def thumbs_down(subject: Subject, **options: Unpack[FeedbackOptions]) -> Feedback:
    """Thumb down: the answer was bad."""
    return _about(subject, Feedback(thumb=feedback_pb2.THUMB_DOWN), **options)


def rate(subject: Subject, rating: float, **options: Unpack[FeedbackOptions]) -> Feedback:
    """Rating of the answer in [0, 1], 1 being best."""
    return _about(subject, Feedback(rating=rating), **options)


def correct(subject: Subject, action: str, **options: Unpack[FeedbackOptions]) -> Feedback:
    """Correction: ``action`` would have been right."""
    return _about(subject, Feedback(correction=sendable("correction", action)), **options)


def prefer(subject: Subject, preferred: str, rejected: str, **options: Unpack[FeedbackOptions]) -> Feedback:
    """Preference: for this content the action ``preferred`` is better than ``rejected``."""
    preference = feedback_pb2.Preference(
        preferred=sendable("preference.preferred", preferred), rejected=sendable("preference.rejected", rejected)
    )
    return _about(subject, Feedback(preference=preference), **options)


def implicit(subject: Subject, kind: ImplicitKind, **options: Unpack[FeedbackOptions]) -> Feedback:
    """Implicit signal: what the user did after the answer."""
    if kind not in _IMPLICIT:
        raise invalid("implicit.kind", f"{kind!r} is not one of {sorted(_IMPLICIT)}")
    return _about(subject, Feedback(implicit=feedback_pb2.Implicit(kind=_IMPLICIT[kind])), **options)


def retract(subject: Subject, retracted: str = "", **options: Unpack[FeedbackOptions]) -> Feedback:
    """Retraction of the feedback with the id ``retracted``; "": of all this user's feedback on the prediction."""
    return _about(
        subject,
        Feedback(retract=feedback_pb2.Retract(feedback_id=sendable("retract.feedback_id", retracted))),
        **options,
    )


def _about(
    subject: Subject, piece: Feedback, *, user_id: str | None = None, feedback_id: str | None = None
) -> Feedback:
    """``piece`` with its subject, user and id."""
    if isinstance(subject, Prediction):
        piece.prediction_id, piece.user_id = subject.prediction_id, subject.user_id
    else:
        piece.prediction_id = sendable("prediction_id", subject)
    if user_id is not None:
        piece.user_id = sendable("user_id", user_id)
    piece.feedback_id = str(uuid.uuid4()) if feedback_id is None else sendable("feedback_id", feedback_id)
    return piece
