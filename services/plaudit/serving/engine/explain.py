"""Contribution of each modality to an answer: exact Shapley values. Pure maths.

L. S. Shapley, "A value for n-person games", 1953.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

Subset = frozenset[str]


def subsets(players: Sequence[str]) -> list[Subset]:
    """All 2^m subsets, the empty one first, all of them last."""
    return [frozenset(some) for size in range(len(players) + 1) for some in combinations(players, size)]


def shapley(players: Sequence[str], value: Mapping[Subset, float]) -> dict[str, float]:
    """φᵢ = Σ over S without i of |S|!·(m − |S| − 1)!/m! · (v(S ∪ {i}) − v(S)).

    Args:
        players: m names.
        value: v(S) of every subset of them.

    Returns:
        φ by name; together they are v(all) − v(none).
    """
    m = len(players)
    return {
        player: sum(
            (value[some | {player}] - value[some]) / (m * comb(m - 1, len(some)))
            for some in subsets(players)
            if player not in some
        )
        for player in players
    }
