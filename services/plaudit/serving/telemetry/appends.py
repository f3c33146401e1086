"""Spans around what is appended to the event log. Knows nothing about the log but how to append."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plaudit.core.events import Decision, Event, Feedback
from plaudit.core.ports.log import AppendOutcome
from plaudit.core.tracing import Tracing

Append = Callable[[Sequence[Event]], Sequence[AppendOutcome]]
"""The method ``append`` of an event log, as a function that others can be put around."""


def traced_append(append: Append, tracing: Tracing) -> Append:
    """``append`` inside a span that links to the calls which the events are of."""

    def append_in_span(events: Sequence[Event]) -> Sequence[AppendOutcome]:
        links = [event.traceparent for event in events if isinstance(event, Decision | Feedback)]
        with tracing.span("append", links=links, attributes={"plaudit.events": len(events)}):
            return append(events)

    return append_in_span
