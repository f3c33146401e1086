"""The body of plaudit raters: reads whom the learner has heard of, and leaves orders about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from plaudit.compose.store import experience_store
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.settings import Settings
from plaudit.learner.online import rater_commands as orders
from plaudit_models.evaluation.raters import TrustLevel


def heard_of(settings: Settings, model: str) -> Sequence[Mapping[str, Any]]:
    """Every user, the one heard of last at the end, as a JSON-ready row. Raises ConfigError, StoreUnavailable.

    Args:
        model: its name; "" for the one that the [model] table describes.
    """
    with _store(settings, model) as store:
        users = orders.known_raters(store).users
    return [
        {"user": user, "reliability": rater.reliability, "floods": rater.floods, **asdict(rater)}
        for user, rater in users.items()
    ]


def order(settings: Settings, model: str, user: str, trust_level: TrustLevel) -> None:
    """Let the user have this standing as soon as the learner looks. Raises ConfigError, StoreUnavailable."""
    with _store(settings, model) as store:
        orders.order(store, user, trust_level)


@contextmanager
def _store(settings: Settings, model: str) -> Iterator[ExperienceStore]:
    store = experience_store(settings, model or settings.spec().name)
    try:
        yield store
    finally:
        store.close()
