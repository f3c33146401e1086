"""Objectives of fine-tuning as losses of a policy's logits: of the feedback itself, or by a reward model.

Know nothing about content, anchors or optimisers. An objective is called with the logits of a batch of experiences and
gives one number to descend. *Fresh* means that the rows are seen for the first time in a row of steps on them.

Notation:
    n: experiences, b: rows of a batch, a: number of actions, g: sampled actions per row
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from plaudit_models.training.config import SamplingConfig
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.losses import action_nll, clipped_loss, group_advantages, reward_nll

Rewards = Callable[[Tensor, Tensor], Tensor]
"""Rows ``[b]`` and actions ``[b, g]`` → expected reward of each, ``[b, g]``."""

Logits = Callable[[Tensor], Tensor]
"""Rows ``[b]`` → logits ``[b, a]``."""


class Objective(Protocol):
    def __call__(self, logits: Tensor, rows: Tensor, *, fresh: bool) -> Tensor:
        """Loss of the policy's ``logits`` ``[b, a]`` on ``rows`` ``[b]``, a scalar."""


class Likelihood:
    """Likelihood of the feedback: mean(weight·loss), with −log P(correction | x) where the user gave the right answer
    and the noise-aware likelihood of the reward (:func:`.losses.reward_nll`) otherwise.

    It needs no propensities: it models what users say about the action that was served, whichever way that was picked.
    """

    def __init__(self, experiences: Experiences, *, noise: float) -> None:
        self._action = torch.from_numpy(experiences.action)
        self._reward = torch.from_numpy(experiences.reward)
        self._correction = torch.from_numpy(experiences.correction)
        self._weight = torch.from_numpy(experiences.weight)
        self._noise = noise

    def __call__(self, logits: Tensor, rows: Tensor, *, fresh: bool) -> Tensor:
        correction = self._correction[rows]
        loss = torch.where(
            correction >= 0,
            action_nll(logits, correction.clamp_min(0)),
            reward_nll(logits, self._action[rows], self._reward[rows], noise=self._noise),
        )
        return (self._weight[rows] * loss).mean()


class TargetPolicy:
    """Cross-entropy of the policy to the parent where users like what is served, and as far as they do not, to the
    best policy that stays near it, for action sets that can be enumerated:

        target = (1 − η)·π_parent + η·π*,    π* ∝ π_ref·exp(q/β),    π_ref = (1 − η²)·π_served + η²/a
        η      = 1 − Σ_k π_served,k·q_k      what users miss in what is served

    with π_parent the trunk's policy, π_served that of trunk and head, and π* as in Rafailov et al. 2023, "Direct
    Preference Optimization", equation 4. What the head has learned already the trunk need not learn; it would have to
    unlearn what it was taught. And a policy that is sure and wrong would, without η in its reference, hold on to an
    answer that no user likes: one to which it gives one in ten thousand would have to please by 9.2·β more.

    Args:
        parent_logits: rows ``[b]`` → the parent's logits ``[b, a]``.
        served_logits: those of what is served, as logits.
        rewards: the reward model's q.
        temperature: β > 0, the price of a nat of divergence, in reward.
        allowed_mask: bool ``[n, a]``, where π_ref may be positive; None: everywhere.
    """

    def __init__(
        self,
        parent_logits: Logits,
        served_logits: Logits,
        rewards: Rewards,
        *,
        temperature: float,
        allowed_mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature} must be greater than 0")
        self._parent_logits = parent_logits
        self._served_logits = served_logits
        self._rewards = rewards
        self._temperature = temperature
        self._allowed_mask = None if allowed_mask is None else torch.from_numpy(allowed_mask)

    def __call__(self, logits: Tensor, rows: Tensor, *, fresh: bool) -> Tensor:
        parent = torch.softmax(self._parent_logits(rows), dim=1)
        served = torch.softmax(self._served_logits(rows), dim=1)
        reward = self._rewards(rows, torch.arange(logits.shape[1]).expand(len(rows), -1))
        missed = 1.0 - (served * reward).sum(dim=1, keepdim=True)
        reference = torch.lerp(served, self._uniform(served, rows), missed.square())
        best = torch.softmax(reference.log() + reward / self._temperature, dim=1)
        target = torch.lerp(parent, best, missed)
        return -(target * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()

    def _uniform(self, like: Tensor, rows: Tensor) -> Tensor:
        if self._allowed_mask is None:
            return torch.full_like(like, 1.0 / like.shape[1])
        allowed = self._allowed_mask[rows].to(like.dtype)
        return allowed / allowed.sum(dim=1, keepdim=True)


class Sampled:
    """Expected rewards of sampled answers, relative to each other: the mean of the clipped loss.

    For each content, g actions are drawn from the policy as it stands, a share of them uniformly; an action's advantage
    is how much better its reward is than the group's; and the policy follows advantages as far as the clipped ratio to
    what it was when it drew lets it (Shao et al. 2024, "DeepSeekMath", equation 3). Only what is drawn is scored. The
    KL term is the caller's.

    Uniform draws count like the others, not as seldom as the policy would have drawn them: with that weight, an answer
    given once in ten thousand is followed ten thousand times more slowly, and a policy that is sure and wrong stays so.

    Args:
        experiences: whose contents are answered. What their users said, and how far they are trusted, only speaks
            through ``rewards``: a content is as good as any other.
        rewards: the reward model.
        generator: draws the actions.
    """

    def __init__(
        self, experiences: Experiences, rewards: Rewards, config: SamplingConfig, generator: Generator
    ) -> None:
        mask = experiences.allowed_mask
        self._allowed_mask = None if mask is None else torch.from_numpy(mask)
        self._rewards = rewards
        self._config = config
        self._generator = generator

    def __call__(self, logits: Tensor, rows: Tensor, *, fresh: bool) -> Tensor:
        if self._allowed_mask is not None:
            logits = logits.masked_fill(~self._allowed_mask[rows], -torch.inf)
        log_policy = torch.log_softmax(logits, dim=1)
        if fresh:
            self._draw(log_policy.detach(), rows)
        log_ratio = log_policy.gather(1, self._actions) - self._log_old
        return clipped_loss(log_ratio, self._advantage, clip=self._config.clip).mean()

    def _draw(self, log_policy: Tensor, rows: Tensor) -> None:
        samples, generator = self._config.samples, self._generator
        likely = torch.multinomial(log_policy.exp(), samples, replacement=True, generator=generator)
        if self._allowed_mask is None:
            any_action = torch.randint(log_policy.shape[1], likely.shape, generator=generator)
        else:
            any_action = torch.multinomial(
                self._allowed_mask[rows].float(), samples, replacement=True, generator=generator
            )
        uniform = torch.rand(likely.shape, generator=generator) < self._config.floor
        self._actions = torch.where(uniform, any_action, likely)
        self._log_old = log_policy.gather(1, self._actions)
        self._advantage = group_advantages(self._rewards(rows, self._actions))
