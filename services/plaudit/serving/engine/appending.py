"""Events appended together, each with an outcome of its own: what one of them suffers from never fails the others."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from plaudit.core.errors import LogUnavailable
from plaudit.core.events import Event
from plaudit.core.ports.log import Appended
from plaudit.serving.telemetry.appends import Append

logger = structlog.get_logger(__name__)


def append_each(append: Append, events: Sequence[Event]) -> Sequence[Appended | Exception]:
    """Outcome of every event, in their order. A failure that nobody expects is looked for by halves.

    An outcome is InvalidInput where the log does not take the event, and LogUnavailable where it is not known to be
    durable.
    """
    try:
        return append(events)
    except LogUnavailable as error:
        return [error] * len(events)
    except Exception as error:
        if len(events) == 1:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
            logger.error("event_cannot_be_appended", kind=type(events[0]).__name__.lower(), problem=problem)
            return [error]
        middle = len(events) // 2
        return [*append_each(append, events[:middle]), *append_each(append, events[middle:])]
