"""The use case of prediction: content in; an action with its exact propensity out, signed and logged.

One pipeline, in which a single prediction is one row: bind → decode → evaluate → commit. A request is bound to one
version before it is decoded and stays with it to the end, whatever is swapped meanwhile: tokenizer, graphs, action set,
floor, version number and digest always belong together. Runs on its call's thread. Knows no transport.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from plaudit.core.errors import InvalidInput, Overloaded
from plaudit.core.events import Content, Decision, DynamicAction, Features, Role
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.core.tracing import NO_TRACING, Tracing
from plaudit.serving.engine.action_sets import ActionSet, fixed_actions
from plaudit.serving.engine.batcher import results
from plaudit.serving.engine.call_context import NO_DEADLINE, CallContext, ClientGone
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.engine.decoding import Arrays, Decoder, decode_content
from plaudit.serving.engine.dynamic_actions import DynamicActionSet, TextVectors, check_dynamic_actions
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest
from plaudit.serving.models.experiment_reporter import GivenAnswer, ShadowEvaluator
from plaudit.serving.models.served_models import Binding, ServedModel, ServedModels
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.use_cases.explain import shapley, subsets
from plaudit_models.preprocess import Limits
from plaudit_models.spec import ModelSpec

MAX_EXPLAINED_MODALITIES: Final = 6
"""An explanation evaluates every subset of the modalities given."""


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


class PredictUseCase:
    """Args:
    limits: sizes beyond which content is refused.
    store_content: log the content with the decision, where a model can be trained on it.
    max_decoding: images and sounds that are decoded at once.
    clock: UTC seconds since the epoch.
    """

    def __init__(
        self,
        models: ServedModels,
        ids: PredictionIds,
        decision_log: DecisionLog,
        metrics: ServingMetrics,
        *,
        limits: Limits,
        store_content: bool,
        max_decoding: int,
        tracing: Tracing = NO_TRACING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._ids = ids
        self._decision_log = decision_log
        self._metrics = metrics
        self._limits = limits
        self._store_content = store_content
        self._decoder = Decoder(limits, metrics, max_concurrent=max_decoding)
        self._text_vectors = TextVectors(metrics)
        self._shadow = ShadowEvaluator(lambda content, model: decode_content(content, model, limits))
        self._tracing = tracing
        self._clock = clock

    def predict(
        self, request: PredictionRequest, call: CallContext = NO_DEADLINE, binding: Binding | None = None
    ) -> Predictions:
        """Answer each row, or none of them. Blocks until they are answered.

        Args:
            binding: of the request, where it was bound already; None: to the version that serves its user.

        Raises:
            InvalidInput: a field is wrong.
            UnknownModel, NoLiveModel, Overloaded, Expired, ClientGone, Draining: nothing was decided.
        """
        started_s = time.perf_counter()
        binding = binding or self._models.bind(request.model, request.user_id)
        with binding.served.admission.places(len(request.rows)), binding.counting:
            predictions = self._evaluate(request, binding, call)
            if not call.claim():
                raise ClientGone
            for row, outcome in zip(request.rows, predictions.outcomes, strict=True):
                outcome.prediction_id = self._commit(request, row, predictions, outcome)
        counted, took_s = self._metrics.versions.of(binding.model), time.perf_counter() - started_s
        for outcome in predictions.outcomes:
            counted.answered(took_s, outcome.evaluation.explored)
        self._compare_with_shadow(request, binding.served, predictions)
        if self._tracing.enabled:
            self._note(request, predictions)
        return predictions

    def preview(self, request: PredictionRequest, call: CallContext = NO_DEADLINE) -> Predictions:
        """The prediction as it would be now; it gets no prediction id and is not logged.

        Raises:
            Overloaded: requests wait for a real answer.
            Exception: what :meth:`predict` raises.
        """
        binding = self._models.bind(request.model, request.user_id)
        if binding.served.batcher.waiting():
            raise Overloaded(f"the queue of model {binding.served.live.name!r}", 0)
        with binding.served.admission.places(len(request.rows)):
            return self._evaluate(request, binding, call)

    def close(self) -> None:
        """Compute nothing more in the shadow."""
        self._shadow.close()

    def _evaluate(self, request: PredictionRequest, binding: Binding, call: CallContext) -> Predictions:
        """Decode and evaluate every row."""
        model = binding.model
        if request.explain:
            _check_explainable(request.rows, model.manifest.spec)
        actions = self._action_set(request, model, call)
        with self._tracing.span("decode"):
            inputs = [self._decoder.decode(row, model, call) for row in request.rows]
        evaluations = self._submit(binding, actions, inputs, call, greedy=request.greedy, outputs=request.outputs)
        outcomes = [Outcome(actions.ids[evaluation.action], evaluation) for evaluation in evaluations]
        if request.explain:
            for row, outcome in zip(inputs, outcomes, strict=True):
                outcome.contributions = self._explain(binding, actions, row, outcome.evaluation, call)
        return Predictions(model, binding.role, actions, outcomes)

    def _action_set(self, request: PredictionRequest, model: ServableModel, call: CallContext) -> ActionSet:
        spec, dynamic_actions = model.manifest.spec, request.dynamic_actions
        if not dynamic_actions:
            return fixed_actions(spec, request.allowed_actions)
        if request.allowed_actions:
            raise InvalidInput("dynamic_actions", "are given together with allowed_actions; give one of the two")
        check_dynamic_actions(dynamic_actions, spec, max_text_bytes=self._limits.max_text_bytes)
        call.check_deadline()
        return DynamicActionSet([each.id for each in dynamic_actions], self._text_vectors.of(dynamic_actions, model))

    def _submit(
        self,
        binding: Binding,
        actions: ActionSet,
        inputs: Sequence[Arrays],
        call: CallContext,
        *,
        greedy: bool,
        outputs: tuple[str, ...] = (),
    ) -> list[Evaluation]:
        with self._tracing.span("wait for the model"):
            traceparent = self._tracing.present()
            requests = [EvaluationRequest(binding.model, row, actions, greedy, outputs, traceparent) for row in inputs]
            return results(binding.served.batcher.submit(requests, call))

    def _explain(
        self, binding: Binding, actions: ActionSet, inputs: Arrays, evaluation: Evaluation, call: CallContext
    ) -> dict[str, float]:
        """Each subset of the modalities is evaluated on its own, so explanations share batches like other requests."""
        every = subsets(list(inputs))
        evaluations = self._submit(
            binding, actions, [{name: inputs[name] for name in some} for some in every[:-1]], call, greedy=True
        )
        value = {
            some: float(each.probabilities[evaluation.action])
            for some, each in zip(every, [*evaluations, evaluation], strict=True)
        }
        return shapley(list(inputs), value)

    def _commit(
        self, request: PredictionRequest, row: Mapping[str, Content], predictions: Predictions, outcome: Outcome
    ) -> str:
        """Sign and log a decision; returns its prediction id."""
        manifest, evaluation = predictions.model.manifest, outcome.evaluation
        now_s = self._clock()
        name, dynamic = manifest.spec.name, bool(request.dynamic_actions)
        signed = SignedPrediction(now_s, name, manifest.version, outcome.action, evaluation.propensity, dynamic=dynamic)
        prediction_id = self._ids.sign(signed)
        self._decision_log.record(
            Decision(
                prediction_id=prediction_id,
                model=name,
                time_s=now_s,
                user_id=request.user_id,
                version=manifest.version,
                version_digest=predictions.model.digest,
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
        return prediction_id

    def _compare_with_shadow(self, request: PredictionRequest, served: ServedModel, predictions: Predictions) -> None:
        experiment = served.live.experiment
        # The shadow is compared on the model's own actions alone.
        if experiment is None or not experiment.rollout.shadow or request.dynamic_actions:
            return
        for row, outcome in zip(request.rows, predictions.outcomes, strict=True):
            given = GivenAnswer(
                outcome.prediction_id,
                row,
                predictions.model,
                outcome.evaluation.probabilities,
                predictions.actions.allowed,
            )
            self._shadow.compare(experiment, given, served.batcher.waiting)

    def _note(self, request: PredictionRequest, predictions: Predictions) -> None:
        """Attributes of the call's span."""
        manifest = predictions.model.manifest
        self._tracing.note(
            {
                "plaudit.model": manifest.spec.name,
                "plaudit.version": manifest.version,
                "plaudit.role": str(predictions.role),
                "plaudit.rows": len(predictions.outcomes),
                "plaudit.prediction_id": predictions.outcomes[0].prediction_id,
                "plaudit.request_id": request.request_id,
            }
        )


def _check_explainable(rows: Sequence[Mapping[str, Content]], spec: ModelSpec) -> None:
    for row in rows:
        if len(row) > MAX_EXPLAINED_MODALITIES:
            raise InvalidInput(
                "explain", f"{len(row)} modalities are given; explanations take {MAX_EXPLAINED_MODALITIES} at most"
            )
    needed = [name for name, modality in spec.modalities.items() if modality.required]
    if needed:
        raise InvalidInput("explain", f"leaves modalities out in turn, but {spec.name!r} cannot do without {needed}")
