"""The use case of prediction: content in; an action with its exact propensity out, signed and logged.

Every request is bound to one version before it is decoded and stays with it to the end, whatever is swapped meanwhile:
tokenizer, graphs, action set, floor, version number and digest always belong together. Runs on its caller's thread.
Knows no transport.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plaudit.core.errors import Expired, InvalidInput, Overloaded
from plaudit.core.events import Content, Decision, DynamicAction, Features, Role
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.serving.engine.batcher import NO_DEADLINE, Batcher, Caller, ClientGone
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.engine.decoding import Arrays, check_modalities, decode_content, is_encoded
from plaudit.serving.engine.dynamic_actions import ActionVectors, check_dynamic_actions
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest
from plaudit.serving.models.experiment_reporter import UNWATCHED, Shadow, Shown
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.models.served_models import ServedModel, ServedModels
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.use_cases.explain import shapley, subsets
from plaudit_models.bandit.policy import Bool, Float32, Float64
from plaudit_models.preprocess import Limits
from plaudit_models.spec import ModelSpec

MAX_EXPLAINED_MODALITIES: Final = 6
"""An explanation evaluates every subset of the modalities given."""


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """Attributes:
    model: "" is the only model that is served.
    allowed_actions: empty allows all.
    dynamic_actions: what is picked from instead of the model's actions; empty: the actions.
    top_k: how many scores to list; 0 is all.
    """

    content: Mapping[str, Content]
    model: str = ""
    user_id: str = ""
    allowed_actions: tuple[str, ...] = ()
    greedy: bool = False
    top_k: int = 0
    explain: bool = False
    request_id: str = ""
    dynamic_actions: tuple[DynamicAction, ...] = ()
    user_group: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Attributes:
    action: or the id of a candidate.
    propensity: probability with which ``action`` was picked, exploration included; 1 if greedy.
    scores: allowed actions, or dynamic actions, with their probabilities, most probable first.
    contributions: what each modality added to the picked action's probability; empty unless asked for.
    """

    prediction_id: str
    action: str
    propensity: float
    scores: Sequence[tuple[str, float]]
    version: int
    version_digest: str
    role: Role
    model: str
    request_id: str
    contributions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Several inputs for one model, each a prediction of its own.

    Attributes:
        version: a version that is loaded; None is whatever serves this user.
        outputs: native outputs of an imported graph that are wanted too.
    """

    rows: Sequence[Mapping[str, Content]]
    model: str = ""
    version: int | None = None
    outputs: tuple[str, ...] = ()
    user_id: str = ""
    allowed_actions: tuple[str, ...] = ()
    greedy: bool = False
    request_id: str = ""
    user_group: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What one row got.

    Attributes:
        probabilities: ``[a]``, of the policy, exploration floor included.
        embedding: ``[d]``.
        native: the native outputs that were asked for, without the batch axis.
    """

    prediction_id: str
    action: str
    propensity: float
    probabilities: Float64
    embedding: Float32
    native: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class RowsAnswer:
    """``rows`` in the order they were asked."""

    model: ServableModel
    role: Role
    rows: Sequence[Answered]


