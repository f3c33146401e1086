"""What people order about raters: left in the store by `plaudit raters`, heeded by whoever leads.

Knows nothing about what follows from a standing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plaudit.core.ports.store import ExperienceStore
from plaudit.learner.state import RATERS
from plaudit_models.evaluation.raters import Raters, TrustLevel, raters_from_bytes

ORDERS: Final = "raters/orders"
HEEDED: Final = "raters/orders-heeded"


@dataclass(frozen=True, slots=True)
class Unheeded:
    """Attributes:
    todo: the standing that each user is to have.
    heeded: what to save in the store's memory together with the effects.
    """

    todo: Mapping[str, TrustLevel]
    heeded: Mapping[str, bytes | None]


def order(store: ExperienceStore, user: str, trust_level: TrustLevel) -> None:
    """Let the user have this standing from the leader's next step on. Raises StoreUnavailable."""
    orders = json.loads(store.recall(ORDERS) or b"[]")
    store.leave(ORDERS, json.dumps([*orders, [user, trust_level]]).encode())


def unheeded(store: ExperienceStore) -> Unheeded:
    """Orders given since the last that were heeded; a later one about the same user overrules."""
    raw = store.recall(ORDERS)
    if raw is None:
        return Unheeded({}, {})
    orders, done = json.loads(raw), int(store.recall(HEEDED) or b"0")
    return Unheeded(dict(orders[done:]), {HEEDED: str(len(orders)).encode()})


def known_raters(store: ExperienceStore) -> Raters:
    """As the leader last saved them."""
    return raters_from_bytes(store.recall(RATERS))


def user_hash(user: str) -> str:
    """What logs call a user: the same for the same user, and no id."""
    return hashlib.sha256(user.encode()).hexdigest()[:12]
