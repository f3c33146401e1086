"""From judgements to the arrays that the reward model learns from. Knows nothing about stores or versions.

Notation:
    n: judgements, d: embedding size, a: number of actions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from plaudit.core.events import Features
from plaudit.core.experience import Judgement
from plaudit_models.features import FeatureSpace, features
from plaudit_models.reward_model import Evidence

Floats32 = npt.NDArray[np.float32]


def stack(rows: Sequence[Features]) -> tuple[Floats32, Floats32]:
    """Embeddings ``[n, d]`` and base logits ``[n, a]``; n ≥ 1."""
    return np.stack([row.embedding for row in rows]), np.stack([row.base_logits for row in rows])


def evidence_of(
    space: FeatureSpace, judged: Sequence[tuple[Features, Judgement]], action_index: Mapping[str, int]
) -> Evidence:
    """What the judgements say about actions at their features. Actions outside ``action_index`` are left out."""
    n, a = len(judged), space.n_actions
    rewards, known_mask = np.zeros((n, a)), np.zeros((n, a), np.bool_)
    for i, (_, judgement) in enumerate(judged):
        for action, reward in judgement.rewards.items():
            k = action_index.get(action)
            if k is not None:
                rewards[i, k], known_mask[i, k] = reward, True
    if n == 0:
        phi = np.zeros((0, space.n_features))
    else:
        phi = features(space, *stack([row for row, _ in judged]))
    return Evidence(space, phi, rewards, known_mask, np.array([judgement.weight for _, judgement in judged]))
