"""The use case of prediction: content in; an action with its exact propensity out, signed and logged.

Every request is bound to one version before it is decoded and stays with it to the end, whatever is swapped meanwhile:
tokenizer, graphs, action set, floor, version number and digest always belong together. Knows no transport.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np

from plaudit.core.errors import Expired, InvalidInput, Overloaded, UnknownModel
from plaudit.core.events import Content, Decision, Features, Role
from plaudit.core.ports import ServableModel
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.serving.batcher import Batcher
from plaudit.serving.decisions import DecisionRecorder
from plaudit.serving.decoding import Arrays, check_modalities, decode_content, is_cheap
from plaudit.serving.evaluation import Evaluated, Question
from plaudit.serving.explain import shapley, subsets
from plaudit.serving.live_model import LiveModel
from plaudit.serving.metrics import ServingMetrics
from plaudit_models.policy import Bool, Float64
from plaudit_models.preprocess import Limits
from plaudit_models.spec import ModelSpec

MAX_EXPLAINED_MODALITIES: Final = 6
"""An explanation evaluates every subset of the modalities given."""


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """Attributes:
    model: "" is the only model that is served.
    allowed_actions: empty allows all.
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


@dataclass(frozen=True, slots=True)
class Prediction:
    """Attributes:
    propensity: probability with which ``action`` was picked, exploration included; 1 if greedy.
    scores: allowed actions with their probabilities, most probable first.
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


def pick_model(models: Mapping[str, LiveModel], name: str) -> LiveModel:
    """The model of that name, or the only one if the name is empty.

    Raises:
        UnknownModel: there is none.
        InvalidInput: several are served and none is named.
    """
    if name in models:
        return models[name]
    if name:
        raise UnknownModel(name[:80], sorted(models))
    if len(models) != 1:
        raise InvalidInput("model", f"is empty; name one of {sorted(models)}")
    return next(iter(models.values()))


class Predictor:
    """Args:
    models: what is served, by name.
    batcher: evaluates questions.
    limits: what is decoded; beyond them a request is refused.
    decode_threads: threads that decode images and sounds.
    decode_limit: requests that may be decoding or wait for it.
    store_content: log the content with the decision.
    clock: UTC seconds since the epoch.
    """

    def __init__(
        self,
        models: Mapping[str, LiveModel],
        batcher: Batcher[Question, Evaluated],
        ids: PredictionIds,
        recorder: DecisionRecorder,
        metrics: ServingMetrics,
        *,
        limits: Limits,
        decode_threads: int,
        decode_limit: int,
        store_content: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._batcher = batcher
        self._ids = ids
        self._recorder = recorder
        self._metrics = metrics
        self._limits = limits
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._decode_limit = decode_limit
        self._decoding = 0
        self._store_content = store_content
        self._clock = clock

    async def predict(self, request: PredictionRequest, deadline_s: float) -> Prediction:
        """Answer one request.

        Args:
            deadline_s: on the clock of ``time.monotonic``; an expired request is not computed.

        Raises:
            InvalidInput: a field is wrong.
            UnknownModel, NoLiveModel, Overloaded, Expired: as they say.
        """
        live = pick_model(self._models, request.model)
        model, role = live.serving_for(request.user_id)
        spec = model.manifest.spec
        allowed = _allowed(spec, request.allowed_actions)
        if request.top_k < 0:
            raise InvalidInput("top_k", f"{request.top_k} is negative; 0 lists all actions")
        check_modalities(request.content, spec)
        if request.explain and len(request.content) > MAX_EXPLAINED_MODALITIES:
            raise InvalidInput(
                "explain",
                f"{len(request.content)} modalities are given; explanations take {MAX_EXPLAINED_MODALITIES} at most",
            )
        inputs = await self._decode(request.content, model, deadline_s)
        evaluated = await self._batcher.submit(Question(model, inputs, allowed, request.greedy), deadline_s)
        contributions = {}
        if request.explain:
            contributions = await self._explain(model, inputs, allowed, evaluated, deadline_s)
        return self._answer(request, live.name, model, role, allowed, evaluated, contributions)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def _decode(self, content: Mapping[str, Content], model: ServableModel, deadline_s: float) -> Arrays:
        with self._metrics.decode_seconds.time():
            if is_cheap(content):
                return decode_content(content, model, self._limits)
            if self._decoding >= self._decode_limit:
                raise Overloaded("the queue of the decoder", self._decode_limit)
            self._decoding += 1
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._pool, self._decode_in_time, content, model, deadline_s
                )
            finally:
                self._decoding -= 1

    def _decode_in_time(self, content: Mapping[str, Content], model: ServableModel, deadline_s: float) -> Arrays:
        if time.monotonic() >= deadline_s:
            raise Expired
        return decode_content(content, model, self._limits)

    async def _explain(
        self, model: ServableModel, inputs: Arrays, allowed: Bool, evaluated: Evaluated, deadline_s: float
    ) -> dict[str, float]:
        """Each subset is a question of its own, so explanations share batches and wait their turn like everyone."""
        every = subsets(list(inputs))
        answers = await asyncio.gather(
            *(
                self._batcher.submit(
                    Question(model, {name: inputs[name] for name in some}, allowed, greedy=True), deadline_s
                )
                for some in every[:-1]
            )
        )
        value = {
            some: float(answer.probabilities[evaluated.action])
            for some, answer in zip(every, (*answers, evaluated), strict=True)
        }
        return shapley(list(inputs), value)

    def _answer(
        self,
        request: PredictionRequest,
        name: str,
        model: ServableModel,
        role: Role,
        allowed: Bool,
        evaluated: Evaluated,
        contributions: Mapping[str, float],
    ) -> Prediction:
        manifest = model.manifest
        action = manifest.spec.actions[evaluated.action]
        now_s = self._clock()
        prediction_id = self._ids.sign(SignedPrediction(now_s, name, manifest.version, action, evaluated.propensity))
        self._recorder.record(
            Decision(
                prediction_id=prediction_id,
                model=name,
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
                content=request.content if self._store_content else {},
            )
        )
        return Prediction(
            prediction_id=prediction_id,
            action=action,
            propensity=evaluated.propensity,
            scores=_scores(manifest.spec.actions, evaluated.probabilities, allowed, request.top_k),
            version=manifest.version,
            version_digest=model.digest,
            role=role,
            model=name,
            request_id=request.request_id,
            contributions=contributions,
        )


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
