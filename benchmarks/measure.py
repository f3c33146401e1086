"""What a benchmark reports: named numbers, most with a goal. Knows nothing about how they were measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of the benchmark's plot; lines of one benchmark share their axes' names.

    Attributes:
        x: of the points.
        y: of the points, as many.
        x_name: what x is, with its unit.
        y_name: what y is, with its unit.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    x_name: str
    y_name: str


@dataclass(frozen=True, slots=True)
class Measure:
    """One number.

    Attributes:
        name: unique within its benchmark.
        value: as measured; NaN where there was nothing to measure, which reaches no goal.
        goal: None where the number is told for comparison only.
        direction: whether the value must be at least or at most the goal.
        note: what the number stands on: shuffles, peers, spread.
        curve: how it came about, for the plot.
    """

    name: str
    value: float
    goal: float | None = None
    direction: Literal["at_least", "at_most"] = "at_least"
    note: str = ""
    curve: Curve | None = None

    @property
    def reached(self) -> bool:
        """Whether the goal is reached; True where there is none."""
        if self.goal is None:
            return True
        return bool(self.value >= self.goal if self.direction == "at_least" else self.value <= self.goal)

    def shortfall(self) -> str:
        """One line that says what was measured and what was wanted."""
        return f"{self.name}: {self.value:.4g} is not {self.direction.replace('_', ' ')} {self.goal:.4g}"
