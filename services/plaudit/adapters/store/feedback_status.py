"""What the learners made of feedback and of experiments, read in their experience stores.

A store is opened when it is first asked for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from plaudit.core.experiments import PAST, SHOWN
from plaudit.core.ports.store import ExperienceStore, FeedbackStatus


class StoreFeedbackStatuses:
    """See :class:`plaudit.core.ports.store.FeedbackStatuses` and :class:`plaudit.core.ports.store.ExperimentReports`.

    Args:
        open_store: the store of a model by its name; None where there is none yet.
    """

    def __init__(self, open_store: Callable[[str], ExperienceStore | None]) -> None:
        self._open_store = open_store
        self._stores: dict[str, ExperienceStore] = {}
        self._lock = threading.Lock()

    def fate(self, model: str, feedback_id: str) -> FeedbackStatus | None:
        store = self._store(model)
        return None if store is None else store.fate(feedback_id)

    def experiment(self, model: str, version: int) -> Mapping[str, Any] | None:
        store = self._store(model)
        if store is None:
            return None
        present, past = store.recall(SHOWN), store.recall(PAST)
        experiments: list[Mapping[str, Any]] = [*json.loads(past or b"[]"), *([json.loads(present)] if present else [])]
        return next((each for each in reversed(experiments) if each["version"] == version), None)

    def close(self) -> None:
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()

    def _store(self, model: str) -> ExperienceStore | None:
        with self._lock:
            if model not in self._stores:
                opened = self._open_store(model)
                if opened is None:
                    return None
                self._stores[model] = opened
            return self._stores[model]
