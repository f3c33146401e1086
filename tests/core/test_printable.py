"""Text that is shown on a terminal does not act on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.text.printable import printable

ACTING = {chr(code) for code in [*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2028, 0xD800]}


@given(st.text(st.characters() | st.sampled_from(sorted(ACTING))))
def test_nothing_that_is_left_acts(text: str) -> None:
    shown = printable(text)
    assert not ACTING & set(shown)
    shown.encode()
    assert "\n" not in printable(text, one_line=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ada", "ada"),
        ("naïve 👩‍🔬", "naïve 👩‍🔬"),
        ("a\x1b[2Kb", "a\\x1b[2Kb"),
        ("a\rb", "a\\rb"),
        ("a\u202eb", "a\\u202eb"),
        ("caf\udce9", "caf\\udce9"),
        ("a\nb\tc", "a\nb\tc"),
    ],
)
def test_what_is_shown_instead(text: str, shown: str) -> None:
    assert printable(text) == shown
