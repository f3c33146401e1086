"""The stages of a prediction in a version that is given: decode → evaluate → explain where asked; later, commit.

A single prediction is one row. Every stage has the same version, so tokenizer, graphs, action set, floor, version
number and digest always belong together, whatever is swapped meanwhile. Runs on its call's thread. Knows nothing about
how a version is found, or whether its answer is still wanted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Content, Decision, DynamicAction, Features, Role
from plaudit.core.limits import MAX_EXPLAINED_MODALITIES
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.core.tracing import Tracing
from plaudit.serving.engine.action_sets import ActionSet, fixed_actions
from plaudit.serving.engine.batcher import Batcher, results
from plaudit.serving.engine.call_context import CallContext
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.engine.decoding import Arrays, Decoder
from plaudit.serving.engine.dynamic_actions import DynamicActionSet, TextVectors, check_dynamic_actions
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest
from plaudit.serving.engine.explain import shapley, subsets
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.limits import Limits
from plaudit_models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """Inputs for one model, each of which gets a prediction of its own.

    Attributes:
        rows: content by modality.
        model: "" is the only model that is served.
        allowed_actions: empty allows all.
        dynamic_actions: what is picked from instead of the model's actions; empty: the model's actions.
        outputs: native outputs of an imported graph that are wanted too.
        explain: tell what each modality contributed.
    """

    rows: Sequence[Mapping[str, Content]]
    model: str = ""
    user_id: str = ""
    user_group: str = ""
    allowed_actions: tuple[str, ...] = ()
    dynamic_actions: tuple[DynamicAction, ...] = ()
    greedy: bool = False
    outputs: tuple[str, ...] = ()
    explain: bool = False
    request_id: str = ""


@dataclass(slots=True, eq=False)
class Outcome:
    """Prediction for one row.

    Attributes:
        action: id of the action picked.
        prediction_id: "" until the prediction is committed.
        contributions: what each modality added to the picked action's probability; empty unless asked for.
    """

    action: str
    evaluation: Evaluation
    prediction_id: str = ""
    contributions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Answer to one request.

    Attributes:
        model: the version that answered.
        actions: what was picked from.
        outcomes: in the order of the request's rows.
    """

    model: ServableModel
    role: Role
    actions: ActionSet
    outcomes: Sequence[Outcome]


