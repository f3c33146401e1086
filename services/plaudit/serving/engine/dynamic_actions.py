"""Dynamic actions: whether a request's list can be scored, the vectors of its texts, and the set that they make.

The vector of a text is cached, because the same texts come again with the next request. Knows nothing about the rest of
the request.

Notation:
    b: batch size, d: embedding size, k: number of dynamic actions
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from plaudit.core.errors import InvalidInput
from plaudit.core.events import DynamicAction
from plaudit.core.limits import MAX_DYNAMIC_ACTIONS, MAX_DYNAMIC_ACTIONS_BYTES
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.text.identifiers import check_given_id
from plaudit.serving.engine.action_sets import Scores, all_allowed
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.bandit.policy import Bool, Float32
from plaudit_models.bundle import TEXT_SCORER, TOKENIZER, Manifest
from plaudit_models.spec import ModelSpec

_CACHED_TEXTS: Final = 16_384
"""About 1 KB each at d = 192."""

_Key = tuple[str, str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class DynamicActionSet:
    """Actions that one request lists, each scored by its text.

    Attributes:
        vectors: ``[k, d]``, of the texts.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: Float32

    @property
    def allowed(self) -> Bool:
        return all_allowed(len(self.ids))

    @property
    def scored_with(self) -> Hashable:
        return id(self)

    def on(self, model: ServableModel) -> DynamicActionSet:
        return DynamicActionSet(self.ids, self.texts, model.action_vectors(self.texts))

    def score(self, model: ServableModel, embedding: Float32, base_logits: Float32) -> tuple[Float32, Scores]:
        own: Float32 = np.stack([self.vectors @ row for row in embedding])  # [b, k]
        pairs = zip(embedding, own, strict=True)
        return own, np.stack([model.dynamic_scores(row, self.vectors, logits) for row, logits in pairs])


def check_dynamic_actions(dynamic_actions: Sequence[DynamicAction], spec: ModelSpec, *, max_text_bytes: int) -> None:
    """Check that the model can score them, that their ids differ and that each has a text.

    Raises:
        InvalidInput: naming the entry.
    """
    if not spec.scores_text:
        raise InvalidInput(
            "dynamic_actions",
            f"are given, but {spec.name!r} scores no text; send allowed_actions, or set scores_text = true under "
            "[model] and pre-train it again",
        )
    if len(dynamic_actions) > MAX_DYNAMIC_ACTIONS:
        raise InvalidInput(
            "dynamic_actions", f"{len(dynamic_actions)} are given; at most {MAX_DYNAMIC_ACTIONS} are taken"
        )
    ids, together_bytes = set[str](), 0
    for place, dynamic_action in enumerate(dynamic_actions):
        field = f"dynamic_actions[{place}]"
        check_given_id(f"{field}.id", dynamic_action.id)
        if dynamic_action.id in ids:
            raise InvalidInput(f"{field}.id", f"{dynamic_action.id!r} is there twice")
        ids.add(dynamic_action.id)
        if not dynamic_action.text.strip():
            raise InvalidInput(
                f"{field}.text", f"{dynamic_action.text[:40]!r} is blank; say what {dynamic_action.id!r} is"
            )
        size_bytes = len(dynamic_action.text.encode())
        if size_bytes > max_text_bytes:
            raise InvalidInput(
                f"{field}.text", f"{size_bytes} bytes of text are more than the limit of {max_text_bytes}"
            )
        together_bytes += size_bytes
        if together_bytes > MAX_DYNAMIC_ACTIONS_BYTES:
            raise InvalidInput(
                "dynamic_actions",
                f"the first {place + 1} texts have {together_bytes} bytes together; at most "
                f"{MAX_DYNAMIC_ACTIONS_BYTES} are taken",
            )


class TextVectors:
    """Vectors of the texts used last, of all versions. Safe to use from several threads.

    Args:
        cached_texts: number of texts whose vectors are kept.
    """

    def __init__(self, metrics: ServingMetrics, cached_texts: int = _CACHED_TEXTS) -> None:
        self._texts = metrics.dynamic_action_texts
        self._cached_texts = cached_texts
        self._vectors: OrderedDict[_Key, Float32] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, dynamic_actions: Sequence[DynamicAction], model: ServableModel) -> Float32:
        """``[k, d]``, in the order of the dynamic actions, which have passed :func:`check_dynamic_actions`."""
        keys = [_key(dynamic_action.text, model.manifest) for dynamic_action in dynamic_actions]
        vectors: dict[_Key, Float32] = {}
        with self._lock:
            for key in keys:
                if key in self._vectors:
                    self._vectors.move_to_end(key)
                    vectors[key] = self._vectors[key]
        missing = {key: each.text for key, each in zip(keys, dynamic_actions, strict=True) if key not in vectors}
        self._texts.labels("cached").inc(len(keys) - len(missing))
        if missing:
            self._texts.labels("computed").inc(len(missing))
            # A copy of each row, so that one that stays cached does not keep the whole matrix in memory.
            rows = [row.copy() for row in model.action_vectors(list(missing.values()))]
            computed = dict(zip(missing, rows, strict=True))
            vectors |= computed
            with self._lock:
                self._vectors |= computed
                while len(self._vectors) > self._cached_texts:
                    self._vectors.popitem(last=False)
        return np.stack([vectors[key] for key in keys])


def _key(text: str, manifest: Manifest) -> _Key:
    """A text is read by a tokenizer and a graph; versions that share both share its vector."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return manifest.sha256(TEXT_SCORER), manifest.files[TOKENIZER].sha256, digest
