"""What the console is given by the composition root, besides a client of the inference service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plaudit.console.judged import Judged
from plaudit.core.ports.registry import ModelCatalog


class Samples(Protocol):
    """Ready-made content for one model's playground."""

    def offered(self) -> Mapping[str, Sequence[str]]:
        """Modality → names of what there is; of a text modality the names are the texts themselves."""
        ...

    def content(self, modality: str, name: str) -> tuple[bytes, str]:
        """Encoded content and its media type. Another call may give another example of the same name.

        Raises:
            KeyError: it is not offered.
        """
        ...


@dataclass(frozen=True, slots=True)
class Learning:
    """What the learner of one model lets others see.

    Attributes:
        status: how things stand, as the learner last said; None if it has never run.
        judged: the answers that users judged.
    """

    status: Callable[[], Mapping[str, Any] | None]
    judged: Judged


class Learnings:
    """Of every model, each made when it is first asked for.

    Args:
        make: by the model's name.
    """

    def __init__(self, make: Callable[[str], Learning]) -> None:
        self._make = make
        self._made: dict[str, Learning] = {}
        self._lock = threading.Lock()

    def of(self, model: str) -> Learning:
        with self._lock:
            if model not in self._made:
                self._made[model] = self._make(model)
            return self._made[model]

    def close(self) -> None:
        for learning in self._made.values():
            learning.judged.close()


@dataclass(frozen=True, slots=True)
class Sources:
    """Attributes:
    catalog: the models there are, with their versions and ledgers.
    learnings: what their learners let others see.
    samples: by model.
    """

    catalog: ModelCatalog
    learnings: Learnings
    samples: Mapping[str, Samples]
