"""Findings of the doctor, each on one thing that it examined."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    NOTE = "note"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: thing that was examined.
        state: ERROR alone makes the doctor's exit code 1.
        message: state of it, or what is wrong.
        fix: way out; "" if nothing need be done.
    """

    subject: str
    state: State
    message: str
    fix: str = ""
