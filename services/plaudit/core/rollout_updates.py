"""Compare-and-set on the rollout: read it, decide on the next one, write that; decide again if it moved meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, TypeVar

from plaudit.core.errors import RolloutMoved
from plaudit.core.ports.registry import RolloutStore
from plaudit.core.rollout import Rollout

Read = TypeVar("Read")
Written = TypeVar("Written")

LEARNER: Final = "learner"
"""Actor of the changes that learners make."""
MAX_ATTEMPTS: Final = 20


def compare_and_set(
    read: Callable[[], Read], write: Callable[[Read], Written], *, max_attempts: int = MAX_ATTEMPTS
) -> Written:
    """Result of ``write(read())``; both are called again where ``write`` raised RolloutMoved.

    Raises:
        RolloutMoved: at every one of ``max_attempts``.
    """
    for _ in range(max_attempts - 1):
        with contextlib.suppress(RolloutMoved):
            return write(read())
    return write(read())


def update_rollout(
    registry: RolloutStore, transition: Callable[[Rollout], Rollout | None], *, max_attempts: int = MAX_ATTEMPTS
) -> Rollout | None:
    """Set the rollout to what ``transition`` makes of the present one; None from it leaves the rollout as it is.

    Raises:
        RolloutMoved: others changed the rollout at every one of ``max_attempts``.
    """

    def write(present: Rollout) -> Rollout | None:
        wanted = transition(present)
        if wanted is not None:
            registry.set_rollout(wanted)
        return wanted

    return compare_and_set(registry.rollout, write, max_attempts=max_attempts)
