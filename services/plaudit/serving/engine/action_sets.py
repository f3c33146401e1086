"""The actions that one request is answered with one of, behind one interface: fixed ones here, dynamic ones beside.

Notation:
    b: batch size, d: embedding size, a: number of actions of the set
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from typing import ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt

from plaudit.core.errors import InvalidInput
from plaudit.core.ports.runtime import ServableModel
from plaudit_models.bandit.policy import Bool, Float32
from plaudit_models.spec import ModelSpec

Scores = npt.NDArray[np.floating]


class ActionSet(Protocol):
    """What one request is answered with one of, and how a version scores it."""

    @property
    def ids(self) -> Sequence[str]:
        """``[a]``, what answers call the actions."""
        ...

    @property
    def allowed(self) -> Bool:
        """``[a]``, True where the action may be picked; at least one."""
        ...

    @property
    def scored_with(self) -> Hashable:
        """Requests of one version whose values are equal are scored in one call of :meth:`score`."""
        ...

    def on(self, model: ServableModel) -> ActionSet:
        """What another version is asked to pick from in the same request. Raises ValueError if it has nothing of it."""
        ...

    def score(self, model: ServableModel, embedding: Float32, base_logits: Float32) -> tuple[Float32, Scores]:
        """Base logits ``[b, a]`` and scores ``[b, a]`` (unnormalised log-probabilities) of this set's actions.

        Args:
            embedding: ``[b, d]``, of the trunk.
            base_logits: of the model's own actions, of the trunk.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FixedActionSet:
    """The model's own actions."""

    ids: Sequence[str]
    allowed: Bool
    scored_with: ClassVar[Hashable] = None

    def on(self, model: ServableModel) -> FixedActionSet:
        ids, allowed_ids = model.manifest.spec.actions, set(compress(self.ids, self.allowed.tolist()))
        allowed = np.array([action in allowed_ids for action in ids])
        if not allowed.any():
            raise ValueError("it has none of the actions that were allowed")
        return FixedActionSet(ids, allowed)

    def score(self, model: ServableModel, embedding: Float32, base_logits: Float32) -> tuple[Float32, Scores]:
        return base_logits, model.head(embedding, base_logits)


_SHOWN: Final = 20
"""Actions that an error message lists."""


def fixed_actions(spec: ModelSpec, allowed_actions: Sequence[str]) -> FixedActionSet:
    """The model's actions; empty ``allowed_actions`` allow all. Raises InvalidInput naming the entry."""
    if not allowed_actions:
        return FixedActionSet(spec.actions, all_allowed(len(spec.actions)))
    allowed = np.zeros(len(spec.actions), np.bool_)
    for place, action in enumerate(allowed_actions):
        field = f"allowed_actions[{place}]"
        if not action:
            raise InvalidInput(field, "is an empty string; leave the list empty to allow every action")
        if not spec.has_action(action):
            more = f" and {len(spec.actions) - _SHOWN} more" if len(spec.actions) > _SHOWN else ""
            known = f"there are {list(spec.actions[:_SHOWN])}{more}"
            raise InvalidInput(field, f"{action[:80]!r} is not an action of {spec.name!r}; {known}")
        index = spec.action_index(action)
        if allowed[index]:
            raise InvalidInput(field, f"{action!r} is there twice")
        allowed[index] = True
    return FixedActionSet(spec.actions, allowed)


@lru_cache
def all_allowed(n_actions: int) -> Bool:
    """``[n_actions]``, all True; shared, so read-only."""
    allowed = np.ones(n_actions, np.bool_)
    allowed.setflags(write=False)
    return allowed
