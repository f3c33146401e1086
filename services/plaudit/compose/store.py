"""Experience stores, one per model: a SQLite file or a PostgreSQL database.

SQLAlchemy is imported when a store is opened: the inference service does without it where no learner has run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaudit.adapters.store.status_readers import OpenStores
from plaudit.compose.paths import store_file
from plaudit.compose.registry import known_models
from plaudit.core.errors import ConfigError
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


def store_url(settings: Settings, model: str) -> URL:
    """URL of a model's store, with its password if it has one: not to be shown.

    Raises:
        ConfigError: ``store.url`` is set and there are several models.
    """
    from plaudit.adapters.store.engine import parsed_url, sqlite_url

    if settings.store.url is None:
        return sqlite_url(store_file(settings, model))
    known = known_models(settings)
    if len(known) > 1:
        raise ConfigError(
            f"store.url: one store holds the experiences of one model, and there are {list(known)}; "
            "give each model a data directory and a store of its own"
        )
    return parsed_url(settings.store.url)


def experience_store(settings: Settings, model: str) -> ExperienceStore:
    """Raises ConfigError, StoreUnavailable, WrongStore."""
    from plaudit.adapters.store.sql import SqlStore

    return SqlStore(store_url(settings, model))


def status_readers(settings: Settings) -> OpenStores:
    """Status readers of every model. No store is made where no learner has run."""

    def open_store(model: str) -> ExperienceStore | None:
        if settings.store.url is None and not store_file(settings, model).exists():
            return None
        return experience_store(settings, model)

    return OpenStores(open_store)
