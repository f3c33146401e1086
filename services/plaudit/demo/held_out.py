"""Evaluation of versions on held-out inputs, with the probabilities that they would serve, from the same graphs.

Knows nothing about the traffic.

Notation:
    n: examples, d: embedding size, a: number of actions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit.core.ports.runtime import ModelRuntime, ServableModel
from plaudit.demo.report import Satisfaction, expected_satisfaction
from plaudit.demo.task import SPEC, Example
from plaudit.demo.users import likes_matrix
from plaudit_models.bandit.policy import probabilities
from plaudit_models.preprocess import assemble, decode

PER_KIND: Final = 600
"""Number of held-out examples of each kind of question."""
_BATCH: Final = 64

_Float32 = npt.NDArray[np.float32]


def evaluate_versions(
    folder: Callable[[int], Path], runtime: ModelRuntime, versions: Sequence[int], examples: Sequence[Example]
) -> dict[int, Satisfaction]:
    """Expected satisfaction of users with each version on ``examples``, after their taste has shifted.

    Versions that share a trunk share the embedding of the examples.

    Args:
        folder: folder of a version.
    """
    kinds = [example.kind for example in examples]
    likes = likes_matrix(examples, shifted=True)
    allowed = np.ones((len(examples), len(SPEC.actions)), np.bool_)
    embedded: dict[str, tuple[_Float32, _Float32]] = {}
    satisfaction = {}
    for number in versions:
        model = runtime.load(folder(number))
        trunk = model.manifest.trunk_digest
        if trunk not in embedded:
            embedded[trunk] = _embed(model, examples)
        served = probabilities(model.head(*embedded[trunk]), allowed, model.manifest.floor)
        satisfaction[number] = expected_satisfaction(served, likes, kinds)
    return satisfaction


def _embed(model: ServableModel, examples: Sequence[Example]) -> tuple[_Float32, _Float32]:
    """Embeddings ``[n, d]`` and base logits ``[n, a]``."""
    rows = [
        {
            name: decode(content, SPEC.modalities[name], name=name, tokenizer=model.tokenizer)
            for name, content in (("image", each.image), ("audio", each.audio), ("question", each.question))
        }
        for each in examples
    ]
    batches = [model.trunk(assemble(SPEC, rows[start : start + _BATCH])) for start in range(0, len(rows), _BATCH)]
    return np.concatenate([each.embedding for each in batches]), np.concatenate([each.base_logits for each in batches])
