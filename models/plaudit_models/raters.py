"""How much of the evidence one user may be, so that nobody outvotes the rest.

Knows nothing about what the evidence says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


def capped_weights(users: Sequence[str], cap: float) -> Float64:
    """One weight per event such that no user's events weigh more than ``cap`` of all events' weight.

    A user's events share one weight; users within the cap keep weight 1. With U users and ``cap`` < 1/U no weights can
    do that; then every user gets the same total.

    Args:
        users: who gave each of the n events.
        cap: largest share of the total weight, in (0, 1].

    Returns:
        Weights in (0, 1], shape ``[n]``.
    """
    _require_cap(cap)
    counts = Counter(users)
    limit = _limit(sorted(counts.values()), cap)
    return np.array([min(1.0, limit / counts[user]) for user in users])


def _limit(counts: list[int], cap: float) -> float:
    """The largest total a user may have: the L with L = cap · Σ min(count, L), or the least count if there is none.

    With the h most active users at the limit, L = cap·(rest + h·L), so L = cap·rest / (1 − cap·h).
    """
    if not counts or cap * sum(counts) >= counts[-1]:
        return float(counts[-1]) if counts else 0.0
    rest = sum(counts)
    for heavy in range(1, len(counts)):
        rest -= counts[-heavy]
        if cap * heavy >= 1.0:
            break
        limit = cap * rest / (1.0 - cap * heavy)
        if limit >= counts[-heavy - 1]:
            return limit
    return float(counts[0])


@dataclass(frozen=True, slots=True)
class UserTally:
    """The cap for events that come one after another: an event counts or not, decided before its outcome is looked at.

    Attributes:
        seen: events so far.
        counted: events so far that counted, by user.
    """

    seen: int = 0
    counted: Mapping[str, int] = field(default_factory=dict)

    def admit(self, users: Sequence[str], cap: float) -> tuple[Bool, UserTally]:
        """Which of the next events count: those of users with fewer than ``cap`` of the events seen, or with none yet.

        Returns:
            A mask, shape ``[n]``, True where the event counts, and the tally after these events.
        """
        _require_cap(cap)
        counted = dict(self.counted)
        admitted = np.zeros(len(users), dtype=np.bool_)
        for i, user in enumerate(users):
            allowance = max(1.0, cap * (self.seen + i + 1))
            if counted.get(user, 0) + 1 <= allowance:
                counted[user] = counted.get(user, 0) + 1
                admitted[i] = True
        return admitted, UserTally(self.seen + len(users), counted)

    def to_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "counted": dict(self.counted)}


def _require_cap(cap: float) -> None:
    if not 0.0 < cap <= 1.0:
        raise ValueError(f"cap {cap} is not in (0, 1]; 1 means no cap")
