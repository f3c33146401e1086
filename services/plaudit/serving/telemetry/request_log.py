"""A line in the service's own log for each decision and each piece of feedback, once durable, and for each refusal.

Lines name requests, predictions, versions and traces by their ids. They hold no content, no answer and no user id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog

from plaudit.core.errors import PlauditError
from plaudit.core.events import Decision, Event, Feedback
from plaudit.core.ports.log import Appended, AppendOutcome
from plaudit.core.prediction_id import PredictionIds
from plaudit.serving.telemetry.appends import Append

_IDS: Final = ("request_id", "id", "prediction_id", "feedback_id")
"""Fields of requests that are logged."""
_TRACE_ID: Final = slice(3, 35)
"""Where a traceparent has its trace id."""

logger = structlog.get_logger(__name__)


def logged_append(append: Append, ids: PredictionIds) -> Append:
    """``append``, which then writes a line for each decision and each piece of feedback that it made durable.

    Args:
        ids: read the version out of prediction ids.
    """

    def append_and_log(events: Sequence[Event]) -> Sequence[AppendOutcome]:
        appended = append(events)
        for event, each in zip(events, appended, strict=True):
            if not isinstance(each, Appended):
                continue
            match event:
                case Decision():
                    logger.info(
                        "decided",
                        model=event.model,
                        version=event.version,
                        role=str(event.role),
                        request_id=event.request_id,
                        prediction_id=event.prediction_id,
                        **_trace(event.traceparent),
                    )
                case Feedback():
                    logger.info(
                        "feedback",
                        kind=type(event.signal).__name__.lower(),
                        feedback_id=event.feedback_id,
                        prediction_id=event.prediction_id,
                        duplicate=each.duplicate,
                        **_predicted_by(event, ids),
                        **_trace(event.traceparent),
                    )
        return appended

    return append_and_log


def ids_of(request: Any) -> dict[str, str]:
    """Ids that a request's message holds, by name."""
    named = {name: getattr(request, name, "") for name in _IDS}
    return {"request_id" if name == "id" else name: str(value)[:128] for name, value in named.items() if value}


def log_refusal(method: str, code: str, error: Exception, request: Any) -> None:
    """Write a line that names the field that was wrong, but not what was in it."""
    field = getattr(error, "field", None)
    logger.warning(
        "refused",
        method=method,
        code=code,
        problem=type(error).__name__,
        **({} if field is None else {"field": str(field)[:80]}),
        **ids_of(request),
    )


def _predicted_by(feedback: Feedback, ids: PredictionIds) -> Mapping[str, str | int]:
    """Model and version of the prediction that the feedback is about."""
    try:
        prediction = ids.check(feedback.prediction_id, now_s=feedback.time_s)
    except PlauditError:  # it was taken a moment before it expired
        return {}
    return {"model": prediction.model, "version": prediction.version}


def _trace(traceparent: str) -> Mapping[str, str]:
    return {"trace_id": traceparent[_TRACE_ID]} if traceparent else {}