class Pipeline:
    """Args:
    limits: sizes beyond which content is refused.
    store_content: log the content with the decision, where a model can be trained on it.
    max_decoding: images and sounds that are decoded at once.
    """

    def __init__(
        self,
        ids: PredictionIds,
        decision_log: DecisionLog,
        metrics: ServingMetrics,
        limits: Limits,
        *,
        store_content: bool,
        max_decoding: int,
        tracing: Tracing,
    ) -> None:
        self._ids = ids
        self._decision_log = decision_log
        self._limits = limits
        self._store_content = store_content
        self._decoder = Decoder(limits, metrics, max_concurrent=max_decoding)
        self._text_vectors = TextVectors(metrics)
        self._tracing = tracing

    def evaluate(
        self,
        request: PredictionRequest,
        model: ServableModel,
        role: Role,
        batcher: Batcher[EvaluationRequest, Evaluation],
        call: CallContext,
    ) -> Predictions:
        """Decode and evaluate every row, and explain it if the request asks. Blocks until all rows are answered.

        Args:
            batcher: of the model.

        Raises:
            InvalidInput: a field is wrong.
            Expired, ClientGone, Draining: of the call, or of the batcher.
        """
        if request.explain:
            _check_explainable(request.rows, model.manifest.spec)
        actions = self._action_set(request, model, call)
        with self._tracing.span("decode"):
            inputs = [self._decoder.decode(row, model, call) for row in request.rows]
        evaluations = self._submit(model, actions, inputs, batcher, call, request.greedy, request.outputs)
        outcomes = [Outcome(actions.ids[evaluation.action], evaluation) for evaluation in evaluations]
        if request.explain:
            for row, outcome in zip(inputs, outcomes, strict=True):
                # Each subset of the modalities is a request of its own, which shares batches like any other.
                every, action = subsets(list(row)), outcome.evaluation.action
                parts = [{name: row[name] for name in some} for some in every[:-1]]
                found = [*self._submit(model, actions, parts, batcher, call, greedy=True), outcome.evaluation]
                value = {some: float(each.probabilities[action]) for some, each in zip(every, found, strict=True)}
                outcome.contributions = shapley(list(row), value)
        return Predictions(model, role, actions, outcomes)

    def commit(self, request: PredictionRequest, predictions: Predictions) -> None:
        """Sign a prediction id for each outcome and record its decision. Returns at once."""
        model, manifest = predictions.model, predictions.model.manifest
        name, dynamic = manifest.spec.name, bool(request.dynamic_actions)
        for row, outcome in zip(request.rows, predictions.outcomes, strict=True):
            now_s, evaluation = time.time(), outcome.evaluation
            outcome.prediction_id = self._ids.sign(
                SignedPrediction(now_s, name, manifest.version, outcome.action, evaluation.propensity, dynamic=dynamic),
                request.user_id,
            )
            self._decision_log.record(
                Decision(
                    prediction_id=outcome.prediction_id,
                    model=name,
                    time_s=now_s,
                    user_id=request.user_id,
                    version=manifest.version,
                    version_digest=model.digest,
                    role=predictions.role,
                    action=outcome.action,
                    propensity=evaluation.propensity,
                    allowed_actions=request.allowed_actions,
                    greedy=request.greedy,
                    request_id=request.request_id,
                    features=Features(manifest.trunk_digest, evaluation.embedding, evaluation.base_logits),
                    content=row if self._store_content and manifest.trainable else {},
                    traceparent=self._tracing.present(),
                    dynamic_actions=request.dynamic_actions,
                    user_group=request.user_group,
                )
            )

    def _action_set(self, request: PredictionRequest, model: ServableModel, call: CallContext) -> ActionSet:
        spec, dynamic_actions = model.manifest.spec, request.dynamic_actions
        if not dynamic_actions:
            return fixed_actions(spec, request.allowed_actions)
        if request.allowed_actions:
            raise InvalidInput("dynamic_actions", "are given together with allowed_actions; give one of the two")
        check_dynamic_actions(dynamic_actions, spec, max_text_bytes=self._limits.max_text_bytes)
        call.check_deadline()
        ids, texts = [each.id for each in dynamic_actions], [each.text for each in dynamic_actions]
        return DynamicActionSet(ids, texts, self._text_vectors.of(dynamic_actions, model))

    def _submit(
        self,
        model: ServableModel,
        actions: ActionSet,
        inputs: Sequence[Arrays],
        batcher: Batcher[EvaluationRequest, Evaluation],
        call: CallContext,
        greedy: bool,
        outputs: tuple[str, ...] = (),
    ) -> list[Evaluation]:
        with self._tracing.span("wait for the model"):
            traceparent = self._tracing.present()
            requests = [
                EvaluationRequest(model, row, actions, greedy, outputs, traceparent, deadline_s=call.deadline_s)
                for row in inputs
            ]
            return results(batcher.submit(requests, call))


def _check_explainable(rows: Sequence[Mapping[str, Content]], spec: ModelSpec) -> None:
    for row in rows:
        if len(row) > MAX_EXPLAINED_MODALITIES:
            raise InvalidInput(
                "explain", f"{len(row)} modalities are given; explanations take {MAX_EXPLAINED_MODALITIES} at most"
            )
    needed = [name for name, modality in spec.modalities.items() if modality.required]
    if needed:
        raise InvalidInput("explain", f"leaves modalities out in turn, but {spec.name!r} cannot do without {needed}")
