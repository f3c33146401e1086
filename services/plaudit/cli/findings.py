"""What the doctor says of one thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    GOOD = "good"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        state: BAD alone makes the doctor's exit code 1.
        found: what is there.
        mend: what to do about it; "" if nothing need be done.
    """

    what: str
    state: State
    found: str
    mend: str = ""
