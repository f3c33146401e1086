"""Policies of the registry's versions: their answers in logged contexts, their trunks on stored content.

Keeps a few loaded versions. Knows nothing about feedback.

Notation:
    b: batch size, d: embedding size, a: number of actions, k: dynamic actions of one request
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit.core.errors import UnprovenVersion
from plaudit.core.events import Content, Features
from plaudit.core.ports.registry import VersionReader
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.learner.features.content import ROWS_PER_RUN, decode_contents
from plaudit.learner.features.context import Context, Floats32, allowed_mask, stack
from plaudit_models.bandit.dynamic_actions import ActionList, served_over
from plaudit_models.bandit.policy import Bool, Float64, probabilities
from plaudit_models.bundle import HEAD, CorruptBundle, Manifest
from plaudit_models.limits import Limits
from plaudit_models.preprocess import assemble

_MAX_LOADED: Final = 8
_MAX_LOADED_BYTES: Final = 24 * 2**20
"""Size of the heads of loaded versions together, as files: a runtime takes several times as much for each."""
_MAX_VECTORS: Final = 4_096
"""Vectors of dynamic actions' texts that are kept for each version."""


class LoadedPolicy:
    """A version with its graphs loaded and proven.

    Raises:
        CorruptBundle: the folder is not what its manifest says, or its graphs do not do what they should.
    """

    def __init__(self, folder: Path, runtime: ModelRuntime, limits: Limits) -> None:
        self._model = runtime.load(folder)
        self.head_bytes: Final = (folder / self._model.manifest.stored_name(HEAD)).stat().st_size
        self._limits = limits
        self._vectors: OrderedDict[bytes, Floats32] = OrderedDict()

    @property
    def manifest(self) -> Manifest:
        return self._model.manifest

    @property
    def embedding_size(self) -> int:
        return self._model.manifest.spec.embedding_size

    def answers(self, contexts: Sequence[Context]) -> list[Float64]:
        """Probabilities of each context's own actions as they would be served, floor included, ``[k]`` each.

        Contexts are on this version's trunk, those of fixed actions have its action set.
        """
        answers: list[Float64] = [np.zeros(0)] * len(contexts)
        fixed = [i for i, context in enumerate(contexts) if not context.dynamic]
        if fixed:
            own = [contexts[i] for i in fixed]
            probs = self.probabilities(
                [context.features for context in own],
                allowed_mask(self.manifest.spec.actions, [each.allowed for each in own]),
            )
            for i, row in zip(fixed, probs, strict=True):
                answers[i] = row
        for i, context in enumerate(contexts):
            if context.dynamic:
                answers[i] = served_over(self.scores_among(context.action_list), self.manifest.floor)
        return answers

    def probabilities(self, rows: Sequence[Features], allowed: Bool) -> Float64:
        """Probabilities of the fixed actions as they would be served at these features, floor included, ``[b, a]``."""
        return probabilities(self._model.head(*stack(rows)), allowed, self.manifest.floor)

    def base_answers(self, contexts: Sequence[Context]) -> list[Float64]:
        """:meth:`answers` as the trunk alone would give them, every action allowed."""
        return [served_over(context.features.base_logits, self.manifest.floor) for context in contexts]

    @property
    def scores_dynamic_actions(self) -> bool:
        """Whether the version can answer with dynamic actions."""
        return self.manifest.spec.scores_text

    def action_vectors(self, texts: Sequence[str]) -> Floats32:
        """Vectors of texts, ``[k, d]``; the latest are remembered."""
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        if missing:
            self._vectors.update(zip(missing, self._model.action_vectors(list(missing.values())), strict=True))
        for key in keys:
            self._vectors.move_to_end(key)
        vectors = np.stack([self._vectors[key] for key in keys])
        while len(self._vectors) > _MAX_VECTORS:
            self._vectors.popitem(last=False)
        return vectors

    def scores_among(self, actions: ActionList) -> npt.NDArray[np.floating]:
        """Unnormalised log-probabilities of dynamic actions, ``[k]``."""
        return self._model.dynamic_scores(
            np.asarray(actions.embedding, np.float32),
            np.asarray(actions.vectors, np.float32),
            np.asarray(actions.base_logits, np.float32),
        )

    def embed(self, contents: Sequence[Mapping[str, Content]]) -> list[Features | None]:
        """Features of each content; None where there is no content that this model takes."""
        spec, digest = self.manifest.spec, self.manifest.trunk_digest
        decoded = [decode_contents(spec, self._model.tokenizer, content, self._limits) for content in contents]
        usable = [i for i, row in enumerate(decoded) if row is not None]
        features: list[Features | None] = [None] * len(contents)
        for start in range(0, len(usable), ROWS_PER_RUN):
            places = usable[start : start + ROWS_PER_RUN]
            embedding, base_logits, _ = self._model.trunk(assemble(spec, [decoded[i] or {} for i in places]))
            for row, i in enumerate(places):
                features[i] = Features(digest, embedding[row], base_logits[row])
        return features


@dataclass(eq=False)
class PolicyCache:
    """Versions of a registry, loaded when first asked for; the latest used stay loaded, fewer where heads are large.

    Attributes:
        limits: of the content that is decoded; as wide as the server's.
    """

    registry: VersionReader
    runtime: ModelRuntime
    limits: Limits
    _loaded: OrderedDict[int, LoadedPolicy] = field(default_factory=OrderedDict, init=False)

    def version(self, number: int) -> LoadedPolicy:
        """Raises UnknownVersion, UnprovenVersion (its folder is damaged)."""
        if number not in self._loaded:
            try:
                self._loaded[number] = self.folder(self.registry.folder(number))
            except CorruptBundle as error:
                raise UnprovenVersion(number, str(error)) from error
        self._loaded.move_to_end(number)
        while len(self._loaded) > _MAX_LOADED or (len(self._loaded) > 2 and self._head_bytes > _MAX_LOADED_BYTES):
            self._loaded.popitem(last=False)
        return self._loaded[number]

    @property
    def _head_bytes(self) -> int:
        return sum(policy.head_bytes for policy in self._loaded.values())

    def folder(self, folder: Path) -> LoadedPolicy:
        """A version that is not, or not yet, in the registry."""
        return LoadedPolicy(folder, self.runtime, self.limits)
