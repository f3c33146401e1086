"""Time as the log tells it: it goes on with the times of events, and never by a jump of somebody's clock.

A gap in the times of events is believed once events on its far side have spanned hours: a clock that was wrong for
seconds, or one record from the future, moves nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from plaudit.core.limits import LOG_GAP_PROVEN_S, LOG_GAP_S


@dataclass(frozen=True, slots=True)
class LogTime:
    """Attributes:
    time_s: UTC seconds that the log has reached; 0 before it tells.
    gap_to_s: first time on the far side of a gap that is not believed yet; 0: there is none.
    """

    time_s: float = 0.0
    gap_to_s: float = 0.0


def advanced(log_time: LogTime, event_times_s: Iterable[float], clock_s: float) -> LogTime:
    """The log's time after these events, in the order in which they were read.

    Args:
        clock_s: of the reader; events that are further ahead of it than a gap may be tell nothing.
    """
    for time_s in event_times_s:
        if time_s <= log_time.time_s or time_s > clock_s + LOG_GAP_S:
            continue
        if time_s <= log_time.time_s + LOG_GAP_S:
            log_time = LogTime(time_s)
        elif not log_time.gap_to_s or time_s < log_time.gap_to_s:
            log_time = replace(log_time, gap_to_s=time_s)
        elif time_s >= log_time.gap_to_s + LOG_GAP_PROVEN_S:
            log_time = LogTime(time_s)
    return log_time