class PredictUseCase:
    """Args:
    limits: what is decoded; beyond them a request is refused.
    store_content: log the content with the decision, where a model can be trained on it.
    decoders: images and sounds that are decoded at once. Decoders let go of the interpreter in the middle, and many
        that want it back spend their time on changing hands.
    clock: UTC seconds since the epoch.
    """

    def __init__(
        self,
        models: ServedModels,
        ids: PredictionIds,
        recorder: DecisionLog,
        metrics: ServingMetrics,
        *,
        limits: Limits,
        store_content: bool,
        decoders: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._ids = ids
        self._recorder = recorder
        self._metrics = metrics
        self._limits = limits
        self._store_content = store_content
        self._decoders = threading.Semaphore(decoders)
        self._shadow = Shadow(lambda content, model: decode_content(content, model, limits))
        self._candidates = ActionVectors(metrics)
        self._clock = clock

    def predict(self, request: PredictionRequest, caller: Caller = NO_DEADLINE) -> Prediction:
        """Answer one request. Blocks until it is answered.

        Raises:
            InvalidInput: a field is wrong.
            UnknownModel, NoLiveModel, Overloaded, Expired, Gone, Draining: as they say.
        """
        began_s = time.perf_counter()
        served = self._models.pick(request.model)
        with served.admission.places(), served.live.watch(request.user_id):
            found = self._find(request, served, caller)
            if not caller.takes():  # he left while it was computed, and will never know
                raise ClientGone
            decided = self._decide(
                request,
                served.live,
                found.model,
                found.role,
                request.content,
                found.evaluated,
                dynamic_actions=request.dynamic_actions,
            )
        counted = self._metrics.versions.of(found.model)
        counted.answered(time.perf_counter() - began_s, found.evaluated.explored)
        if served.live.experiment is not None and not request.dynamic_actions:  # what the shadow compares are actions
            self._compare(served, found.model, found.allowed, [(request.content, decided)])
        return _prediction(request, served.live.name, found, decided.prediction_id)

    def preview(self, request: PredictionRequest, caller: Caller = NO_DEADLINE) -> Prediction:
        """What the answer would be now: with no prediction id, and not logged.

        Raises:
            Overloaded: there are requests that wait for a real answer.
            Exception: what :meth:`predict` raises.
        """
        served = self._models.pick(request.model)
        if served.batcher.waiting():
            raise Overloaded(f"the queue of model {served.live.name!r}", 0)
        with served.admission.places():
            found = self._find(request, served, caller)
        return _prediction(request, served.live.name, found, "")

    def predict_rows(self, request: RowsRequest, caller: Caller = NO_DEADLINE) -> RowsAnswer:
        """Answer each row: all of them, or none is decided. Blocks until they are answered.

        Raises:
            InvalidInput: a field is wrong.
            UnknownModel, NotFound, NoLiveModel, Overloaded, Expired, Gone, Draining: as they say.
        """
        began_s = time.perf_counter()
        served = self._models.pick(request.model)
        watched = served.live.watch(request.user_id) if request.version is None else UNWATCHED
        with served.admission.places(len(request.rows)), watched:
            model, role = served.live.bound(request.version, request.user_id)
            allowed = _allowed(model.manifest.spec, request.allowed_actions)
            questions = [
                EvaluationRequest(model, self._decode(row, model, caller), allowed, request.greedy, request.outputs)
                for row in request.rows
            ]
            evaluated = []
            for outcome in served.batcher.submit(questions, caller):
                if isinstance(outcome, Exception):
                    raise outcome
                evaluated.append(outcome)
            if not caller.takes():
                raise ClientGone
            answered = [
                self._decide(request, served.live, model, role, row, each)
                for row, each in zip(request.rows, evaluated, strict=True)
            ]
        counted, took_s = self._metrics.versions.of(model), time.perf_counter() - began_s
        for each in evaluated:
            counted.answered(took_s, each.explored)
        if served.live.experiment is not None:
            self._compare(served, model, allowed, list(zip(request.rows, answered, strict=True)))
        return RowsAnswer(model, role, answered)

    def close(self) -> None:
        """Compute nothing more in the shadow."""
        self._shadow.close()

    def _compare(
        self,
        served: ServedModel,
        model: ServableModel,
        allowed: Bool,
        answered: Sequence[tuple[Mapping[str, Content], Answered]],
    ) -> None:
        """Let a version in the shadow, if there is one, make what it can of what was answered."""
        experiment = served.live.experiment
        if experiment is None or not experiment.rollout.shadow:
            return
        for content, answer in answered:
            shown = Shown(answer.prediction_id, content, model, answer.probabilities, allowed)
            self._shadow.answered(experiment, shown, served.batcher.waiting)

    def _find(self, request: PredictionRequest, served: ServedModel, caller: Caller) -> _Found:
        model, role = served.live.serving_for(request.user_id)
        allowed = _allowed(model.manifest.spec, request.allowed_actions)
        if request.top_k < 0:
            raise InvalidInput("top_k", f"{request.top_k} is negative; 0 lists all actions")
        if request.explain:
            _check_explainable(request.content, model.manifest.spec)
        if request.dynamic_actions:
            self._check_dynamic_actions(request, model.manifest.spec)
        inputs = self._decode(request.content, model, caller)
        vectors = self._vectors(request.dynamic_actions, model, caller) if request.dynamic_actions else None
        evaluated = served.batcher.ask(
            EvaluationRequest(model, inputs, allowed, request.greedy, vectors=vectors), caller
        )
        contributions = {}
        if request.explain:
            contributions = _explain(served.batcher, model, inputs, allowed, vectors, evaluated, caller)
        return _Found(model, role, allowed, evaluated, contributions)

    def _check_dynamic_actions(self, request: PredictionRequest, spec: ModelSpec) -> None:
        if request.allowed_actions:
            raise InvalidInput("dynamic_actions", "are given together with allowed_actions; give one of the two")
        check_dynamic_actions(request.dynamic_actions, spec, max_text_bytes=self._limits.max_text_bytes)

    def _vectors(self, dynamic_actions: Sequence[DynamicAction], model: ServableModel, caller: Caller) -> Float32:
        if time.monotonic() >= caller.deadline_s:
            raise Expired
        return self._candidates.of(dynamic_actions, model)

    def _decode(self, content: Mapping[str, Content], model: ServableModel, caller: Caller) -> Arrays:
        check_modalities(content, model.manifest.spec)
        if time.monotonic() >= caller.deadline_s:
            raise Expired
        began_s = time.perf_counter()
        try:
            if not is_encoded(content):
                return decode_content(content, model, self._limits)
            with self._decoders:
                return decode_content(content, model, self._limits)
        finally:
            self._metrics.versions.of(model).decode_seconds.observe(time.perf_counter() - began_s)

    def _decide(
        self,
        request: PredictionRequest | RowsRequest,
        live: LiveModel,
        model: ServableModel,
        role: Role,
        content: Mapping[str, Content],
        evaluated: Evaluation,
        dynamic_actions: tuple[DynamicAction, ...] = (),
    ) -> Answered:
        """Sign and log what was decided."""
        manifest = model.manifest
        action = dynamic_actions[evaluated.action].id if dynamic_actions else manifest.spec.actions[evaluated.action]
        now_s = self._clock()
        prediction_id = self._ids.sign(
            SignedPrediction(
                now_s, live.name, manifest.version, action, evaluated.propensity, dynamic=bool(dynamic_actions)
            )
        )
        self._recorder.record(
            Decision(
                prediction_id=prediction_id,
                model=live.name,
                time_s=now_s,
                user_id=request.user_id,
                version=manifest.version,
                version_digest=model.digest,
                role=role,
                action=action,
                propensity=evaluated.propensity,
                allowed_actions=request.allowed_actions,
                greedy=request.greedy,
                request_id=request.request_id,
                features=Features(manifest.trunk_digest, evaluated.embedding, evaluated.base_logits),
                content=content if self._store_content and manifest.trainable else {},
                dynamic_actions=dynamic_actions,
                user_group=request.user_group,
            )
        )
        return Answered(
            prediction_id,
            action,
            evaluated.propensity,
            evaluated.probabilities,
            evaluated.embedding,
            evaluated.native,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a request came to, before anything is decided by it."""

    model: ServableModel
    role: Role
    allowed: Bool
    evaluated: Evaluation
    contributions: Mapping[str, float]


def _prediction(request: PredictionRequest, name: str, found: _Found, prediction_id: str) -> Prediction:
    manifest, evaluated = found.model.manifest, found.evaluated
    actions, allowed = manifest.spec.actions, found.allowed
    if request.dynamic_actions:
        actions = tuple(candidate.id for candidate in request.dynamic_actions)
        allowed = _all_allowed(len(actions))
    return Prediction(
        prediction_id=prediction_id,
        action=actions[evaluated.action],
        propensity=evaluated.propensity,
        scores=_scores(actions, evaluated.probabilities, allowed, request.top_k),
        version=manifest.version,
        version_digest=found.model.digest,
        role=found.role,
        model=name,
        request_id=request.request_id,
        contributions=found.contributions,
    )


def _check_explainable(content: Mapping[str, Content], spec: ModelSpec) -> None:
    if len(content) > MAX_EXPLAINED_MODALITIES:
        raise InvalidInput(
            "explain", f"{len(content)} modalities are given; explanations take {MAX_EXPLAINED_MODALITIES} at most"
        )
    needed = [name for name, modality in spec.modalities.items() if modality.required]
    if needed:
        raise InvalidInput("explain", f"leaves modalities out in turn, but {spec.name!r} cannot do without {needed}")


def _explain(
    batcher: Batcher[EvaluationRequest, Evaluation],
    model: ServableModel,
    inputs: Arrays,
    allowed: Bool,
    vectors: Float32 | None,
    evaluated: Evaluation,
    caller: Caller,
) -> dict[str, float]:
    """Each subset is a question of its own, so explanations share batches and wait their turn like everyone."""
    every = subsets(list(inputs))
    value = {every[-1]: float(evaluated.probabilities[evaluated.action])}
    questions = [
        EvaluationRequest(model, {name: inputs[name] for name in some}, allowed, greedy=True, vectors=vectors)
        for some in every[:-1]
    ]
    for some, outcome in zip(every, batcher.submit(questions, caller), strict=False):
        if isinstance(outcome, Exception):
            raise outcome
        value[some] = float(outcome.probabilities[evaluated.action])
    return shapley(list(inputs), value)


def _allowed(spec: ModelSpec, actions: Sequence[str]) -> Bool:
    """``[a]``, True where the action may be picked. Raises InvalidInput naming the entry."""
    if not actions:
        return _all_allowed(len(spec.actions))
    allowed = np.zeros(len(spec.actions), np.bool_)
    for place, action in enumerate(actions):
        where = f"allowed_actions[{place}]"
        if not action:
            raise InvalidInput(where, "is an empty string; leave the list empty to allow every action")
        if not spec.has_action(action):
            raise InvalidInput(where, f"{action[:80]!r} is not an action of {spec.name!r}; {_some(spec.actions)}")
        index = spec.action_index(action)
        if allowed[index]:
            raise InvalidInput(where, f"{action!r} is there twice")
        allowed[index] = True
    return allowed


@lru_cache
def _all_allowed(n_actions: int) -> Bool:
    allowed = np.ones(n_actions, np.bool_)
    allowed.setflags(write=False)
    return allowed


def _some(actions: Sequence[str], shown: int = 20) -> str:
    more = f" and {len(actions) - shown} more" if len(actions) > shown else ""
    return f"there are {list(actions[:shown])}{more}"


def _scores(actions: Sequence[str], probabilities: Float64, allowed: Bool, top_k: int) -> list[tuple[str, float]]:
    """Most probable first; equals in the order of the action set."""
    probable = probabilities.tolist()
    listed = np.argsort(-probabilities, kind="stable").tolist()
    if not allowed.all():
        listed = [index for index in listed if allowed[index]]
    return [(actions[index], probable[index]) for index in listed[: top_k or None]]
