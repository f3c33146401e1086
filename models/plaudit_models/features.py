"""What the fast loop sees of a context: φ(x), made of the trunk's outputs.

Knows nothing about rewards. Features are only comparable within one feature space: the same trunk and the same
settings, so everything computed from features carries its :class:`FeatureSpace` and refuses another's.

Notation:
    b: batch size, a: number of actions, d: embedding size, f: number of features
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]

MIN_NORM: Final = 1e-6
"""Embeddings shorter than this are not stretched to unit length, so that an all-zero embedding stays zero."""


class FeatureMismatch(ValueError):
    """Two things that carry features come from different feature spaces; the message says how they differ."""


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Which φ: of which trunk, with which settings.

    Attributes:
        trunk_digest: digest of the trunk whose outputs the features are made of.
        n_actions: a.
        embedding_size: d.
        embedding_scale: length given to the embedding block; 0 leaves the block out.
    """

    trunk_digest: str
    n_actions: int
    embedding_size: int
    embedding_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.n_actions < 2 or self.embedding_size < 1 or not 0.0 <= self.embedding_scale < np.inf:
            raise ValueError(f"{self}: needs n_actions ≥ 2, embedding_size ≥ 1 and a finite embedding_scale ≥ 0")

    @property
    def n_features(self) -> int:
        return self.n_actions + (self.embedding_size if self.embedding_scale > 0.0 else 0) + 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def space_from_dict(raw: Mapping[str, Any]) -> FeatureSpace:
    """Inverse of :meth:`FeatureSpace.to_dict`. Raises ValueError or TypeError if a field is missing, extra or wrong."""
    return FeatureSpace(**raw)


def require_same_space(ours: FeatureSpace, theirs: FeatureSpace) -> None:
    """Raises FeatureMismatch naming the fields that differ."""
    differing = [name for name, value in asdict(ours).items() if getattr(theirs, name) != value]
    if differing:
        raise FeatureMismatch(
            "features of different spaces cannot be mixed: "
            + ", ".join(f"{name} {getattr(ours, name)!r} is not {getattr(theirs, name)!r}" for name in differing)
            + "; compute the features anew from stored content"
        )


def base_probabilities(base_logits: Floats) -> Float64:
    """softmax(base_logits): what the model said before feedback. Shapes ``[b, a]`` → ``[b, a]``."""
    logits = base_logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs: Float64 = weights / weights.sum(axis=1, keepdims=True)
    return probs


def features(space: FeatureSpace, embedding: Floats, base_logits: Floats) -> Float64:
    """φ(x) = [base probabilities, embedding scaled to length ``embedding_scale``, 1].

    Args:
        embedding: shape ``[b, d]``.
        base_logits: shape ``[b, a]``.

    Returns:
        Features, shape ``[b, f]``.

    Raises:
        ValueError: a shape is not the space's, or a value is not finite.
    """
    b = len(base_logits)
    if base_logits.shape != (b, space.n_actions):
        raise ValueError(f"base_logits: shape {base_logits.shape} is not [b, {space.n_actions}]")
    if embedding.shape != (b, space.embedding_size):
        raise ValueError(f"embedding: shape {embedding.shape} is not [{b}, {space.embedding_size}]")
    for name, values in (("base_logits", base_logits), ("embedding", embedding)):
        bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad_rows.size:
            raise ValueError(f"{name}: row {bad_rows[0]} holds a value that is not finite; leave that event out")
    blocks = [base_probabilities(base_logits)]
    if space.embedding_scale > 0.0:
        embedding = embedding.astype(np.float64)
        norm = np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), MIN_NORM)
        blocks.append(embedding * (space.embedding_scale / norm))
    blocks.append(np.ones((b, 1)))
    return np.concatenate(blocks, axis=1)
