"""Schedule of the learner's loop."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSchedule:
    """Attributes:
    batch: number of new experiences after which the head is refreshed.
    max_wait_s: time after which the head is refreshed with fewer.
    poll_limit: largest number of records read, and of experiences learned, at once.
    silence_reward: reward in [0, 1] of a decision without feedback; None: such decisions are not learned.
    silence_after_s: time without feedback after which a decision counts as one without.
    user_cap: largest share of the learned experiences that one user may have, in (0, 1].
    versions_kept: number of dead head refreshes kept in the registry.
    retention_s: time that predictions stay in the store, with their content and feedback.
    """

    batch: int = 64
    max_wait_s: float = 2.0
    poll_limit: int = 1024
    silence_reward: float | None = None
    silence_after_s: float = 300.0
    user_cap: float = 1.0
    versions_kept: int = 20
    retention_s: float = math.inf
