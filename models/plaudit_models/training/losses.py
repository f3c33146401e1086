"""Losses of pre-training and fine-tuning, as pure functions of logits.

Know nothing about models or data. Losses are not averaged; the caller weighs and averages.

Notation:
    b: batch size, a: number of actions, g: sampled actions per row
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SAME_REWARD = 1e-4
"""Rewards of a group that differ by less are as good as equal."""


def action_nll(logits: Tensor, action: Tensor) -> Tensor:
    """−log P(action | x): the supervised loss, and the loss of a correction.

    Args:
        logits: ``[b, a]``, unnormalised log-probabilities.
        action: int64 ``[b]``, the right action.

    Returns:
        Loss in nats, ``[b]``.
    """
    return functional.cross_entropy(logits, action, reduction="none")


def shares_nll(logits: Tensor, shares: Tensor) -> Tensor:
    """−Σ share·log P(action | x): the supervised loss where several actions are right.

    Args:
        logits: ``[b, a]``, unnormalised log-probabilities.
        shares: ``[b, a]``, share of each action; rows add up to 1.

    Returns:
        Loss in nats, ``[b]``.
    """
    return -(shares * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def ranking_nll(logits: Tensor, ranking: Tensor) -> Tensor:
    """−log P(ranking | x) where each place is a choice among the actions that are left (Plackett 1975, Luce 1959),
    the mean over the places.

    Args:
        logits: ``[b, a]``, unnormalised log-probabilities.
        ranking: int64 ``[b, r]``, actions from the best on, −1 behind the last; at least one.

    Returns:
        Loss in nats, ``[b]``.
    """
    left = logits
    total, places = torch.zeros(len(logits)), torch.zeros(len(logits))
    for action in ranking.unbind(dim=1):
        given = action >= 0
        at = action.clamp_min(0)
        total = total + torch.where(given, action_nll(left, at), torch.zeros(()))
        places = places + given
        taken = functional.one_hot(at, logits.shape[1]).bool() & given[:, None]
        left = left.masked_fill(taken, torch.finfo(left.dtype).min)
    return total / places


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


def opinion_nll(logits: Tensor, reward: Tensor, *, noise: float = 0.05) -> Tensor:
    """−log likelihood of what users say about actions one by one, if a thumb is wrong with probability δ (``noise``).

    As :func:`reward_nll`, with p = σ(logit) for each action alone: several may be right at once.

    Args:
        logits: log-odds that the action is right, any shape.
        reward: in [0, 1], the same shape.
        noise: δ in [0, 0.5).

    Returns:
        Loss in nats, the same shape.
    """
    up = noise + (1.0 - 2.0 * noise) * torch.sigmoid(logits)
    return -reward * torch.log(up) - (1.0 - reward) * torch.log1p(-up)


def opinion_information(logits: Tensor, *, noise: float = 0.05) -> Tensor:
    """Fisher information of one thumb about the log-odds it is drawn from: what a thumb adds to their precision.

    With p = δ + (1 − 2δ)·σ(u) that is (dp/du)²/(p·(1 − p)); without noise σ(u)·(1 − σ(u)). It is that of a preference
    about u_k − u_l, too.

    Args:
        logits: u, any shape.
        noise: δ in [0, 0.5).

    Returns:
        Of the same shape.
    """
    right = torch.sigmoid(logits)
    up = noise + (1.0 - 2.0 * noise) * right
    return ((1.0 - 2.0 * noise) * right * (1.0 - right)).square() / (up * (1.0 - up))


def preference_nll(preferred: Tensor, rejected: Tensor, share: Tensor, *, noise: float = 0.05) -> Tensor:
    """−log likelihood of preferences under Bradley and Terry (1952): P(k over l) = σ(u_k − u_l).

    A preference is the wrong way round with probability δ (``noise``), as in :func:`opinion_nll`.

    Args:
        preferred: u_k, log-odds that the preferred action is right, ``[b]``.
        rejected: u_l, ``[b]``.
        share: of the users who were asked, how many prefer k, in [0, 1], ``[b]``.

    Returns:
        Loss in nats, ``[b]``.
    """
    return opinion_nll(preferred - rejected, share, noise=noise)


def group_advantages(reward: Tensor) -> Tensor:
    """Advantage of each action over the others drawn for the same content, in standard deviations of them.

    (r_i − mean(r)) / std(r) over the group (Shao et al. 2024, "DeepSeekMath", section 4.1.2), with the deviation of the
    group itself; 0 where all are equal.

    Args:
        reward: ``[b, g]``.

    Returns:
        ``[b, g]``.
    """
    centred = reward - reward.mean(dim=1, keepdim=True)
    return centred / (reward.std(dim=1, correction=0, keepdim=True) + _SAME_REWARD)


def clipped_loss(log_ratio: Tensor, advantage: Tensor, *, clip: float = 0.2) -> Tensor:
    """−min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) with ρ = π(a | x) / π_behaviour(a | x) (Schulman et al. 2017, "Proximal
    Policy Optimization", equation 7; inside the group objective of Shao et al. 2024, equation 3).

    What has moved further than ε in the direction that its advantage asks for has no gradient.

    Args:
        log_ratio: log ρ of each sampled action, ``[b, g]``.
        advantage: A, ``[b, g]``.
        clip: ε in (0, 1).

    Returns:
        Loss, ``[b, g]``.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def kl_to_reference(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(π ‖ π_ref) of the policy from the reference policy, ``[b]`` in nats, for logits ``[b, a]`` of both."""
    log_policy = torch.log_softmax(logits, dim=-1)
    log_reference = torch.log_softmax(reference_logits, dim=-1)
    return (log_policy.exp() * (log_policy - log_reference)).sum(dim=-1)
