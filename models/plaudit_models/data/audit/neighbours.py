"""Pairs of items that are nearly the same, by bits or by words.

Notation:
    n: items, k: words of 64 bits
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

MAX_COMPARED: Final = 50_000
"""Items of one modality that are compared with each other."""
MAX_PAIRS: Final = 100_000
"""Pairs of one modality that are kept."""
SIMILAR_TEXT: Final = 0.8
"""Jaccard similarity of the shingles of texts that are nearly the same."""

_BLOCK_WORDS: Final = 2**22
_PERMUTATIONS: Final = 64
_SHINGLE: Final = 5
_MIN_CHARACTERS: Final = 24


def near_bits(bits: npt.NDArray[np.uint64], most: int) -> Iterator[tuple[int, int]]:
    """Pairs i < j whose bits differ in ``most`` places or fewer; every pair is looked at.

    Args:
        bits: ``[n, k]``.
    """
    found = 0
    rows = max(1, _BLOCK_WORDS // bits.size)
    for start in range(0, len(bits), rows):
        block = bits[start : start + rows]
        distance = np.bitwise_count(block[:, None] ^ bits[None, start:]).sum(axis=2)  # [block, n − start]
        for i, j in np.argwhere(distance <= most):
            if i < j:
                yield start + int(i), start + int(j)
                found += 1
                if found >= MAX_PAIRS:
                    return


def near_texts(texts: Sequence[str], on_item: Callable[[], None] = lambda: None) -> Iterator[tuple[int, int]]:
    """Pairs i < j of texts that share most of their runs of five characters.

    Short texts are left out: "yes" and "yes." are not copies of each other.
    """
    index = MinHashLSH(threshold=SIMILAR_TEXT, num_perm=_PERMUTATIONS)
    shingles: dict[int, frozenset[bytes]] = {}
    found = 0
    for j, text in enumerate(texts):
        on_item()
        own = _shingles(text)
        if not own:
            continue
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch(list(own))
        for i in sorted(index.query(sketch)):
            if _jaccard(shingles[i], own) >= SIMILAR_TEXT and found < MAX_PAIRS:
                found += 1
                yield i, j
        shingles[j] = own
        index.insert(j, sketch)


def joined(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of items that pairs connect, each sorted."""
    parent: dict[int, int] = {}

    def root(item: int) -> int:
        while parent.setdefault(item, item) != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for i, j in pairs:
        parent[root(j)] = root(i)
    groups: dict[int, list[int]] = {}
    for item in sorted(parent):
        groups.setdefault(root(item), []).append(item)
    return [group for group in groups.values() if len(group) > 1]


def _shingles(text: str) -> frozenset[bytes]:
    plain = " ".join(text.lower().split())
    if len(plain) < _MIN_CHARACTERS:
        return frozenset()
    return frozenset(plain[i : i + _SHINGLE].encode("utf-8", "surrogatepass") for i in range(len(plain) - _SHINGLE + 1))


def _jaccard(one: frozenset[Any], other: frozenset[Any]) -> float:
    return len(one & other) / len(one | other)
