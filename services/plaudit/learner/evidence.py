"""From judgements to the arrays that the reward models learn from: of actions, and of candidates of a request.

Knows nothing about stores or versions.

Notation:
    n: judgements, d: embedding size, a: number of actions, k: candidates of one request
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plaudit.core.events import Features
from plaudit.core.experience import Judgement
from plaudit_models.candidates import CandidateEvidence, CandidateList, CandidateSpace, CandidateState, evidence_of_list
from plaudit_models.features import FeatureSpace, features
from plaudit_models.reward_model import Evidence, RewardState

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """A decision between candidates as one version sees it.

    Attributes:
        ids: of the candidates, in the order of the request.
        seen: the context, and what the version makes of their texts.
    """

    ids: Sequence[str]
    seen: CandidateList


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A judgement with the features of its decision; ``listed`` where that was between candidates."""

    features: Features
    judgement: Judgement
    listed: Listed | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Both reward states. A judgement goes into one of them: what is said of candidates never mixes with actions.

    Attributes:
        reward: of the model's actions.
        candidates: of candidates; None where the trunk's version cannot score any.
    """

    reward: RewardState
    candidates: CandidateState | None

    @property
    def spaces(self) -> tuple[FeatureSpace, CandidateSpace | None]:
        return self.reward.space, None if self.candidates is None else self.candidates.space

    def add(self, said: Sequence[Said], action_index: Mapping[str, int]) -> Learned:
        of_actions, of_candidates = _parted(said)
        reward, candidates = self.reward, self.candidates
        if of_actions:
            reward = reward.add(evidence_of(reward.space, of_actions, action_index))
        if of_candidates and candidates is not None:
            candidates = candidates.add(candidate_evidence_of(candidates.space, of_candidates))
        return Learned(reward, candidates)

    def subtract(self, said: Sequence[Said], action_index: Mapping[str, int]) -> Learned:
        """Undo :meth:`add` of the same."""
        of_actions, of_candidates = _parted(said)
        reward, candidates = self.reward, self.candidates
        if of_actions:
            reward = reward.subtract(evidence_of(reward.space, of_actions, action_index))
        if of_candidates and candidates is not None:
            candidates = candidates.subtract(candidate_evidence_of(candidates.space, of_candidates))
        return Learned(reward, candidates)


def _parted(said: Iterable[Said]) -> tuple[list[tuple[Features, Judgement]], list[tuple[Listed, Judgement]]]:
    of_actions, of_candidates = [], []
    for each in said:
        if each.listed is None:
            of_actions.append((each.features, each.judgement))
        else:
            of_candidates.append((each.listed, each.judgement))
    return of_actions, of_candidates


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


def candidate_evidence_of(
    space: CandidateSpace, judged: Iterable[tuple[Listed, Judgement]]
) -> Iterable[CandidateEvidence]:
    """What the judgements say about candidates, one after another: long lists are large."""
    for listed, judgement in judged:
        known_mask = np.array([id_ in judgement.rewards for id_ in listed.ids])
        rewards = np.array([judgement.rewards.get(id_, 0.0) for id_ in listed.ids])
        yield evidence_of_list(space, listed.seen, rewards, known_mask, judgement.weight)
