"""One batch of decoded requests → for each an action with its propensity, and the features it was picked from.

Runs on a worker's thread. Knows nothing about queues, ids or answers.

Notation:
    b: batch size, d: embedding size, a: number of actions of a request's action set
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from plaudit.core.errors import InvalidInput
from plaudit.core.ports.runtime import RunFailed, ServableModel, TrunkOutputs
from plaudit.core.tracing import Attributes, Tracing
from plaudit.serving.engine.action_sets import ActionSet, Scores
from plaudit.serving.engine.batcher import Run
from plaudit.serving.engine.decoding import Arrays
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import Statistics
from plaudit_models.bandit.policy import Bool, Float32, Float64, probabilities, sample
from plaudit_models.preprocess import Batch


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationRequest:
    """One decoded row, bound to the version it was decoded for.

    Attributes:
        inputs: graph inputs by modality name, without the batch axis.
        actions: what is picked from.
        greedy: pick the most probable action.
        outputs: native outputs of an imported graph that are wanted too.
        traceparent: of the span that waits for the evaluation; "" where nothing is traced.
        submitted_ns: on the clock of ``time.monotonic_ns``.
        deadline_s: of the call, on the clock of ``time.monotonic``; a run ends with the last one of its requests.
    """

    model: ServableModel
    inputs: Arrays
    actions: ActionSet
    greedy: bool = False
    outputs: tuple[str, ...] = ()
    traceparent: str = ""
    submitted_ns: int = field(default_factory=time.monotonic_ns)
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Policy of a version for one row, and the action picked by it.

    Attributes:
        embedding: ``[d]``.
        base_logits: ``[a]``.
        probabilities: ``[a]``, of the policy, exploration floor included.
        action: index of the action picked.
        propensity: probability with which it was picked; 1 if greedy.
        native: the native outputs that were asked for, without the batch axis.
        explored: True if another action was more probable than the one drawn.
    """

    embedding: Float32
    base_logits: Float32
    probabilities: Float64
    action: int
    propensity: float
    native: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    explored: bool = False


def traced(run: Run[EvaluationRequest, Evaluation], tracing: Tracing) -> Run[EvaluationRequest, Evaluation]:
    """``run`` inside a span that links to the requests of the batch."""

    def traced_run(requests: Sequence[EvaluationRequest]) -> Sequence[Evaluation | Exception]:
        manifest = requests[0].model.manifest
        attributes: Attributes = {
            "plaudit.model": manifest.spec.name,
            "plaudit.version": manifest.version,
            "plaudit.requests": len(requests),
        }
        with tracing.span("batch", links=[request.traceparent for request in requests], attributes=attributes):
            return run(requests)

    return traced_run


