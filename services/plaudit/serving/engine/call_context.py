"""Deadline and presence of the client that waits for an answer. Knows no transport."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from plaudit.core.errors import Expired


class ClientGone(Exception):
    """The client left before its answer was logged; nothing was decided."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class CallContext:
    """One call, as the engine needs to know it.

    Attributes:
        deadline_s: on the clock of ``time.monotonic``; work that has not begun by then is not done.
        is_active: False once the client has left.
        claim: called once, before an answer is logged: False if the client has left; True if the answer is now a
            fact, which the client can no longer cancel.
    """

    deadline_s: float = math.inf
    is_active: Callable[[], bool] = _always
    claim: Callable[[], bool] = _always

    def remaining_s(self) -> float:
        """Time until the deadline; negative after it."""
        return self.deadline_s - time.monotonic()

    def check_wanted(self) -> None:
        """Raises Expired: the deadline has passed; ClientGone: the client has left."""
        self.check_deadline()
        if not self.is_active():
            raise ClientGone

    def check_deadline(self) -> None:
        """Raises Expired if the deadline has passed."""
        if time.monotonic() >= self.deadline_s:
            raise Expired


NO_DEADLINE: Final = CallContext()
