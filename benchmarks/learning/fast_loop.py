"""The learner's fast loop on a stream that is known in advance: serve, hear thumbs, update, refresh, in one process.

Drives the library code that the learner runs, with the settings that it has by default: the reward state, the bounded
step and the served probabilities. Knows nothing about a task.

Notation:
    n: rounds of a stream, e: contexts to judge on, d: embedding size, a: number of actions
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plaudit.compose.learner import head_builder
from plaudit.core.settings import Settings
from plaudit_models.bandit.features import FeatureSpace, Float64, Floats, features
from plaudit_models.bandit.improvement import bounded_step, head_scores
from plaudit_models.bandit.policy import probabilities, sample
from plaudit_models.bandit.reward_model import empty_state, evidence_of_actions, posterior

Int64 = npt.NDArray[np.int64]

RECENT = 256
"""Contexts on which the KL of a step is measured, as many as the learner keeps."""


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """Outputs of the trunk for some inputs: embeddings ``[n, d]`` and base logits ``[n, a]``."""

    embedding: Floats
    base_logits: Floats

    def __getitem__(self, rows: slice | Int64) -> Contexts:
        return Contexts(self.embedding[rows], self.base_logits[rows])

    def __len__(self) -> int:
        return len(self.base_logits)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Results of a stream.

    Attributes:
        liked: True where the served answer was the wanted one, shape ``[n]``.
        predicted: the reward expected of the served answer before its thumb, ``[n]``.
        thumbs: the feedback, 1 for a thumb up, shape ``[n]``.
        judged: probabilities at the contexts to judge on, of the policy before each batch and of the last one,
            ``[batches + 1, e, a]``; empty if there were none.
    """

    liked: npt.NDArray[np.bool_]
    predicted: Float64
    thumbs: Float64
    judged: Float64


def run_stream(
    stream: Contexts, wanted: Int64, *, batch: int, wrong: float, seed: int, judge_on: Contexts | None = None
) -> Run:
    """Serve the stream in order; a thumb is up where the answer is the wanted one, and the other way round for a share.

    Args:
        wanted: the action the user wants, ``[n]``.
        batch: rounds between refreshes.
        wrong: share of thumbs that say the opposite.
    """
    builder = head_builder(Settings())
    rng = np.random.default_rng(seed)
    n, a = stream.base_logits.shape
    space = FeatureSpace("benchmark", a, stream.embedding.shape[1], builder.embedding_features, builder.exclusivity)
    served = latest = empty_state(space)
    liked, predicted, thumbs = np.zeros(n, np.bool_), np.zeros(n), np.zeros(n)
    judged = []

    def policy(contexts: Contexts) -> Float64:
        scores = head_scores(builder.settings, served, contexts.embedding, contexts.base_logits)
        return probabilities(scores, np.ones(scores.shape, np.bool_), builder.floor)

    for start in range(0, n, batch):
        if judge_on is not None:
            judged.append(policy(judge_on))
        rows = slice(start, start + batch)
        contexts = stream[rows]
        actions = sample(policy(contexts), rng.random(len(contexts)))
        liked[rows] = actions == wanted[rows]
        thumbs[rows] = liked[rows] ^ (rng.random(len(contexts)) < wrong)
        phi = features(space, contexts.embedding, contexts.base_logits)
        expected, _ = posterior(latest, builder.settings.prior).predict(phi)
        predicted[rows] = np.clip(expected[np.arange(len(contexts)), actions], 0.0, 1.0)
        latest = latest.add(evidence_of_actions(space, phi, actions, thumbs[rows]))
        recent = stream[slice(max(0, start + batch - RECENT), start + batch)]
        served = bounded_step(
            builder.settings,
            served,
            latest,
            recent.embedding,
            recent.base_logits,
            floor=builder.floor,
            max_kl=builder.max_kl,
        ).state
    if judge_on is not None:
        judged.append(policy(judge_on))
    return Run(liked, predicted, thumbs, np.array(judged))
