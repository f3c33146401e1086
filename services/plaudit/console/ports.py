"""What the console is given by the composition root, besides a client of the inference service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plaudit.console.judged import Judged
from plaudit.core.ports import ModelCatalog


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
        model: whose learner.
        status: how things stand, as the learner last said; None if it has never run.
        judged: the answers that users judged.
    """

    model: str
    status: Callable[[], Mapping[str, Any] | None]
    judged: Judged


@dataclass(frozen=True, slots=True)
class Sources:
    """Attributes:
    catalog: the models there are, with their versions and ledgers.
    learning: None where no learner keeps its state here.
    samples: by model.
    """

    catalog: ModelCatalog
    learning: Learning | None
    samples: Mapping[str, Samples]
