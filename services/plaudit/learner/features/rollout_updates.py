"""How the learner changes which version serves: always by compare-and-set, trying again when somebody was faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from plaudit.core.errors import RolloutMoved
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Rollout

ACTOR: Final = "learner"
_ATTEMPTS: Final = 20


def move(registry: ModelRegistry, transition: Callable[[Rollout], Rollout | None]) -> Rollout | None:
    """Set the rollout to what ``transition`` makes of the present one; None from it means: leave it as it is.

    Raises:
        RolloutMoved: others changed it at every one of many attempts.
    """
    for attempt in range(_ATTEMPTS):
        wanted = transition(registry.rollout())
        if wanted is None:
            return None
        try:
            registry.set_rollout(wanted)
        except RolloutMoved:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return wanted
    return None
