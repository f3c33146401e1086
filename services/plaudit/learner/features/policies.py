"""What versions of the registry would do: their policies at logged features, their trunks on stored content.

Keeps a few opened versions. Knows nothing about feedback.

Notation:
    b: batch size, d: embedding size, a: number of actions, k: dynamic actions of one request
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from plaudit.core.events import Content, Features
from plaudit.core.experience import DecisionHeader
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.learner.features.content import ROWS_PER_RUN, decode_contents
from plaudit.learner.features.evidence import Floats32, stack
from plaudit_models.bandit.dynamic_actions import ActionList, served_over
from plaudit_models.bandit.policy import Bool, Float64, probabilities
from plaudit_models.bundle import Manifest
from plaudit_models.preprocess import Limits, assemble
from plaudit_models.spec import ModelSpec

_KEPT_OPEN: Final = 8
_KEPT_VECTORS: Final = 4_096
"""Of dynamic actions' texts, by version."""


class LoadedPolicy:
    """A version with its graphs loaded and proven.

    Raises:
        CorruptBundle: the folder is not what its manifest says, or its graphs do not do what they should.
    """

    def __init__(self, folder: Path, runtime: ModelRuntime, limits: Limits) -> None:
        self._model = runtime.load(folder)
        self._limits = limits
        self._vectors: OrderedDict[bytes, Floats32] = OrderedDict()

    @property
    def manifest(self) -> Manifest:
        return self._model.manifest

    def probabilities(self, rows: Sequence[Features], allowed: Bool) -> Float64:
        """What would be served at these features, floor included, ``[b, a]``."""
        return probabilities(self._model.head(*stack(rows)), allowed, self.manifest.floor)

    def base_probabilities(self, rows: Sequence[Features]) -> Float64:
        """What the trunk alone would serve at these features, floor included, every action allowed, ``[b, a]``."""
        _, base_logits = stack(rows)
        return probabilities(base_logits, np.ones(base_logits.shape, np.bool_), self.manifest.floor)

    @property
    def scores_dynamic_actions(self) -> bool:
        """Whether it can be asked about dynamic actions."""
        return self.manifest.spec.scores_text

    def action_vectors(self, texts: Sequence[str]) -> Floats32:
        """What its candidate graph makes of texts, ``[k, d]``; the latest are remembered."""
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        if missing:
            self._vectors.update(zip(missing, self._model.action_vectors(list(missing.values())), strict=True))
        for key in keys:
            self._vectors.move_to_end(key)
        vectors = np.stack([self._vectors[key] for key in keys])
        while len(self._vectors) > _KEPT_VECTORS:
            self._vectors.popitem(last=False)
        return vectors

    def list_probabilities(self, seen: ActionList) -> Float64:
        """What would be served of a list of dynamic actions, floor included, ``[k]``."""
        scores = self._model.dynamic_scores(
            np.asarray(seen.embedding, np.float32),
            np.asarray(seen.vectors, np.float32),
            np.asarray(seen.base_logits, np.float32),
        )
        return served_over(scores, self.manifest.floor)

    def embed(self, contents: Sequence[Mapping[str, Content]]) -> list[Features | None]:
        """Features of each content; None where there is no content that this model takes."""
        spec, digest = self.manifest.spec, self.manifest.trunk_digest
        decoded = [decode_contents(spec, self._model.tokenizer, content, self._limits) for content in contents]
        usable = [i for i, row in enumerate(decoded) if row is not None]
        found: list[Features | None] = [None] * len(contents)
        for start in range(0, len(usable), ROWS_PER_RUN):
            places = usable[start : start + ROWS_PER_RUN]
            embedding, base_logits, _ = self._model.trunk(assemble(spec, [decoded[i] or {} for i in places]))
            for row, i in enumerate(places):
                found[i] = Features(digest, embedding[row], base_logits[row])
        return found


class PolicyCache:
    """The versions of a registry, opened when asked for.

    Args:
        registry: where they are.
        runtime: what runs them.
        limits: what content is decoded; as wide as the server's.
    """

    def __init__(self, registry: ModelRegistry, runtime: ModelRuntime, limits: Limits) -> None:
        self._registry = registry
        self._runtime = runtime
        self._limits = limits
        self._open: OrderedDict[int, LoadedPolicy] = OrderedDict()

    def version(self, number: int) -> LoadedPolicy:
        """Raises UnknownVersion."""
        if number not in self._open:
            self._open[number] = self.folder(self._registry.folder(number))
        self._open.move_to_end(number)
        while len(self._open) > _KEPT_OPEN:
            self._open.popitem(last=False)
        return self._open[number]

    def folder(self, folder: Path) -> LoadedPolicy:
        """A version that is not, or not yet, in the registry."""
        return LoadedPolicy(folder, self._runtime, self._limits)


def allowed_mask(spec: ModelSpec, rows: Sequence[DecisionHeader]) -> Bool:
    """True where the action might be picked, ``[b, a]``."""
    mask = np.ones((len(rows), len(spec.actions)), np.bool_)
    for i, row in enumerate(rows):
        if row.allowed_actions:
            mask[i] = [action in row.allowed_actions for action in spec.actions]
    return mask
