"""Payloads of events, and the refusal of one that a log cannot hold: by its own id, and of no other event."""

from __future__ import annotations

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Event, event_id_of
from plaudit.core.limits import MAX_SHOWN_CHARACTERS
from plaudit.core.wire import encode_event


def payload_of(event: Event) -> bytes | InvalidInput:
    """Durable payload of an event, or the reason why it has none."""
    try:
        return encode_event(event)
    except (ValueError, OverflowError, TypeError) as error:  # such as a time beyond 64 bits, or a lone surrogate
        return refusal(event, f"cannot be written: {str(error)[:200]}")


def refusal(event: Event, problem: str) -> InvalidInput:
    return InvalidInput(f"{type(event).__name__.lower()} {event_id_of(event)[:MAX_SHOWN_CHARACTERS]!r}", problem)
