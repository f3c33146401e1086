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
from plaudit_models.bandit.posterior import posterior
from plaudit_models.bandit.reward_model import Evidence, RewardPrior, RewardState, empty_state, evidence_of_actions
from plaudit_models.evaluation.drift import Drift, DriftDetector, Epoch, explains_best

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
        drifts: number of rounds after which each drift was found, and the drift.
    """

    liked: npt.NDArray[np.bool_]
    predicted: Float64
    thumbs: Float64
    judged: Float64
    drifts: list[tuple[int, Drift]]


class _Heard:
    """Everything that was said in a stream, as the learner's store has it."""

    def __init__(self, space: FeatureSpace, slices: Int64) -> None:
        n = len(slices)
        self._space = space
        self._slices = slices
        self._phi = np.zeros((n, space.n_features))
        self._actions, self._thumbs = np.zeros(n, np.int64), np.zeros(n)
        self._n = 0

    def add(self, phi: Float64, actions: Int64, thumbs: Float64) -> None:
        rows = slice(self._n, self._n + len(phi))
        self._phi[rows], self._actions[rows], self._thumbs[rows] = phi, actions, thumbs
        self._n = rows.stop

    def evidence(self, name: str, epoch: Epoch) -> Evidence:
        """Evidence of a slice in an epoch."""
        numbers = np.concatenate([np.arange(each.first, min(each.end, self._n)) for each in epoch])
        rows = numbers[self._slices[numbers] == int(name)]
        return evidence_of_actions(self._space, self._phi[rows], self._actions[rows], self._thumbs[rows])

    def error(self, state: RewardState, prior: RewardPrior, drift: Drift) -> float:
        """Mean squared error of what a state expects of the labels after a change."""
        rows = drift.since + np.flatnonzero(self._slices[drift.since : self._n] == int(drift.slice))
        expected, _ = posterior(state, prior).predict(self._phi[rows])
        of_served = np.clip(expected[np.arange(len(rows)), self._actions[rows]], 0.0, 1.0)
        return float(np.square(of_served - self._thumbs[rows]).mean())


def run_stream(
    stream: Contexts,
    wanted: Int64,
    *,
    batch: int,
    wrong: float,
    seed: int,
    judge_on: Contexts | None = None,
    judge_from: int = 0,
    batch_before: int | None = None,
    forgets: bool = True,
) -> Run:
    """Serve the stream in order; a thumb is up where the answer is the wanted one, and the other way round for a share.

    Args:
        wanted: the action the user wants, ``[n]``.
        batch: rounds between refreshes.
        wrong: share of thumbs that say the opposite.
        judge_from: rounds before the first judgement.
        batch_before: rounds between refreshes before that, if they are others.
        forgets: whether evidence from before a change of what users want is let go of.
    """
    builder = head_builder(Settings())
    rng = np.random.default_rng(seed)
    n, a = stream.base_logits.shape
    space = FeatureSpace("benchmark", a, stream.embedding.shape[1], builder.embedding_features, builder.exclusivity)
    slices = np.asarray(stream.base_logits.argmax(axis=1), np.int64)
    heard, detector = _Heard(space, slices), DriftDetector()
    found: list[tuple[int, Drift]] = []
    served = latest = empty_state(space)
    liked, predicted, thumbs = np.zeros(n, np.bool_), np.zeros(n), np.zeros(n)
    judged = []

    def policy(contexts: Contexts) -> Float64:
        scores = head_scores(builder.settings, served, contexts.embedding, contexts.base_logits)
        return probabilities(scores, np.ones(scores.shape, np.bool_), builder.floor)

    starts = [*range(0, judge_from, batch_before or batch), *range(judge_from, n, batch)]
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        if judge_on is not None and start >= judge_from:
            judged.append(policy(judge_on))
        rows = slice(start, end)
        contexts = stream[rows]
        actions = sample(policy(contexts), rng.random(len(contexts)))
        liked[rows] = actions == wanted[rows]
        thumbs[rows] = liked[rows] ^ (rng.random(len(contexts)) < wrong)
        phi = features(space, contexts.embedding, contexts.base_logits)
        belief, each = posterior(latest, builder.settings.prior), np.arange(len(contexts))
        expected, variance = belief.predict(phi)
        known = np.clip(1.0 - variance / belief.prior_variance(phi), 0.0, 1.0)
        predicted[rows] = np.clip(expected[each, actions], 0.0, 1.0)
        latest = latest.add(evidence_of_actions(space, phi, actions, thumbs[rows]))
        heard.add(phi, actions, thumbs[rows])
        if forgets:
            names, numbers = [str(k) for k in slices[rows]], range(start, end)
            detector = detector.observe(
                names, numbers, [""] * len(names), thumbs[rows], predicted[rows], known[each, actions]
            )
            for drift in detector.pending:
                latest = latest.subtract(heard.evidence(drift.slice, drift.outdated))
                former = [latest.add(heard.evidence(drift.slice, epoch)) for epoch in drift.former]
                errors = [heard.error(state, builder.settings.prior, drift) for state in former]
                best = explains_best(errors, heard.error(latest, builder.settings.prior, drift))
                latest = latest if best is None else former[best]
                detector = detector.settled(() if best is None else drift.former[best])
                found.append((end, drift))
        recent = stream[slice(max(0, end - RECENT), end)]
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
    return Run(liked, predicted, thumbs, np.array(judged), found)
