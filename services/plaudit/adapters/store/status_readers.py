"""Status readers of several models: each store is opened when it is first asked for, and stays open."""

from __future__ import annotations

import threading
from collections.abc import Callable

from plaudit.core.ports.store import ExperienceStore, StatusReader


class OpenStores:
    """See :data:`plaudit.core.ports.store.StatusReaders`. Safe to use from several threads.

    Args:
        open_store: opens the store of a model by its name; None while there is none.
    """

    def __init__(self, open_store: Callable[[str], ExperienceStore | None]) -> None:
        self._open_store = open_store
        self._stores: dict[str, ExperienceStore] = {}
        self._lock = threading.Lock()

    def __call__(self, model: str) -> StatusReader | None:
        with self._lock:
            if model not in self._stores:
                opened = self._open_store(model)
                if opened is None:
                    return None
                self._stores[model] = opened
            return self._stores[model]

    def close(self) -> None:
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()
