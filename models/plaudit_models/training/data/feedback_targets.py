"""Training targets from all feedback, as the terms of one likelihood: on single actions, and on pairs.

Knows nothing about content, models or where feedback comes from.

    thumb, rating r of k      reward r of k with weight 1, and 0 of every other action with weight ρ·r: praise of one
                              answer speaks against the others as far as answers are exclusive (ρ)
    correction to k           reward 1 of k and 0 of every other action, with weight 1
    preference of k over l    the pair (k, l), and nothing about either alone

Notation:
    n: experiences, a: number of actions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit_models.bandit.reward_model import PREFERRED_REWARD, REJECTED_REWARD

NO_PAIR: Final = -1

_TOGETHER: Final = PREFERRED_REWARD + REJECTED_REWARD
_APART: Final = PREFERRED_REWARD - REJECTED_REWARD


@dataclass(frozen=True, slots=True, eq=False)
class FeedbackTargets:
    """Terms of the likelihood, a row per experience.

    Attributes:
        reward: float32 ``[n, a]`` in [0, 1]; 0 where nothing is known.
        weight: float32 ``[n, a]``, weight of the feedback on each action, given or implied; 0 is none.
        spoken_mask: bool ``[n, a]``, True where feedback was given on the action itself.
        preferred: int64 ``[n]``, the action that was preferred to ``rejected``; −1 where no pair was compared.
        rejected: int64 ``[n]``; −1 as ``preferred``.
        share: float32 ``[n]``, share of the users who compared them that prefer ``preferred``, in [0, 1].
        trust: float32 ``[n]``, weight of the experience.
    """

    reward: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    spoken_mask: npt.NDArray[np.bool_]
    preferred: npt.NDArray[np.int64]
    rejected: npt.NDArray[np.int64]
    share: npt.NDArray[np.float32]
    trust: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.trust)


def build_feedback_targets(
    rewards_by_action: Sequence[Mapping[int, float]], trust: Sequence[float], n_actions: int, *, exclusivity: float
) -> FeedbackTargets:
    """Terms of the likelihood from the rewards of all actions with feedback.

    Two actions whose rewards are as a preference makes them, ¾ and ¼ or any mean of that and its opposite, were
    compared. Where there is other feedback on one of them too, each action stands for itself.

    Args:
        rewards_by_action: per experience the mean reward in [0, 1] by action.
        trust: weight of each experience.
        exclusivity: ρ, weight of praise of one answer as feedback against each other one.

    Raises:
        ValueError: a reward is not in [0, 1].
    """
    n = len(rewards_by_action)
    reward, weight = np.zeros((n, n_actions), np.float32), np.zeros((n, n_actions), np.float32)
    spoken_mask = np.zeros((n, n_actions), np.bool_)
    preferred, rejected = np.full(n, NO_PAIR, np.int64), np.full(n, NO_PAIR, np.int64)
    share = np.zeros(n, np.float32)
    for i, rewards in enumerate(rewards_by_action):
        for action, value in rewards.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"rewards_by_action: {value} of action {action} in experience {i} is not in [0, 1]")
        if _is_comparison(rewards):
            preferred[i], rejected[i] = sorted(rewards, key=lambda action: -rewards[action])
            share[i] = 0.5 + (rewards[int(preferred[i])] - rewards[int(rejected[i])]) / (2.0 * _APART)
            continue
        if len(rewards) == 1:
            weight[i] = trust[i] * exclusivity * next(iter(rewards.values()))
        for action, value in rewards.items():
            reward[i, action], weight[i, action], spoken_mask[i, action] = value, trust[i], True
    return FeedbackTargets(reward, weight, spoken_mask, preferred, rejected, share, np.array(trust, np.float32))


def _is_comparison(rewards: Mapping[int, float]) -> bool:
    if len(rewards) != 2:
        return False
    first, second = rewards.values()
    return abs(first + second - _TOGETHER) < 1e-6 and abs(first - second) < _APART + 1e-6
