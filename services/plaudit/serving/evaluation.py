"""One batch of decoded requests → for each an action with its propensity, and the features it was picked from.

Runs on the model's thread. Knows nothing about queues, ids or answers.

Notation:
    b: batch size, d: embedding size, a: number of actions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plaudit.core.ports import ServableModel
from plaudit.serving.decoding import Arrays
from plaudit.serving.metrics import ServingMetrics
from plaudit_models.policy import Bool, Float32, Float64, probabilities, sample
from plaudit_models.preprocess import assemble


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A decoded request, bound to the version it was decoded for.

    Attributes:
        inputs: graph inputs by modality name, without the batch axis.
        allowed: ``[a]``, True where the action may be picked; at least one.
        greedy: pick the most probable action.
    """

    model: ServableModel
    inputs: Arrays
    allowed: Bool
    greedy: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """What the version makes of a question.

    Attributes:
        embedding: ``[d]``.
        base_logits: ``[a]``.
        probabilities: ``[a]``, of the policy, exploration floor included.
        action: index of the action picked.
        propensity: probability with which it was picked; 1 if greedy.
    """

    embedding: Float32
    base_logits: Float32
    probabilities: Float64
    action: int
    propensity: float


class Evaluator:
    """Args:
    seed: of the sampling; None is fresh entropy.
    """

    def __init__(self, metrics: ServingMetrics, seed: int | None = None) -> None:
        self._metrics = metrics
        self._rng = np.random.default_rng(seed)

    def run(self, questions: Sequence[Question]) -> list[Evaluated | Exception]:
        """Answers in the order of the questions.

        A batch that spans a swap holds questions of two versions; each version runs on its own, and one that fails
        fails its own questions alone.
        """
        self._metrics.batch_requests.observe(len(questions))
        by_model: dict[int, list[int]] = {}
        for place, question in enumerate(questions):
            by_model.setdefault(id(question.model), []).append(place)
        answers: dict[int, Evaluated | Exception] = {}
        for places in by_model.values():
            group = [questions[place] for place in places]
            with self._metrics.inference_seconds.time():
                try:
                    outcomes: Sequence[Evaluated | Exception] = self._evaluate(group[0].model, group)
                except Exception as error:
                    outcomes = [error] * len(group)
            answers.update(zip(places, outcomes, strict=True))
        return [answers[place] for place in range(len(questions))]

    def _evaluate(self, model: ServableModel, group: Sequence[Question]) -> Sequence[Evaluated | Exception]:
        manifest = model.manifest
        embedding, base_logits = model.trunk(assemble(manifest.spec, [question.inputs for question in group]))
        scores = model.head(embedding, base_logits)  # [b, a]
        finite: Bool = np.asarray(np.isfinite(scores).all(axis=1))
        policy = probabilities(
            np.where(finite[:, None], scores, 0.0), np.stack([question.allowed for question in group]), manifest.floor
        )
        best = policy.argmax(axis=1).tolist()
        sampled = sample(policy, self._rng.random(len(group))).tolist()
        outcomes: list[Evaluated | Exception] = []
        for row, question in enumerate(group):
            if not finite[row]:
                outcomes.append(FloatingPointError(f"version {manifest.version} gave scores that are not finite"))
                continue
            action = best[row] if question.greedy else sampled[row]
            # Rows sum to 1 but for rounding; a probability is never above it.
            propensity = 1.0 if question.greedy else min(1.0, float(policy[row, action]))
            outcomes.append(Evaluated(embedding[row], base_logits[row], policy[row], action, propensity))
        return outcomes
