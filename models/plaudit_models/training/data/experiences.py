"""Training experiences as arrays. Knows nothing about where they come from.

Notation:
    n: experiences, m: number of modalities, u: items of a pool, a: number of actions, k: actions of the longest list,
    t: tokens of a text
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Experiences:
    """Answers that were served, with the users' feedback.

    Attributes:
        pools: per modality decoded content ``[u, *shape]``.
        index: int64 ``[n, m]``, experience → item in the modality's pool (modalities in spec order); −1 is missing.
        action: int64 ``[n]``, the action that was served.
        reward: float32 ``[n]`` in [0, 1].
        correction: int64 ``[n]``, the action that the user named as right; −1 is none.
        weight: float32 ``[n]`` in [0, 1], trust in the user; 0 where there is no feedback on the action.
        allowed_mask: bool ``[n, a]``, True where the action could have been picked; None: any could.
    """

    pools: Mapping[str, npt.NDArray[Any]]
    index: npt.NDArray[np.int64]
    action: npt.NDArray[np.int64]
    reward: npt.NDArray[np.float32]
    correction: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    allowed_mask: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self.index)
        for name in ("action", "reward", "correction", "weight"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{name}: shape {getattr(self, name).shape} is not ({n},), one per row of index")
        for name in ("reward", "weight"):
            values = getattr(self, name)
            outside = ~((values >= 0) & (values <= 1))
            if outside.any():
                i = int(outside.argmax())
                raise ValueError(f"{name}: {values[i]} of experience {i} is not in [0, 1]")
        if self.allowed_mask is not None:
            picked = self.allowed_mask[np.arange(n), self.action]
            if not picked.all():
                i = int(picked.argmin())
                raise ValueError(f"allowed_mask: does not allow action {self.action[i]} of experience {i}")

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class ListedExperiences:
    """Answers that were picked from lists of texts, with the users' feedback.

    Attributes:
        answers: actions are places in the list of their experience; ``allowed_mask`` is True up to its end.
        texts: int64 ``[u, t]``, token ids of distinct texts.
        listed: int64 ``[n, k]``, text of each place; any behind the end of a list.
    """

    answers: Experiences
    texts: npt.NDArray[np.int64]
    listed: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        mask = self.answers.allowed_mask
        if mask is None or mask.shape != self.listed.shape:
            raise ValueError(
                f"listed: shape {self.listed.shape} is not that of allowed_mask, {None if mask is None else mask.shape}"
            )
        if mask.size and not ((self.listed >= 0) & (self.listed < len(self.texts)))[mask].all():
            raise ValueError(f"listed: names a text that is none of the {len(self.texts)}")

    def __len__(self) -> int:
        return len(self.answers)
