"""Problems of a data set, each with its place: file, row, column, value, and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SHOWN_CHARACTERS: Final = 80


class InvalidData(ValueError):
    """Wrong data folder; the message names the file, and the row, column and value where there is one."""


class UnusableItem(ValueError):
    """Reference that leads to nothing usable; the message is the problem and the way out."""


@dataclass(frozen=True, slots=True)
class DataProblem:
    """Problem of one cell, or of a row as a whole.

    Attributes:
        row: index of the row in the data set.
        place: file and line or row, for people.
        column: "" where the row as a whole is meant.
        value: the cell, or "".
        problem: what is wrong, and the way out.
    """

    row: int
    place: str
    column: str
    value: str
    problem: str

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        value = f"{self.value[:_SHOWN_CHARACTERS]!r}" if self.column else ""
        separator = ": " if self.problem and not self.problem.startswith("is ") else " "
        return f"{self.place}{column}: {value}{separator if value else ''}{self.problem}"
