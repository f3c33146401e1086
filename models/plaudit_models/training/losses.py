"""The losses of pre-training and fine-tuning, as pure functions of logits.

Know nothing about models or data. Every function returns one loss per row; the caller weighs and averages.

Notation:
    b: batch size, a: number of actions
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def action_nll(logits: Tensor, action: Tensor) -> Tensor:
    """−log P(action | x): the supervised loss, and the loss of a correction.

    Args:
        logits: ``[b, a]``, unnormalised log-probabilities.
        action: int64 ``[b]``, the right action.

    Returns:
        Loss in nats, ``[b]``.
    """
    return functional.cross_entropy(logits, action, reduction="none")


def reward_nll(logits: Tensor, action: Tensor, reward: Tensor, *, noise: float = 0.05) -> Tensor:
    """−log likelihood of the users' reward, if a thumb is wrong with probability δ (``noise``).

    The policy's p = P(action | x) is read as the probability that the action was right. An up-thumb (reward 1) then has
    probability δ + (1 − 2δ)·p, a down-thumb (reward 0) one minus that, and a reward r between them r parts of one and
    1 − r of the other: −r·log(δ + (1−2δ)p) − (1−r)·log(1 − δ − (1−2δ)p). With δ > 0 no single thumb has an unbounded
    gradient, so wrong thumbs cannot dominate (Natarajan et al. 2013, "Learning with Noisy Labels", section 3).

    Args:
        logits: ``[b, a]``, unnormalised log-probabilities.
        action: int64 ``[b]``, the action that was served.
        reward: ``[b]``, in [0, 1].
        noise: δ in [0, 0.5).

    Returns:
        Loss in nats, ``[b]``.
    """
    p = torch.softmax(logits, dim=-1).gather(-1, action[:, None])[:, 0]
    up = noise + (1.0 - 2.0 * noise) * p
    return -reward * torch.log(up) - (1.0 - reward) * torch.log1p(-up)


def kl_to_reference(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(π ‖ π_ref) of the policy from the reference policy, ``[b]`` in nats, for logits ``[b, a]`` of both."""
    log_policy = torch.log_softmax(logits, dim=-1)
    log_reference = torch.log_softmax(reference_logits, dim=-1)
    return (log_policy.exp() * (log_policy - log_reference)).sum(dim=-1)
