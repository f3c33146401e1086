"""Builds feedback. Sends none: hand it to ``send_feedback`` or ``stream_feedback``.

Each piece gets a fresh ``feedback_id`` unless one is given. The id is the idempotency key: sending the same piece again
(after a lost connection, say) records nothing new.
"""

from __future__ import annotations

import uuid
from typing import Final, Literal, TypedDict, Unpack

from plaudit.client.errors import invalid
from plaudit.client.results import Prediction
from plaudit.v1 import feedback_pb2

Feedback = feedback_pb2.SendFeedbackRequest
Subject = Prediction | str
"""What feedback is about: what ``predict`` gave, or its prediction id."""

ImplicitKind = Literal["rephrased", "interrupted", "accepted"]
_IMPLICIT: Final = {
    "rephrased": feedback_pb2.IMPLICIT_KIND_REPHRASED,
    "interrupted": feedback_pb2.IMPLICIT_KIND_INTERRUPTED,
    "accepted": feedback_pb2.IMPLICIT_KIND_ACCEPTED,
}


class FeedbackOptions(TypedDict, total=False):
    """What every kind of feedback takes by keyword.

    Attributes:
        user_id: who says it; by default who asked, where that is known.
        feedback_id: the idempotency key; by default a fresh UUID.
    """

    user_id: str
    feedback_id: str


def thumbs_up(subject: Subject, **options: Unpack[FeedbackOptions]) -> Feedback:
    piece = _about(subject, **options)
    piece.thumb = feedback_pb2.THUMB_UP
    return piece


def thumbs_down(subject: Subject, **options: Unpack[FeedbackOptions]) -> Feedback:
    piece = _about(subject, **options)
    piece.thumb = feedback_pb2.THUMB_DOWN
    return piece


def rate(subject: Subject, rating: float, **options: Unpack[FeedbackOptions]) -> Feedback:
    """How good the answer was, in [0, 1]."""
    piece = _about(subject, **options)
    piece.rating = rating
    return piece


def correct(subject: Subject, action: str, **options: Unpack[FeedbackOptions]) -> Feedback:
    """``action`` would have been right."""
    piece = _about(subject, **options)
    piece.correction = action
    return piece


def prefer(subject: Subject, preferred: str, rejected: str, **options: Unpack[FeedbackOptions]) -> Feedback:
    """For this content the action ``preferred`` is better than ``rejected``."""
    piece = _about(subject, **options)
    piece.preference.preferred = preferred
    piece.preference.rejected = rejected
    return piece


def implicit(subject: Subject, kind: ImplicitKind, **options: Unpack[FeedbackOptions]) -> Feedback:
    """What the user did rather than said."""
    if kind not in _IMPLICIT:
        raise invalid("implicit.kind", f"{kind!r} is not one of {sorted(_IMPLICIT)}")
    piece = _about(subject, **options)
    piece.implicit.kind = _IMPLICIT[kind]
    return piece


def retract(subject: Subject, retracted: str = "", **options: Unpack[FeedbackOptions]) -> Feedback:
    """Take the feedback with id ``retracted`` back; "" takes back all of this user's feedback on the prediction."""
    piece = _about(subject, **options)
    piece.retract.feedback_id = retracted
    piece.retract.SetInParent()  # an empty message is still a choice
    return piece


def _about(subject: Subject, *, user_id: str | None = None, feedback_id: str | None = None) -> Feedback:
    if isinstance(subject, Prediction):
        prediction_id, asked_by = subject.prediction_id, subject.user_id
    else:
        prediction_id, asked_by = subject, ""
    return Feedback(
        feedback_id=str(uuid.uuid4()) if feedback_id is None else feedback_id,
        prediction_id=prediction_id,
        user_id=asked_by if user_id is None else user_id,
    )
