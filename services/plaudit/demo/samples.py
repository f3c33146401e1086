"""Sample digits, spoken digits and questions for the console's playground (plaudit.console.ports.Samples).

They are of the demo's traffic: neither trained nor evaluated on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

from plaudit.demo.speech import DIGIT_WORDS
from plaudit.demo.task import KINDS, Pool, collect, questions

_SOUNDS_PER_DIGIT: Final = 6
_QUESTIONS_PER_KIND: Final = 3


class DemoSamples:
    """Samples of the demo's model, drawn from the content of its traffic.

    Args:
        seed: of the draws; the same seed draws the same examples in the same order.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def offered(self) -> Mapping[str, Sequence[str]]:
        wordings = [questions(kind, "traffic") for kind in KINDS]
        thirds = range(_QUESTIONS_PER_KIND)
        return {
            "image": [str(digit) for digit in range(10)],
            "audio": list(DIGIT_WORDS),
            "question": [texts[len(texts) * i // len(thirds)] for texts in wordings for i in thirds],
        }

    def content(self, modality: str, name: str) -> tuple[bytes, str]:
        match modality:
            case "image":
                images = zip(self._pool.images, self._pool.image_digits, strict=True)
                return self._one([image for image, digit in images if str(digit) == name], name), "image/png"
            case "audio":
                sounds = zip(self._pool.sounds, self._pool.sound_digits, strict=True)
                return self._one([sound for sound, digit in sounds if DIGIT_WORDS[digit] == name], name), "audio/wav"
            case _:
                raise KeyError(modality)

    @cached_property
    def _pool(self) -> Pool:
        """Made when first asked for: speech takes a moment."""
        return collect("traffic", seed=0, sounds_per_digit={"traffic": _SOUNDS_PER_DIGIT})

    def _one(self, found: Sequence[bytes], name: str) -> bytes:
        if not found:
            raise KeyError(name)
        return self._random.choice(found)
