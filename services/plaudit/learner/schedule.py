"""When the learner does what."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Attributes:
    batch: new experiences after which the head is refreshed.
    max_wait_s: the head is refreshed with fewer after this long.
    poll_limit: the most records read, and experiences learned, at once.
    silence_reward: reward in [0, 1] of a decision nobody said anything about; None: silence means nothing.
    silence_after_s: how long nobody must have said anything.
    user_cap: the largest share of the experiences that one user's are learned from, in (0, 1].
    versions_kept: dead head refreshes kept in the registry.
    retention_s: how long predictions stay in the store, with their content and feedback.
    """

    batch: int = 64
    max_wait_s: float = 2.0
    poll_limit: int = 1024
    silence_reward: float | None = None
    silence_after_s: float = 300.0
    user_cap: float = 1.0
    versions_kept: int = 20
    retention_s: float = math.inf
