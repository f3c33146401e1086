"""Evidence that is about one action alone: its own rows while they are few, their sum once they are many.

Memory grows with what was said, up to the size of the sum. Both forms can be added to and subtracted from, and say the
same. Knows nothing about rewards, nor about other actions.

Notation:
    n: rows, g: number of regressors
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np

from plaudit_models.bandit.features import Float64

SAME: Final = 1e-12
"""Rows of one context are made in batches of different sizes, and differ by rounding; those of two differ by more."""
NOTHING: Final = 1e-12
"""A row that weighs less was taken back."""
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class OwnEvidence:
    """Σ w x xᵀ of one action, as rows or as their sum; immutable, every change is a new one.

    Attributes:
        rows: x, shape ``[n, g]``; none where ``total`` is given.
        weights: w > 0, shape ``[n]``.
        total: the sum, shape ``[g, g]``; None while there are fewer than g rows.
    """

    rows: Float64
    weights: Float64
    total: Float64 | None = None
    _keys: Float64 = field(init=False, repr=False)
    _digest: list[str] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_keys", self.rows @ _probe(self.rows.shape[1]))

    @property
    def rank(self) -> int:
        """Number of directions in which something is known."""
        return len(self.rows) if self.total is None else len(self.total)

    @property
    def gram(self) -> Float64:
        """The sum, shape ``[g, g]``, symmetric to the last bit."""
        return weighted_gram(self.rows, self.weights) if self.total is None else self.total

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the content."""
        if not self._digest:
            hashed = blake2b(digest_size=_DIGEST_BYTES)
            for array in (self.rows, self.weights, self.total):
                hashed.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
            self._digest.append(hashed.hexdigest())
        return self._digest[0]

    def plus(self, rows: Float64, weights: Float64) -> OwnEvidence | None:
        """With these rows; None if nothing is left. Negative weights take back rows that were added before."""
        if self.total is not None:
            return OwnEvidence(self.rows, self.weights, self.total + weighted_gram(rows, weights))
        kept = [self.rows] if len(self.rows) else []
        own, keys = self.weights.copy(), self._keys
        added: list[int] = []
        for i, key in enumerate(rows @ _probe(rows.shape[1])):
            near = np.flatnonzero(np.abs(keys - key) < SAME * rows.shape[1])
            same = [j for j in near if np.abs(self._row(j, rows, added) - rows[i]).max() < SAME]
            if same:
                own[same[0]] += weights[i]
            else:
                added.append(i)
                own, keys = np.append(own, weights[i]), np.append(keys, key)
        if added:
            kept.append(rows[added])
        together = np.concatenate(kept) if kept else self.rows
        left = np.abs(own) > NOTHING
        if not left.any():
            return None
        return _few(together[left], own[left])

    def towards(self, other: OwnEvidence, share: float) -> OwnEvidence | None:
        """Evidence at ``share`` of the way to ``other``: 0 is this one, 1 the other. None if it is none."""
        if self is other:
            return self
        if self.total is not None or other.total is not None:
            return OwnEvidence(self.rows[:0], self.weights[:0], self.gram + share * (other.gram - self.gram))
        scaled = OwnEvidence(self.rows, self.weights * (1.0 - share))
        return scaled.plus(other.rows, other.weights * share)

    def _row(self, j: int, rows: Float64, added: list[int]) -> Float64:
        row: Float64 = self.rows[j] if j < len(self.rows) else rows[added[j - len(self.rows)]]
        return row


def no_own_evidence(n_regressors: int) -> OwnEvidence:
    """Nothing yet."""
    return OwnEvidence(np.zeros((0, n_regressors)), np.zeros(0))


def weighted_gram(rows: Float64, weights: Float64) -> Float64:
    """Σ w xxᵀ, ``[g, g]``, symmetric to the last bit, so that one half of it can be stored."""
    gram: Float64 = (weights[:, None] * rows).T @ rows
    return (gram + gram.T) / 2.0


def leading_rows(gram: Float64, rank: int, scale: Float64) -> Float64:
    """Rows F ``[rank, g]`` with FᵀF ⪯ ``gram``: the directions that weigh most, by a pivoted Cholesky decomposition.

    What is left out is evidence too, so that a variance computed from F is never too small.

    Args:
        gram: positive semidefinite, shape ``[g, g]``.
        scale: units of the regressors, shape ``[g]``: what weighs most is measured in them.
    """
    left = gram / scale[:, None] / scale
    diagonal = left.diagonal().copy()
    least = 1e-12 * max(1.0, float(diagonal.max(initial=0.0)))
    found = np.zeros((rank, len(gram)))
    for i in range(rank):
        pivot = int(np.argmax(diagonal))
        if diagonal[pivot] <= least:
            return found[:i] * scale
        row = (left[pivot] - found[:i, pivot] @ found[:i]) / np.sqrt(diagonal[pivot])
        found[i] = row
        diagonal -= np.square(row)
    return found * scale


def _few(rows: Float64, weights: Float64) -> OwnEvidence:
    """Rows as they are while they are few and all of them weigh something; else their sum."""
    if len(rows) < rows.shape[1] and (weights > 0.0).all():
        return OwnEvidence(rows, weights)
    return OwnEvidence(rows[:0], weights[:0], weighted_gram(rows, weights))


@lru_cache(maxsize=8)
def _probe(n_regressors: int) -> Float64:
    """Direction that tells rows apart, so that few of them need to be compared as a whole."""
    probe: Float64 = np.random.RandomState(0).uniform(-1.0, 1.0, n_regressors)
    return probe
