"""A decision's context as one trunk sees it: features, and the actions that it could pick from.

Knows nothing about stores, versions or rewards.

Notation:
    n: contexts, d: embedding size, a: number of fixed actions, k: actions of one context
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plaudit.core.events import Features
from plaudit.core.experience import Label
from plaudit_models.bandit.dynamic_actions import ActionList
from plaudit_models.bandit.policy import Bool

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Context of one decision.

    Attributes:
        features: embedding ``[d]`` and base logits ``[k]``.
        actions: in the order of the base logits: the model's own, or the ids that the request listed.
        allowed: actions that the request allowed; empty means all.
        vectors: of the texts of dynamic actions, ``[k, d]``; None where the actions are the model's own.
    """

    features: Features
    actions: Sequence[str]
    allowed: Sequence[str] = ()
    vectors: Floats32 | None = None

    @property
    def dynamic(self) -> bool:
        """Whether the actions are those of the request."""
        return self.vectors is not None

    @property
    def action_list(self) -> ActionList:
        """Dynamic actions as their head sees them. Raises ValueError if the actions are the model's own."""
        if self.vectors is None:
            raise ValueError("a context of fixed actions has no action list")
        return ActionList(self.features.embedding, self.vectors, self.features.base_logits)

    @property
    def slice(self) -> str:
        """Name of the contexts with the same base answer."""
        answer = self.actions[int(self.features.base_logits.argmax())]
        return f"dynamic: {answer}" if self.dynamic else answer

    def index(self, action: str) -> int | None:
        """Place of an action in ``actions``; None if it is not one of them."""
        return self.actions.index(action) if action in self.actions else None


@dataclass(frozen=True, slots=True, eq=False)
class LabelledContext:
    """A context and what users said about its actions."""

    context: Context
    label: Label


def stack(rows: Sequence[Features]) -> tuple[Floats32, Floats32]:
    """Embeddings ``[n, d]`` and base logits ``[n, a]``; n ≥ 1. Raises ValueError if their lengths differ."""
    return _stacked([row.embedding for row in rows]), _stacked([row.base_logits for row in rows])


def _stacked(rows: Sequence[Floats32]) -> Floats32:
    """As ``np.stack``, which takes several times as long for many short rows."""
    if len({len(row) for row in rows}) != 1:
        raise ValueError("rows of different lengths cannot be stacked")
    return np.concatenate(rows).reshape(len(rows), -1)


def allowed_mask(actions: Sequence[str], allowed: Sequence[Sequence[str]]) -> Bool:
    """True where a fixed action might be picked, ``[n, a]``.

    Args:
        actions: the action set.
        allowed: actions that each request allowed; empty means all.
    """
    mask = np.ones((len(allowed), len(actions)), np.bool_)
    for place, of_request in enumerate(allowed):
        if of_request:
            mask[place] = [action in of_request for action in actions]
    return mask
