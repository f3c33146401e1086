"""The log's own time: it follows events, and no clock that jumps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.limits import LOG_GAP_PROVEN_S, LOG_GAP_S
from plaudit.core.log_time import LogTime, advanced

NOW_S = 1_700_000_000.0
FAR_S = NOW_S + 1e9


def hourly(start_s: float, hours: int) -> list[float]:
    return [start_s + 3_600.0 * hour for hour in range(hours + 1)]


def test_it_begins_once_the_log_spans_a_day() -> None:
    assert advanced(LogTime(), hourly(NOW_S, 23), FAR_S).time_s == 0.0
    assert advanced(LogTime(), hourly(NOW_S, 25), FAR_S).time_s == NOW_S + 25 * 3_600.0


def test_it_never_goes_back() -> None:
    assert advanced(LogTime(NOW_S), [NOW_S - 5, NOW_S - 1e8], FAR_S) == LogTime(NOW_S)


def test_a_gap_is_believed_once_its_far_side_is_proven() -> None:
    far_s = NOW_S + 30 * LOG_GAP_PROVEN_S
    first = advanced(LogTime(NOW_S), [far_s], FAR_S)
    assert first == LogTime(NOW_S, far_s)
    assert advanced(first, [far_s + LOG_GAP_PROVEN_S], FAR_S) == LogTime(far_s + LOG_GAP_PROVEN_S)


def test_an_event_on_the_near_side_says_that_the_far_side_was_an_error() -> None:
    ahead = advanced(LogTime(NOW_S), [NOW_S + 1e7], FAR_S)
    assert advanced(ahead, [NOW_S + 1.0, NOW_S + 1e7 + LOG_GAP_PROVEN_S], FAR_S).time_s == NOW_S + 1.0


def test_what_is_ahead_of_the_clock_tells_nothing() -> None:
    """https://github.com/redpanda-data/redpanda/issues/9820: one time in the far future stopped retention for good."""
    assert advanced(LogTime(NOW_S), [NOW_S + 1e8, NOW_S + 2e8], NOW_S) == LogTime(NOW_S)


@given(st.lists(st.floats(NOW_S + 2 * LOG_GAP_S, NOW_S + LOG_GAP_PROVEN_S), max_size=50))
def test_no_error_of_less_than_a_day_moves_it(wrong: list[float]) -> None:
    assert advanced(LogTime(NOW_S), [*wrong, NOW_S + 1.0], FAR_S).time_s == NOW_S + 1.0
