"""Probabilities of action scores as they are served, logged and evaluated: one function for all three.

Notation:
    b: batch size, a: number of actions, n: contexts, k: actions of one context
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def probabilities(scores: npt.NDArray[np.floating], allowed: Bool, floor: float) -> Float64:
    """π(a | x) = (1 − ε)·softmax(scores over allowed actions) + ε / |allowed|.

    Args:
        scores: shape ``[b, a]``, unnormalised log-probabilities.
        allowed: shape ``[b, a]``, True where the action may be picked; at least one per row.
        floor: ε in [0, 1], the probability mass spread evenly over the allowed actions.

    Returns:
        Probabilities, shape ``[b, a]``; rows sum to 1, disallowed actions are exactly 0.

    Raises:
        ValueError: a shape differs, ε is out of range, or a row allows nothing.
    """
    if scores.ndim != 2 or scores.shape != allowed.shape:
        raise ValueError(f"scores {scores.shape} and allowed {allowed.shape} must both be [b, a]")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor {floor} is not in [0, 1]")
    masked = scores.astype(np.float64)
    uniform: Float64 | float = 1.0 / scores.shape[1]
    if not allowed.all():  # most requests allow everything, and these lines cost as much as the rest
        if not allowed.any(axis=1).all():
            raise ValueError("a row allows no action")
        masked = np.where(allowed, masked, -np.inf)
        uniform = allowed / allowed.sum(axis=1, keepdims=True)
    masked -= masked.max(axis=1, keepdims=True)
    weights = np.exp(masked, out=masked)
    mixed: Float64 = weights * ((1.0 - floor) / weights.sum(axis=1, keepdims=True)) + floor * uniform
    return mixed


def sample(probs: Float64, uniforms: Float64) -> npt.NDArray[np.int64]:
    """Pick one action per row by inverse transform.

    Args:
        probs: shape ``[b, a]``, rows sum to 1.
        uniforms: shape ``[b]``, independent draws from [0, 1).

    Returns:
        Action indices, shape ``[b]``; an action of probability 0 is never picked.
    """
    cumulative = np.cumsum(probs, axis=1)
    cumulative /= cumulative[:, -1:]
    actions: npt.NDArray[np.int64] = (uniforms[:, None] >= cumulative).sum(axis=1)
    return actions


def divergence(policy: Float64, reference: Float64) -> Float64:
    """KL(π ‖ π') of every row, in nats.

    Args:
        policy: π, shape ``[b, a]``.
        reference: π', the same shape, positive wherever π is.

    Returns:
        Shape ``[b]``, ≥ 0.
    """
    positive = policy > 0.0
    ratio = np.divide(policy, reference, out=np.ones_like(policy), where=positive)
    kl: Float64 = np.maximum((policy * np.log(ratio)).sum(axis=1), 0.0)
    return kl


def divergences(policies: Sequence[Float64], references: Sequence[Float64]) -> Float64:
    """:func:`divergence` of each of n contexts over its own actions, ``[k]`` each, in nats, shape ``[n]``."""
    return np.array([divergence(p[None], q[None])[0] for p, q in zip(policies, references, strict=True)])
