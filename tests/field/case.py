"""One file and the right answer to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Case:
    """A file with either what it holds or why it is refused.

    Attributes:
        pixels: uint8 ``[h, w, 3]``, upright and on white.
        samples: ``[s, channels]`` in [-1, 1].
        refused: regular expression of the sentence.
        padding: samples may follow that are no longer known to be padding.
        tolerance: largest difference of a value in [0, 1].
        report: address of the public report in which people met the like.
    """

    name: str
    data: bytes
    pixels: npt.NDArray[np.uint8] | None = None
    samples: Samples | None = None
    rate_hz: int = 0
    refused: str = ""
    tolerance: float = 1e-6
    report: str = ""
    padding: bool = False

    def __str__(self) -> str:
        return self.name
