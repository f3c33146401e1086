"""Experiences of one kind of decision as a policy in training sees them.

:class:`FixedReplay` are answers of the model's own actions, :class:`ListedReplay` those that were picked from lists of
texts: there the policy's logits are e(x)·v(text), so that trunk and text scorer learn together. Fine-tuning loops over
them. Knows nothing about losses or optimisers.

Notation:
    n: experiences, b: rows of a batch, d: embedding size, a: number of actions; of lists: places in the longest
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plaudit_models.spec import ModalityKind
from plaudit_models.training.data.experiences import Experiences, ListedExperiences
from plaudit_models.training.data.rows import Source
from plaudit_models.training.networks.fusion import FusionPolicy
from plaudit_models.training.objectives import Logits, Rewards

Served = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]]
"""Embeddings ``[n, d]`` and base logits ``[n, a]`` → logits of the policy that is served, ``[n, a]``."""

MAX_TEXTS: Final = 2_048
"""Texts that one step encodes; lists beyond wait for the next time that their turn comes."""
NOT_LISTED: Final = -1e9
"""Logit behind the end of a list: of probability 0, and finite, because 0·∞ is not a number."""
_CHUNK_ROWS: Final = 64


class Replay(Protocol):
    """Experiences of one kind."""

    @property
    def experiences(self) -> Experiences:
        """Answers and feedback."""

    @property
    def rewards(self) -> Rewards | None:
        """Rewards that are expected of any answer, where they are known."""

    @property
    def support(self) -> npt.NDArray[np.bool_] | None:
        """Actions ``[n, a]`` that may have a probability; None: all."""

    def take(self, rows: Tensor) -> Tensor:
        """As many of the rows as one step can bear, at least the first."""

    def logits(self, rows: Tensor) -> Tensor:
        """Logits ``[b, a]`` of the policy in training."""

    def known(self, parent: FusionPolicy) -> tuple[Logits, Logits]:
        """Logits of the parent, and of what is served; to be called before anything was trained."""


class FixedReplay:
    """Answers of the model's own actions.

    Args:
        model: the policy in training, in eval mode.
        served: what the version to start from makes of the parent's outputs; None: it serves the parent's logits.
    """

    support: ClassVar[None] = None

    def __init__(
        self,
        model: FusionPolicy,
        experiences: Experiences,
        trained_encoders: tuple[ModalityKind, ...],
        rewards: Rewards | None,
        served: Served | None,
    ) -> None:
        self.experiences = experiences
        self.rewards = rewards
        self._served = served
        self._source = Source(model, experiences.pools, experiences.index, trained_encoders)

    def take(self, rows: Tensor) -> Tensor:
        return rows

    def logits(self, rows: Tensor) -> Tensor:
        return self._source.fused(rows)[1]

    def known(self, parent: FusionPolicy) -> tuple[Logits, Logits]:
        embeddings = self._source.embeddings()
        with torch.no_grad():
            own = parent.action_head(embeddings)
        if self._served is None:
            return own.__getitem__, own.__getitem__
        shown = torch.from_numpy(self._served(embeddings.numpy(), own.numpy())).to(own.dtype)
        return own.__getitem__, shown.__getitem__


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Answers that were picked from lists of texts, and what is known of them.

    Attributes:
        rewards: expected of each place, ``[n, a]``; None where no objective asks.
        served: logits of the policy that is served, ``[n, a]``; None: those of the parent.
    """

    experiences: ListedExperiences
    rewards: npt.NDArray[np.floating[Any]] | None = None
    served: npt.NDArray[np.floating[Any]] | None = None


class ListedReplay:
    """Answers that were picked from lists of texts.

    Args:
        model: the policy in training, in eval mode.
    """

    def __init__(self, model: FusionPolicy, listed: Listed, trained_encoders: tuple[ModalityKind, ...]) -> None:
        lists, answers = listed.experiences, listed.experiences.answers
        assert answers.allowed_mask is not None
        self.experiences, self.support = answers, answers.allowed_mask
        self.rewards = None if listed.rewards is None else _table(listed.rewards)
        self._model = model
        self._source = Source(model, answers.pools, answers.index, trained_encoders)
        self._texts, self._listed = torch.from_numpy(lists.texts), torch.from_numpy(lists.listed)
        self._mask = torch.from_numpy(answers.allowed_mask)
        self._lengths = self._mask.sum(dim=1)
        self._served = listed.served

    def take(self, rows: Tensor) -> Tensor:
        n_texts = self._lengths[rows].cumsum(0)
        return rows[: max(1, int((n_texts <= MAX_TEXTS).sum()))]

    def logits(self, rows: Tensor) -> Tensor:
        embedding, mask = self._source.fused(rows)[0], self._mask[rows]
        texts, place = torch.unique(self._listed[rows], return_inverse=True)
        vectors = self._model.text_vectors(self._texts[texts])[place]  # [b, a, d]
        return torch.einsum("bd,bad->ba", embedding, vectors).masked_fill(~mask, NOT_LISTED)

    def known(self, parent: FusionPolicy) -> tuple[Logits, Logits]:
        with torch.no_grad():
            own = torch.cat([self.logits(rows) for rows in torch.arange(len(self._mask)).split(_CHUNK_ROWS)])
        if self._served is None:
            return own.__getitem__, own.__getitem__
        shown = torch.from_numpy(self._served).to(own.dtype).masked_fill(~self._mask, NOT_LISTED)
        return own.__getitem__, shown.__getitem__


def _table(values: npt.NDArray[np.floating[Any]]) -> Rewards:
    table = torch.from_numpy(values).float()
    return lambda rows, actions: table[rows].gather(1, actions)
