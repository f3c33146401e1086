"""Places: never more than there are, given back whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.errors import InvalidInput, Overloaded
from plaudit.serving.engine.admission import Admission


def is_full(admission: Admission) -> bool:
    """Whether not one place is free."""
    try:
        with admission.places():
            return False
    except Overloaded:
        return True


def test_who_finds_no_place_is_refused_at_once_and_takes_none() -> None:
    admission = Admission("the queue", 3)
    with admission.places(2):
        with pytest.raises(Overloaded, match=r"the queue is full \(3 at once\)"), admission.places(2):
            pass
        with admission.places(1):
            assert is_full(admission)
    with admission.places(3):
        assert is_full(admission)


def test_who_asks_for_more_than_there_are_is_told_so() -> None:
    with pytest.raises(InvalidInput, match="holds 4 rows; one request may hold 3"), Admission("q", 3).places(4):
        pass


@given(asked=st.lists(st.integers(1, 4), max_size=20), fails=st.sets(st.integers(0, 19)))
def test_places_come_back_even_from_those_who_fail(asked: list[int], fails: set[int]) -> None:
    admission = Admission("q", 4)
    for number, count in enumerate(asked):
        try:
            with admission.places(count):
                assert is_full(admission) == (count == 4)
                if number in fails:
                    raise KeyError
        except KeyError:
            pass
        with admission.places(4):
            assert is_full(admission)
