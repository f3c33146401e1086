"""Ids, names and remarks from outside: bounded, and free of characters that act on what shows them.

An id is opaque, but it becomes a key of the learner's state, a column of a database and a cell on a terminal. No
PostgreSQL takes a NUL, an ESC moves a cursor, and U+202E turns the rest of a line round. Knows nothing about what an id
is the id of.
"""

from __future__ import annotations

import re
from typing import Final

from plaudit.core.errors import InvalidInput
from plaudit.core.limits import MAX_ACTOR_CHARACTERS, MAX_ID_CHARACTERS, MAX_REASON_CHARACTERS

_HARMFUL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls (C0, DEL, C1), marks and overrides of the direction of text, separators of lines, and lone surrogates."""
_SHOWN: Final = 20


def check_id(field: str, value: str) -> str:
    """``value`` unchanged; "" is no id. Raises InvalidInput naming ``field``."""
    return _checked(field, value, MAX_ID_CHARACTERS)


def check_given_id(field: str, value: str) -> str:
    """As :func:`check_id`, but there must be one."""
    if not value:
        raise InvalidInput(field, f"is empty; give 1 to {MAX_ID_CHARACTERS} characters, such as a UUID")
    return _checked(field, value, MAX_ID_CHARACTERS)


def check_actor(value: str) -> str:
    """Name of whoever changes something. Raises InvalidInput."""
    return _checked("actor", value, MAX_ACTOR_CHARACTERS)


def check_reason(value: str) -> str:
    """Reason for a change. Raises InvalidInput."""
    return _checked("reason", value, MAX_REASON_CHARACTERS)


def _checked(field: str, value: str, limit: int) -> str:
    if len(value) > limit:
        raise InvalidInput(field, f"{value[:_SHOWN]!r}… has {len(value)} characters; at most {limit} are taken")
    if not value.isprintable():  # the fast way to say that most are harmless
        found = _HARMFUL.search(value)
        if found:
            raise InvalidInput(
                field,
                f"{value[:_SHOWN]!r}{'…' * (len(value) > _SHOWN)} has the control character U+{ord(found[0]):04X} at "
                f"place {found.start()}; leave it out",
            )
    return value
