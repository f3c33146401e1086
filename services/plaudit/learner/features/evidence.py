"""From judgements to the arrays that the reward models learn from: of actions, and of dynamic actions of a request.

Knows nothing about stores or versions.

Notation:
    n: judgements, d: embedding size, a: number of actions, k: dynamic actions of one request
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plaudit.core.events import Features
from plaudit.core.experience import Label
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionEvidence,
    DynamicActionSpace,
    DynamicActionState,
    evidence_of_list,
)
from plaudit_models.bandit.features import FeatureSpace, features
from plaudit_models.bandit.reward_model import Evidence, RewardState

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """A decision between dynamic actions as one version sees it.

    Attributes:
        ids: of the dynamic actions, in the order of the request.
        seen: the context, and what the version makes of their texts.
    """

    ids: Sequence[str]
    seen: ActionList


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A label with the features of its decision; ``listed`` where that was between dynamic actions."""

    features: Features
    label: Label
    listed: Listed | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Both reward states. A label goes into one of them: what is said of dynamic actions never mixes with actions.

    Attributes:
        reward: of the model's actions.
        dynamic_actions: of dynamic actions; None where the trunk's version cannot score any.
    """

    reward: RewardState
    dynamic_actions: DynamicActionState | None

    @property
    def spaces(self) -> tuple[FeatureSpace, DynamicActionSpace | None]:
        return self.reward.space, None if self.dynamic_actions is None else self.dynamic_actions.space

    def add(self, said: Sequence[Said], action_index: Mapping[str, int]) -> Learned:
        of_actions, dynamic = _parted(said)
        reward, dynamic_actions = self.reward, self.dynamic_actions
        if of_actions:
            reward = reward.add(evidence_of(reward.space, of_actions, action_index))
        if dynamic and dynamic_actions is not None:
            dynamic_actions = dynamic_actions.add(dynamic_evidence_of(dynamic_actions.space, dynamic))
        return Learned(reward, dynamic_actions)

    def subtract(self, said: Sequence[Said], action_index: Mapping[str, int]) -> Learned:
        """Undo :meth:`add` of the same."""
        of_actions, dynamic = _parted(said)
        reward, dynamic_actions = self.reward, self.dynamic_actions
        if of_actions:
            reward = reward.subtract(evidence_of(reward.space, of_actions, action_index))
        if dynamic and dynamic_actions is not None:
            dynamic_actions = dynamic_actions.subtract(dynamic_evidence_of(dynamic_actions.space, dynamic))
        return Learned(reward, dynamic_actions)


def _parted(said: Iterable[Said]) -> tuple[list[tuple[Features, Label]], list[tuple[Listed, Label]]]:
    of_actions, dynamic = [], []
    for each in said:
        if each.listed is None:
            of_actions.append((each.features, each.label))
        else:
            dynamic.append((each.listed, each.label))
    return of_actions, dynamic


def stack(rows: Sequence[Features]) -> tuple[Floats32, Floats32]:
    """Embeddings ``[n, d]`` and base logits ``[n, a]``; n ≥ 1."""
    return np.stack([row.embedding for row in rows]), np.stack([row.base_logits for row in rows])


def evidence_of(
    space: FeatureSpace, judged: Sequence[tuple[Features, Label]], action_index: Mapping[str, int]
) -> Evidence:
    """What the judgements say about actions at their features. Actions outside ``action_index`` are left out."""
    n, a = len(judged), space.n_actions
    rewards, known_mask = np.zeros((n, a)), np.zeros((n, a), np.bool_)
    for i, (_, label) in enumerate(judged):
        for action, reward in label.rewards.items():
            k = action_index.get(action)
            if k is not None:
                rewards[i, k], known_mask[i, k] = reward, True
    if n == 0:
        phi = np.zeros((0, space.n_features))
    else:
        phi = features(space, *stack([row for row, _ in judged]))
    return Evidence(space, phi, rewards, known_mask, np.array([label.weight for _, label in judged]))


def dynamic_evidence_of(
    space: DynamicActionSpace, judged: Iterable[tuple[Listed, Label]]
) -> Iterable[DynamicActionEvidence]:
    """What the judgements say about dynamic actions, one after another: long lists are large."""
    for listed, label in judged:
        known_mask = np.array([id_ in label.rewards for id_ in listed.ids])
        rewards = np.array([label.rewards.get(id_, 0.0) for id_ in listed.ids])
        yield evidence_of_list(space, listed.seen, rewards, known_mask, label.weight)
