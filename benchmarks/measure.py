"""Results of a benchmark: named numbers, most with a goal. Knows nothing about how they were measured."""

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
        value: the number, in ``unit``; NaN where there was nothing to measure, which reaches no goal.
        goal: None where the number is for comparison only.
        direction: whether the value must be at least or at most the goal.
        note: basis of the number: shuffles, peers, spread.
        curve: for the plot, None without one.
        unit: such as ms, 1/s or %; empty for ratios, shares and counts.
    """

    name: str
    value: float
    goal: float | None = None
    direction: Literal["at_least", "at_most"] = "at_least"
    note: str = ""
    curve: Curve | None = None
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the goal is reached; True where there is none."""
        if self.goal is None:
            return True
        return bool(self.value >= self.goal if self.direction == "at_least" else self.value <= self.goal)

    @property
    def goal_text(self) -> str:
        """Goal as text, such as "≥ 0.9"; empty where there is none."""
        return "" if self.goal is None else f"{'≥' if self.direction == 'at_least' else '≤'} {self.goal:.4g}"

    def shortfall(self) -> str:
        """Measured value and missed goal, in one line."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name}: {self.value:.4g}{unit} is not {self.goal_text}"
