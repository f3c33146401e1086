"""Candidates that a request lists to be picked from: whether they can be, and what they are scored by.

What a dynamic_action graph makes of a text is kept, because the same texts come again with the next request. Knows
nothing about the rest of the request.

Notation:
    d: embedding size, k: number of dynamic actions
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from plaudit.core.errors import InvalidInput
from plaudit.core.events import DynamicAction
from plaudit.core.limits import MAX_ID_CHARACTERS
from plaudit.core.ports.runtime import ServableModel
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.bandit.policy import Float32
from plaudit_models.bundle import TEXT_SCORER, TOKENIZER, Manifest
from plaudit_models.spec import ModelSpec

MAX_DYNAMIC_ACTIONS: Final = 256
_KEPT_TEXTS: Final = 16_384
"""About 1 KB each at d = 192."""

_Key = tuple[str, str, bytes]


def check_dynamic_actions(dynamic_actions: Sequence[DynamicAction], spec: ModelSpec, *, max_text_bytes: int) -> None:
    """Whether the model can score them, each can be told from the others and says something.

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
    ids = set[str]()
    for place, dynamic_action in enumerate(dynamic_actions):
        where = f"dynamic_actions[{place}]"
        if not dynamic_action.id:
            raise InvalidInput(f"{where}.id", f"is empty; give 1 to {MAX_ID_CHARACTERS} characters")
        if len(dynamic_action.id) > MAX_ID_CHARACTERS:
            raise InvalidInput(
                f"{where}.id",
                f"{dynamic_action.id[:20]!r}… has {len(dynamic_action.id)} characters; "
                f"at most {MAX_ID_CHARACTERS} are taken",
            )
        if dynamic_action.id in ids:
            raise InvalidInput(f"{where}.id", f"{dynamic_action.id!r} is there twice")
        ids.add(dynamic_action.id)
        if not dynamic_action.text.strip():
            raise InvalidInput(
                f"{where}.text", f"{dynamic_action.text[:40]!r} is blank; say what {dynamic_action.id!r} is"
            )
        size_bytes = len(dynamic_action.text.encode())
        if size_bytes > max_text_bytes:
            raise InvalidInput(
                f"{where}.text", f"{size_bytes} bytes of text are more than the limit of {max_text_bytes}"
            )


class ActionVectors:
    """The vectors of texts, the latest of which are kept, of whichever model. Safe to use from several threads.

    Args:
        kept_texts: how many.
    """

    def __init__(self, metrics: ServingMetrics, kept_texts: int = _KEPT_TEXTS) -> None:
        self._counted = metrics.dynamic_action_texts
        self._kept_texts = kept_texts
        self._vectors: OrderedDict[_Key, Float32] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, dynamic_actions: Sequence[DynamicAction], model: ServableModel) -> Float32:
        """``[k, d]``, in the order of the dynamic actions, which have passed :func:`check_dynamic_actions`."""
        keys = [_key(dynamic_action.text, model.manifest) for dynamic_action in dynamic_actions]
        found: dict[_Key, Float32] = {}
        with self._lock:
            for key in keys:
                if key in self._vectors:
                    self._vectors.move_to_end(key)
                    found[key] = self._vectors[key]
        missing = {key: each.text for key, each in zip(keys, dynamic_actions, strict=True) if key not in found}
        self._counted.labels("kept").inc(len(keys) - len(missing))
        if missing:
            self._counted.labels("computed").inc(len(missing))
            # A row of its own each, so that one that is kept does not keep all that came with it.
            rows = [row.copy() for row in model.action_vectors(list(missing.values()))]
            computed = dict(zip(missing, rows, strict=True))
            found |= computed
            with self._lock:
                self._vectors |= computed
                while len(self._vectors) > self._kept_texts:
                    self._vectors.popitem(last=False)
        return np.stack([found[key] for key in keys])


def _key(text: str, manifest: Manifest) -> _Key:
    """A text is read by a tokenizer and a graph; versions that share both share what they make of it."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return manifest.sha256(TEXT_SCORER), manifest.files[TOKENIZER].sha256, digest
