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
import numpy.typing as npt

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
            same = [j for j in near.tolist() if np.abs(self._row(j, rows, added) - rows[i]).max() < SAME]
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
        if not self.rank:
            return other._scaled(share)
        if not other.rank:
            return self._scaled(1.0 - share)
        if self.total is not None or other.total is not None:
            return OwnEvidence(self.rows[:0], self.weights[:0], self.gram + share * (other.gram - self.gram))
        return self._scaled(1.0 - share).plus(other.rows, other.weights * share)

    def _scaled(self, by: float) -> OwnEvidence:
        return OwnEvidence(self.rows, self.weights * by, None if self.total is None else self.total * by)

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


def leading_rows(grams: GramRows | Grams, rank: int, scale: Float64) -> Float64:
    """Rows F of several sums, ``[n, rank, g]``, with FᵀF ⪯ the sum: the directions that weigh most.

    By a pivoted Cholesky decomposition (Harbrecht et al., On the low-rank approximation by the pivoted Cholesky
    decomposition, 2012). What is left out of evidence, or of what it removes of a variance, makes the variance larger.

    Args:
        grams: rows ``[n, k, g]`` whose squares are summed, or sums ``[n, g, g]``.
        scale: units of the regressors, shape ``[g]``: what weighs most is measured in them.
    """
    many = np.arange(len(grams.values))
    diagonal = grams.diagonal() / np.square(scale)
    least = 1e-12 * np.maximum(1.0, diagonal.max(axis=1))
    found = np.zeros((len(many), rank, len(scale)))
    for i in range(rank):
        pivots = np.argmax(diagonal, axis=1)
        height = diagonal[many, pivots]
        row = grams.row(pivots) / scale / scale[pivots][:, None]
        row -= np.einsum("ni,nig->ng", found[many, :i, pivots], found[:, :i])
        found[:, i] = np.where((height > least)[:, None], row / np.sqrt(np.maximum(height, least))[:, None], 0.0)
        diagonal = diagonal - np.square(found[:, i])
    return found * scale


@dataclass(frozen=True, slots=True, eq=False)
class GramRows:
    """Sums as rows whose squares are summed, ``[n, k, g]``."""

    values: Float64

    def diagonal(self) -> Float64:
        diagonal: Float64 = np.square(self.values).sum(axis=1)
        return diagonal

    def row(self, places: npt.NDArray[np.int64]) -> Float64:
        """Row of each sum at its place, ``[n, g]``."""
        columns = self.values[np.arange(len(places)), :, places]
        row: Float64 = (columns[:, None, :] @ self.values)[:, 0]
        return row


@dataclass(frozen=True, slots=True, eq=False)
class Grams:
    """Sums as they are, ``[n, g, g]``."""

    values: Float64

    def diagonal(self) -> Float64:
        diagonal: Float64 = self.values.diagonal(axis1=1, axis2=2)
        return diagonal

    def row(self, places: npt.NDArray[np.int64]) -> Float64:
        """Row of each sum at its place, ``[n, g]``."""
        row: Float64 = self.values[np.arange(len(places)), places]
        return row


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
