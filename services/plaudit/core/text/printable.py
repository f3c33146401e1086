"""Text from outside, made harmless for a terminal: what would move its cursor or turn its lines is spelled out."""

from __future__ import annotations

import re
from typing import Final

_ACTING: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but tab and line feed, marks and overrides of the direction of text, separators of lines, surrogates."""


def printable(text: str, *, one_line: bool = False) -> str:
    """The text with an escape such as ``\\x1b`` in place of each character that acts on what shows it.

    Args:
        one_line: tabs and line feeds are spelled out too.
    """
    if text.isprintable():
        return text
    spelled = _ACTING.sub(_spelled, text)
    return spelled.replace("\n", "\\n").replace("\t", "\\t") if one_line else spelled


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("ascii", "backslashreplace").decode() if ord(found[0]) > 0x7F else repr(found[0])[1:-1]
