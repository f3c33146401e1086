"""One batch of decoded requests → for each an action with its propensity, and the features it was picked from.

Runs on a worker's thread. Knows nothing about queues, ids or answers.

Notation:
    b: batch size, d: embedding size, a: number of actions, k: number of dynamic actions
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from plaudit.core.ports.runtime import ServableModel
from plaudit.serving.engine.decoding import Arrays
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import BatchTimes, Statistics
from plaudit_models.bandit.policy import Bool, Float32, Float64, probabilities, sample
from plaudit_models.preprocess import Batch


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationRequest:
    """A decoded request, bound to the version it was decoded for.

    Attributes:
        inputs: graph inputs by modality name, without the batch axis.
        allowed: ``[a]``, True where the action may be picked; at least one.
        greedy: pick the most probable action.
        outputs: native outputs of an imported graph that are wanted too.
        vectors: ``[k, d]``, of the dynamic actions that are picked from instead of the actions; None: the actions.
        asked_ns: when, on the clock of ``time.monotonic_ns``.
    """

    model: ServableModel
    inputs: Arrays
    allowed: Bool
    greedy: bool = False
    outputs: tuple[str, ...] = ()
    vectors: Float32 | None = None
    asked_ns: int = field(default_factory=time.monotonic_ns)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What the version makes of a question; ``a`` is ``k`` where it was between dynamic actions.

    Attributes:
        embedding: ``[d]``.
        base_logits: ``[a]``.
        probabilities: ``[a]``, of the policy, exploration floor included.
        action: index of the action picked.
        propensity: probability with which it was picked; 1 if greedy.
        native: the native outputs that were asked for, without the batch axis.
        explored: the action was drawn although another one was more probable.
    """

    embedding: Float32
    base_logits: Float32
    probabilities: Float64
    action: int
    propensity: float
    native: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    explored: bool = False


class Evaluator:
    """One worker's; not for several threads.

    Args:
        statistics: of all versions, where this worker's batches are counted too.
        capacity: the most questions of one batch.
        rng: of the sampling.
    """

    def __init__(
        self, metrics: ServingMetrics, statistics: Statistics, capacity: int, rng: np.random.Generator
    ) -> None:
        self._metrics = metrics
        self._statistics = statistics
        self._capacity = capacity
        self._rng = rng
        self._buffers: WeakKeyDictionary[ServableModel, Batch] = WeakKeyDictionary()

    def run(self, questions: Sequence[EvaluationRequest]) -> list[Evaluation | Exception]:
        """Answers in the order of the questions.

        A batch that spans a swap holds questions of two versions; each version runs on its own, and one that fails
        fails its own questions alone. So do inputs of different free lengths.
        """
        groups: dict[Hashable, list[int]] = {}
        for place, question in enumerate(questions):
            groups.setdefault(_shares_arrays_with(question), []).append(place)
        answers: list[Evaluation | Exception] = [RuntimeError("not evaluated")] * len(questions)
        for places in groups.values():
            group = [questions[place] for place in places]
            counted = self._metrics.versions.of(group[0].model)
            counted.batch_requests.observe(len(group))
            began_s = time.perf_counter()
            try:
                outcomes: Sequence[Evaluation | Exception] = self._evaluate(group[0].model, group)
            except Exception as error:
                outcomes = [error] * len(group)
                counted.failures.inc(len(group))
                waited_ns = sum(time.monotonic_ns() - question.asked_ns for question in group)
                self._statistics.of(group[0].model).failed(len(group), waited_ns)
            counted.inference_seconds.observe(time.perf_counter() - began_s)
            for place, outcome in zip(places, outcomes, strict=True):
                answers[place] = outcome
        return answers

    def _evaluate(self, model: ServableModel, group: Sequence[EvaluationRequest]) -> Sequence[Evaluation | Exception]:
        manifest = model.manifest
        began_ns = time.monotonic_ns()
        buffer = self._buffers.get(model)
        if buffer is None:
            buffer = self._buffers[model] = Batch(manifest.spec, self._capacity)
        wanted = list(dict.fromkeys(name for question in group for name in question.outputs))
        inputs = buffer.fill([question.inputs for question in group])
        filled_ns = time.monotonic_ns()
        embedding, base_logits, native = model.trunk(inputs, wanted)
        scores = model.head(embedding, base_logits)  # [b, a]
        inferred_ns = time.monotonic_ns()
        finite: Bool = np.asarray(np.isfinite(scores).all(axis=1))
        if not finite.all():
            wrong = sum(question.vectors is None for question, fine in zip(group, finite, strict=True) if not fine)
            self._metrics.versions.of(model).failures.inc(wrong)
            scores = np.where(finite[:, None], scores, 0.0)
        policy = probabilities(scores, np.stack([question.allowed for question in group]), manifest.floor)
        best = policy.argmax(axis=1).tolist()
        uniforms = self._rng.random(len(group))
        sampled = sample(policy, uniforms).tolist()
        outcomes: list[Evaluation | Exception] = []
        for row, question in enumerate(group):
            if question.vectors is not None:
                outcomes.append(self._pick_dynamic_action(question, question.vectors, embedding[row], uniforms[row]))
                continue
            if not finite[row]:
                outcomes.append(FloatingPointError(f"version {manifest.version} gave scores that are not finite"))
                continue
            action = best[row] if question.greedy else sampled[row]
            # Rows sum to 1 but for rounding; a probability is never above it.
            propensity = 1.0 if question.greedy else min(1.0, float(policy[row, action]))
            outcomes.append(
                Evaluation(
                    embedding[row],
                    base_logits[row],
                    policy[row],
                    action,
                    propensity,
                    {name: native[name][row] for name in question.outputs},
                    action != best[row],
                )
            )
        queue_ns = [began_ns - question.asked_ns for question in group]
        observe = self._metrics.versions.of(model).queue_seconds.observe
        for waited_ns in queue_ns:
            observe(waited_ns / 1e9)
        times = BatchTimes(
            rows=len(group),
            queue_ns=sum(queue_ns),
            input_ns=filled_ns - began_ns,
            infer_ns=inferred_ns - filled_ns,
            output_ns=time.monotonic_ns() - inferred_ns,
        )
        self._statistics.of(model).answered(times)
        return outcomes

    def _pick_dynamic_action(
        self, question: EvaluationRequest, vectors: Float32, embedding: Float32, uniform: float
    ) -> Evaluation | Exception:
        """By the rules of the actions: the same floor, spread over the dynamic actions.

        Args:
            vectors: ``[k, d]``.
            embedding: ``[d]``.
            uniform: the draw from [0, 1) that decides.
        """
        manifest = question.model.manifest
        base_logits: Float32 = vectors @ embedding
        scores = question.model.dynamic_scores(embedding, vectors, base_logits)
        if not np.isfinite(scores).all():
            self._metrics.versions.of(question.model).failures.inc()
            return FloatingPointError(f"version {manifest.version} gave scores of dynamic actions that are not finite")
        policy = probabilities(scores[None], np.ones((1, len(scores)), np.bool_), manifest.floor)
        best = int(policy[0].argmax())
        action = best if question.greedy else int(sample(policy, np.array([uniform]))[0])
        propensity = 1.0 if question.greedy else min(1.0, float(policy[0, action]))
        return Evaluation(embedding, base_logits, policy[0], action, propensity, explored=action != best)


def _shares_arrays_with(question: EvaluationRequest) -> Hashable:
    """Questions with an equal key fit into the same arrays."""
    model = question.model
    if not model.manifest.spec.has_free_lengths:
        return id(model)
    return id(model), *((name, array.shape) for name, array in sorted(question.inputs.items()))
