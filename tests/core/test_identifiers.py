"""What is taken as an id, a name or a reason, and what an error says of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.errors import InvalidInput
from plaudit.core.text.identifiers import check_actor, check_given_id, check_id, check_reason

HARMFUL = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x061C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    0xD800,
    0xDFFF,
]


@pytest.mark.parametrize(
    "value", ["", "ada", "x" * 128, "Ada Lovelace", "ада", "عادا", "می‌خواهم", "👩‍🔬", "a\u00a0b", "0" * 128, "\ue000"]
)
def test_an_id_of_any_script_is_taken(value: str) -> None:
    assert check_id("user_id", value) == value


@pytest.mark.parametrize("code", HARMFUL, ids="U+{:04X}".format)
def test_a_character_that_acts_on_what_shows_it_is_refused_with_its_place(code: int) -> None:
    """As escapes in the names of packages and users: https://github.com/rust-secure-code/cargo-supply-chain/issues/52."""
    with pytest.raises(InvalidInput, match=rf"user_id: 'ad.*U\+{code:04X} at place 2"):
        check_id("user_id", f"ad{chr(code)}a")


@pytest.mark.parametrize("check", [check_actor, check_reason, lambda value: check_given_id("feedback_id", value)])
def test_no_text_of_the_kind_may_have_one(check: object) -> None:
    assert callable(check)
    with pytest.raises(InvalidInput, match=r"U\+001B"):
        check("\x1b[2J")


@pytest.mark.parametrize(("check", "most"), [(check_actor, 128), (check_reason, 1_024)])
def test_texts_of_operators_are_bounded(check: object, most: int) -> None:
    assert callable(check)
    assert check("x" * most) == "x" * most
    with pytest.raises(InvalidInput, match=f"has {most + 1} characters; at most {most} are taken"):
        check("x" * (most + 1))


def test_an_id_that_must_be_there_is_not_empty() -> None:
    with pytest.raises(InvalidInput, match="feedback_id: is empty; give 1 to 128 characters"):
        check_given_id("feedback_id", "")


@given(st.text(st.characters(codec="utf-8")))
def test_a_refusal_is_short_and_can_be_printed(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_id("user_id", value + "x" * 129)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
