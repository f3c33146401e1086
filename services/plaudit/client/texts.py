"""Strings that can be sent: a Python string may hold lone surrogates, which no UTF-8 has and so no message."""

from __future__ import annotations

from typing import TypeVar

from plaudit.client.errors import invalid

Text = TypeVar("Text")


def sendable(field: str, value: Text) -> Text:
    """``value`` unchanged. Raises ClientError naming the field and the place of what is no text.

    Command-line arguments and file names that are not UTF-8, and JSON with half a character, bring such strings.
    """
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(value[error.start]):04X} at place {error.start}"
            raise invalid(field, f"is not UTF-8: it has the lone surrogate {found}") from None
    return value


def spelled(name: str) -> str:
    """A name for the path of a field in an error, whatever it holds."""
    return name[:80].encode("ascii", "backslashreplace").decode() if not name.isprintable() else name[:80]
