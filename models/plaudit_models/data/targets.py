"""Targets of rows: one action, several right ones, a number on a scale of actions, or a ranking.

Notation:
    n: rows, a: number of actions, r: actions of the longest ranking
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit_models.data.config import TargetKind
from plaudit_models.spec import ModelSpec

NO_ACTION: Final = -1


class InvalidTarget(ValueError):
    """Target that no action stands for; the message is the problem and the way out."""


@dataclass(frozen=True, slots=True)
class RowTarget:
    """Target of one row.

    Attributes:
        best: index of the right action, of the nearest one, or of the first of the ranking.
        shares: share of each right action; they add up to 1.
        ranking: indices, best first; () where the target is none.
    """

    best: int
    shares: Mapping[int, float]
    ranking: tuple[int, ...] = ()


class TargetReader:
    """Cells of the target column → targets.

    Args:
        labels: values of the cell → actions.

    Raises:
        InvalidTarget: the kind is ``number`` and the actions are none.
    """

    def __init__(self, spec: ModelSpec, kind: TargetKind, labels: Mapping[str, str]) -> None:
        self._spec, self._kind, self._labels = spec, kind, labels
        self._scale: list[tuple[float, int]] = []
        if kind == "number":
            try:
                self._scale = sorted((float(action), i) for i, action in enumerate(spec.actions))
            except ValueError as error:
                raise InvalidTarget(
                    f"data.target_kind: 'number' needs actions that are numbers ({error}); they are "
                    f"{_shown(spec.actions)}"
                ) from error

    def read(self, cell: str) -> RowTarget:
        """Target of a cell. Raises InvalidTarget."""
        if not cell.strip():
            raise InvalidTarget("is empty; every row needs a target")
        match self._kind:
            case "action":
                action = self._action(cell)
                return RowTarget(action, {action: 1.0})
            case "actions":
                several = list(dict.fromkeys(self._action(each) for each in _several(cell, "|")))
                return RowTarget(several[0], {action: 1.0 / len(several) for action in several})
            case "number":
                return self._number(cell)
            case "ranking":
                ranking = tuple(self._action(each) for each in _several(cell, ">"))
                if len(set(ranking)) < len(ranking):
                    raise InvalidTarget("has an action twice; each has one place in a ranking")
                return RowTarget(ranking[0], {ranking[0]: 1.0}, ranking)

    def _action(self, value: str) -> int:
        action = self._labels.get(value, value)
        if not self._spec.has_action(action):
            mapped = f", which data.labels calls {action!r}," if action != value else ""
            raise InvalidTarget(
                f"{value[:80]!r}{mapped} is not an action of {self._spec.name!r}; its actions are "
                f"{_shown(self._spec.actions)}: add it to model.actions, or say in data.labels which one it means"
            )
        return self._spec.action_index(action)

    def _number(self, cell: str) -> RowTarget:
        """Shares of the two actions that the number lies between, by its nearness ("two-hot"; Schrittwieser et al.
        2020, appendix F)."""
        try:
            value = float(cell)
        except ValueError:
            raise InvalidTarget(f"{cell[:80]!r} is not a number") from None
        lowest, highest = self._scale[0][0], self._scale[-1][0]
        if not (math.isfinite(value) and lowest <= value <= highest):
            raise InvalidTarget(
                f"{cell[:80]!r} is outside of the actions, {lowest:g} to {highest:g}; add one beyond it"
            )
        above = next(place for place, (number, _) in enumerate(self._scale) if number >= value)
        upper, upper_action = self._scale[above]
        if upper == value:
            return RowTarget(upper_action, {upper_action: 1.0})
        lower, lower_action = self._scale[above - 1]
        share = (value - lower) / (upper - lower)
        return RowTarget(
            upper_action if share >= 0.5 else lower_action, {lower_action: 1.0 - share, upper_action: share}
        )


def target_arrays(
    targets: Sequence[RowTarget], n_actions: int, kind: TargetKind
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None, npt.NDArray[np.int64] | None]:
    """Best action int64 ``[n]``; shares float32 ``[n, a]`` of several; rankings int64 ``[n, r]``, −1 behind the end.

    The last two are None where the kind of target has none.
    """
    best = np.array([each.best for each in targets], np.int64)
    shares = rankings = None
    if kind in ("actions", "number"):
        shares = np.zeros((len(targets), n_actions), np.float32)
        for i, each in enumerate(targets):
            for action, share in each.shares.items():
                shares[i, action] = share
    if kind == "ranking":
        longest = max((len(each.ranking) for each in targets), default=1)
        rankings = np.full((len(targets), longest), NO_ACTION, np.int64)
        for i, each in enumerate(targets):
            rankings[i, : len(each.ranking)] = each.ranking
    return best, shares, rankings


def _several(cell: str, separator: str) -> list[str]:
    if cell.lstrip().startswith("["):
        try:
            listed = json.loads(cell)
        except ValueError as error:
            raise InvalidTarget(f"is not a JSON list ({error})") from error
        values = [str(each) for each in listed]
    else:
        values = [each.strip() for each in cell.split(separator)]
    if not values or not all(values):
        raise InvalidTarget(f"has an empty place; write them with {separator} between, or as a JSON list")
    return values


def _shown(actions: Sequence[str]) -> str:
    return str(list(actions)) if len(actions) <= 20 else f"{list(actions[:20])} and {len(actions) - 20} more"