class Evaluator:
    """Evaluates the batches of one worker; not for several threads.

    Args:
        statistics: of all versions, where this worker's batches are counted too.
        max_batch: the most rows of one batch.
        rng: of the sampling.
    """

    def __init__(
        self, metrics: ServingMetrics, statistics: Statistics, max_batch: int, rng: np.random.Generator
    ) -> None:
        self._metrics = metrics
        self._statistics = statistics
        self._max_batch = max_batch
        self._rng = rng
        self._buffers: WeakKeyDictionary[ServableModel, Batch] = WeakKeyDictionary()

    def run(self, requests: Sequence[EvaluationRequest]) -> list[Evaluation | Exception]:
        """Evaluations in the order of the requests.

        A batch that spans a swap holds requests of two versions; each version runs on its own, and one that fails
        fails its own requests alone. So do inputs of different free lengths. Requests that the graph rejects are found
        by running a batch that fails again in halves: each gets an InvalidInput, the others their answers.
        """
        groups: dict[Hashable, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(_input_key(request), []).append(place)
        evaluations: list[Evaluation | Exception] = [RuntimeError("not evaluated")] * len(requests)
        for places in groups.values():
            group = [requests[place] for place in places]
            model = group[0].model
            counted = self._metrics.versions.of(model)
            counted.batch_requests.observe(len(group))
            started_s = time.perf_counter()
            found: Sequence[Evaluation | Exception]
            try:
                found = self._evaluate(model, group)
            except Exception as error:
                if isinstance(error, RunFailed) and _runs(model):
                    found = self._isolate(model, group, error)
                else:
                    found = self._failed(model, group, error)
            counted.inference_seconds.observe(time.perf_counter() - started_s)
            for place, evaluation in zip(places, found, strict=True):
                evaluations[place] = evaluation
        return evaluations

    def _failed(
        self, model: ServableModel, group: Sequence[EvaluationRequest], error: Exception
    ) -> Sequence[Evaluation | Exception]:
        """The error for each request, counted as the version's."""
        self._metrics.versions.of(model).failures.inc(len(group))
        waited_ns = sum(time.monotonic_ns() - request.submitted_ns for request in group)
        self._statistics.of(model).failed(len(group), waited_ns)
        return [error] * len(group)

    def _isolate(
        self, model: ServableModel, group: Sequence[EvaluationRequest], error: Exception
    ) -> Sequence[Evaluation | Exception]:
        """Evaluations of a batch that failed with ``error`` though the version runs.

        One culprit among b requests costs about 3b rows more; b of them, b·log₂(b).
        """
        if not isinstance(error, RunFailed):  # in a half: out of time
            return self._failed(model, group, error)
        if len(group) == 1:
            names = list(group[0].inputs)
            field = f'content["{names[0]}"]' if len(names) == 1 else "content"
            return [InvalidInput(field, f"the model cannot compute this: {error}")]
        evaluations: list[Evaluation | Exception] = []
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            try:
                evaluations += self._evaluate(model, half)
            except Exception as its_error:
                evaluations += self._isolate(model, half, its_error)
        return evaluations

    def _evaluate(self, model: ServableModel, group: Sequence[EvaluationRequest]) -> Sequence[Evaluation | Exception]:
        """The evaluations of requests of one version whose inputs fit into the same arrays."""
        started_ns = time.monotonic_ns()
        buffer = self._buffers.get(model)
        if buffer is None:
            buffer = self._buffers[model] = Batch(model.manifest.spec, self._max_batch)
        wanted = list(dict.fromkeys(name for request in group for name in request.outputs))
        inputs = buffer.fill([request.inputs for request in group])
        filled_ns = time.monotonic_ns()
        features = model.trunk(inputs, wanted, max(request.deadline_s for request in group))
        scored = [(rows, *_score(model, features, group, rows)) for rows in _rows_scored_together(group)]
        inferred_ns = time.monotonic_ns()
        uniforms = self._rng.random(len(group))
        evaluations: list[Evaluation | Exception] = [RuntimeError("not picked")] * len(group)
        for rows, base_logits, scores in scored:
            drawn = uniforms if len(rows) == len(group) else uniforms[rows]
            picked = self._pick(model, group, rows, features, base_logits, scores, drawn)
            for row, evaluation in zip(rows, picked, strict=True):
                evaluations[row] = evaluation
        self._count(model, group, started_ns, filled_ns, inferred_ns)
        return evaluations

    def _pick(
        self,
        model: ServableModel,
        group: Sequence[EvaluationRequest],
        rows: Sequence[int],
        features: TrunkOutputs,
        base_logits: Float32,
        scores: Scores,
        uniforms: Float64,
    ) -> list[Evaluation | Exception]:
        """One evaluation for each of ``rows``.

        Args:
            rows: ``[r]``, places in ``group``.
            base_logits: ``[r, a]``.
            scores: ``[r, a]``.
            uniforms: ``[r]``, draws from [0, 1) that decide.
        """
        manifest = model.manifest
        finite: Bool = np.asarray(np.isfinite(scores).all(axis=1))
        if not finite.all():
            scores = np.where(finite[:, None], scores, 0.0)
        policy = probabilities(scores, np.stack([group[row].actions.allowed for row in rows]), manifest.floor)
        best = policy.argmax(axis=1).tolist()
        sampled = sample(policy, uniforms).tolist()
        picked: list[Evaluation | Exception] = []
        for place, row in enumerate(rows):
            if not finite[place]:
                picked.append(self._not_finite(model, group[row]))
                continue
            request = group[row]
            action = best[place] if request.greedy else sampled[place]
            # Rows sum to 1 but for rounding; a probability is never above it.
            propensity = 1.0 if request.greedy else min(1.0, float(policy[place, action]))
            picked.append(
                Evaluation(
                    features.embedding[row],
                    base_logits[place],
                    policy[place],
                    action,
                    propensity,
                    {name: features.native[name][row] for name in request.outputs},
                    action != best[place],
                )
            )
        return picked

    def _not_finite(self, model: ServableModel, request: EvaluationRequest) -> Exception:
        """Error for a row whose scores are not finite; the version's, unless the row asks for it."""
        for name, array in request.inputs.items():
            if array.dtype.kind == "f" and not (np.abs(array) < math.sqrt(np.finfo(array.dtype).max)).all():
                return InvalidInput(
                    f'content["{name}"]',
                    "is so large, or missing, that what the model computes from it is not finite",
                )
        self._metrics.versions.of(model).failures.inc()
        return FloatingPointError(f"version {model.manifest.version} gave scores that are not finite")

    def _count(
        self,
        model: ServableModel,
        group: Sequence[EvaluationRequest],
        started_ns: int,
        filled_ns: int,
        inferred_ns: int,
    ) -> None:
        queue_ns = [started_ns - request.submitted_ns for request in group]
        observe = self._metrics.versions.of(model).queue_seconds.observe
        for waited_ns in queue_ns:
            observe(waited_ns / 1e9)
        self._statistics.of(model).answered(
            len(group),
            queue_ns=sum(queue_ns),
            input_ns=filled_ns - started_ns,
            infer_ns=inferred_ns - filled_ns,
            output_ns=time.monotonic_ns() - inferred_ns,
        )


def _runs(model: ServableModel) -> bool:
    """True if the version runs on a recorded row, so that a failure is the requests'."""
    try:
        model.warm([1], again=True)
    except Exception:
        return False
    return True


def _input_key(request: EvaluationRequest) -> Hashable:
    """Requests with an equal key fit into the same input arrays."""
    model = request.model
    if not model.manifest.spec.has_free_lengths:
        return id(model)
    return id(model), *((name, array.shape) for name, array in sorted(request.inputs.items()))


def _rows_scored_together(group: Sequence[EvaluationRequest]) -> Sequence[Sequence[int]]:
    """Places in ``group``, by how their action sets are scored."""
    rows: dict[Hashable, list[int]] = {}
    for row, request in enumerate(group):
        rows.setdefault(request.actions.scored_with, []).append(row)
    return list(rows.values())


def _score(
    model: ServableModel, features: TrunkOutputs, group: Sequence[EvaluationRequest], rows: Sequence[int]
) -> tuple[Float32, Scores]:
    """Base logits ``[r, a]`` and scores ``[r, a]`` of ``rows``, whose action sets are scored together."""
    embedding, base_logits = features.embedding, features.base_logits
    if len(rows) < len(group):
        embedding, base_logits = embedding[rows], base_logits[rows]
    return group[rows[0]].actions.score(model, embedding, base_logits)
