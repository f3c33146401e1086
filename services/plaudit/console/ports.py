"""Sources of the console, besides a client of the inference service: the composition root makes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plaudit.console.labelled_answers import LabelledAnswers
from plaudit.core.ports.registry import ModelCatalog


class Samples(Protocol):
    """Ready-made content for one model's playground."""

    def offered(self) -> Mapping[str, Sequence[str]]:
        """Names of the samples by modality; of a text modality the names are the texts themselves."""
        ...

    def content(self, modality: str, name: str) -> tuple[bytes, str]:
        """Encoded content and its media type. Another call may give another example of the same name.

        Raises:
            KeyError: it is not offered.
        """
        ...


@dataclass(frozen=True, slots=True)
class LearnerView:
    """The learner of one model, as the console sees it.

    Attributes:
        status: latest status report; None if the learner has never run.
        answers: the latest labelled answers.
    """

    status: Callable[[], Mapping[str, Any] | None]
    answers: LabelledAnswers


class LearnerViews:
    """Views by model, each made when it is first asked for.

    Args:
        make: makes the view of a model by its name.
    """

    def __init__(self, make: Callable[[str], LearnerView]) -> None:
        self._make = make
        self._made: dict[str, LearnerView] = {}
        self._lock = threading.Lock()

    def of(self, model: str) -> LearnerView:
        with self._lock:
            if model not in self._made:
                self._made[model] = self._make(model)
            return self._made[model]

    def close(self) -> None:
        for view in self._made.values():
            view.answers.close()


@dataclass(frozen=True, slots=True)
class Sources:
    """Attributes:
    catalog: the models, with their versions and ledgers.
    learners: views of their learners.
    samples: samples by model.
    """

    catalog: ModelCatalog
    learners: LearnerViews
    samples: Mapping[str, Samples]
