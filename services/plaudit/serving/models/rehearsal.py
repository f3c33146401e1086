"""Rehearsal of a version: warmed as a server warms it, and asked its recorded rows on the way that requests take.

What passes serves; what does not is told before anything is published. Knows nothing about registries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from plaudit.core.events import Content, TensorContent
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.wire import contents_from_wire, contents_to_wire
from plaudit.serving.engine.action_sets import fixed_actions
from plaudit.serving.engine.decoding import check_modalities, decode_content
from plaudit.serving.engine.evaluator import EvaluationRequest, Evaluator
from plaudit.serving.models.batch_size import measure_best_batch
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import Statistics
from plaudit_models.limits import Limits
from plaudit_models.spec import BASE_LOGITS

_TOLERANCE: Final = 1e-3


class RehearsalFailed(Exception):
    """A version does not answer as it must; the message says why."""


def rehearse(model: ServableModel, golden: Mapping[str, npt.NDArray[Any]], limits: Limits, max_batch: int) -> None:
    """Raises RehearsalFailed.

    Args:
        golden: recorded inputs, ``[b, …]`` by name, and the base logits they must give; of tensors alone.
        max_batch: the most rows of one batch.
    """
    try:
        best_batch = measure_best_batch(lambda size: model.warm([size], again=True), max_batch)
        model.warm(range(1, best_batch + 1))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise RehearsalFailed(f"batches of its recorded rows cannot be run: {error}") from error
    spec = model.manifest.spec
    rows = len(golden[BASE_LOGITS])
    contents = [
        contents_from_wire(contents_to_wire({name: TensorContent(golden[name][row, ...]) for name in spec.modalities}))
        for row in range(rows)
    ]
    base_logits = _answers(model, contents, limits, max_batch)
    if not np.allclose(base_logits, golden[BASE_LOGITS], rtol=_TOLERANCE, atol=_TOLERANCE):
        worst = float(np.abs(base_logits - golden[BASE_LOGITS]).max())
        raise RehearsalFailed(f"answers to requests differ from what the graph gave before (by {worst:.2g})")


def _answers(
    model: ServableModel, contents: Sequence[Mapping[str, Content]], limits: Limits, max_batch: int
) -> npt.NDArray[np.float32]:
    spec = model.manifest.spec
    actions = fixed_actions(spec, ())
    metrics = ServingMetrics(CollectorRegistry())
    evaluator = Evaluator(metrics, Statistics(), max(max_batch, len(contents)), np.random.default_rng(0))
    requests = []
    for content in contents:
        check_modalities(content, spec)
        inputs = decode_content(content, model, limits)
        requests.append(EvaluationRequest(model, inputs, actions, outputs=tuple(spec.outputs)))
    base_logits = []
    for answer in evaluator.run(requests):
        if isinstance(answer, Exception):
            raise RehearsalFailed(f"a request of its recorded rows fails: {answer}") from answer
        base_logits.append(answer.base_logits)
    return np.stack(base_logits)
