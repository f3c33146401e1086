"""``plaudit.v1.PredictionService``: decode, call, encode. Nothing is decided here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from functools import partial
from typing import Any, Final

import numpy as np

from plaudit.core.access import Principal
from plaudit.core.errors import InvalidInput, PlauditError
from plaudit.core.events import Content
from plaudit.core.limits import MAX_ALLOWED_ACTIONS, MAX_DYNAMIC_ACTIONS, MAX_MODALITIES
from plaudit.core.text.identifiers import check_id
from plaudit.core.text.user_groups import check_group
from plaudit.core.wire import ROLE_TO_WIRE, contents_from_wire, dynamic_actions_from_wire
from plaudit.serving.engine.call_context import CallContext, ClientGone
from plaudit.serving.engine.pipeline import PredictionRequest, Predictions
from plaudit.serving.grpc.auth import principal_of
from plaudit.serving.grpc.context import call_context
from plaudit.serving.grpc.open_calls import OpenCalls, OpenStream
from plaudit.serving.grpc.streams import ContentChunks, Put, StreamedFormat, in_order
from plaudit.serving.use_cases.predict import PredictUseCase
from plaudit.v1 import prediction_pb2, prediction_pb2_grpc
from plaudit_models.limits import Limits

_STREAM_LIMIT: Final = 64
"""Predictions of one stream that are worked on at once."""

_Answer = Future[prediction_pb2.PredictStreamResponse | None]


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """Args:
    limits: how much streamed content is collected for a modality.
    max_message_bytes: how much for one prediction, as much as one message may have.
    pool: works on the predictions of streams.
    """

    def __init__(
        self, predict: PredictUseCase, limits: Limits, max_message_bytes: int, pool: Executor, open_calls: OpenCalls
    ) -> None:
        self._predict = predict
        self._limits = limits
        self._max_message_bytes = max_message_bytes
        self._pool = pool
        self._open_calls = open_calls

    def Predict(self, request: prediction_pb2.PredictRequest, context: Any) -> prediction_pb2.PredictResponse:
        asked = _prediction_request(request, principal_of(context))
        return _response(request, self._predict.predict(asked, call_context(context)))

    def PredictStream(
        self, request_iterator: Iterator[prediction_pb2.PredictStreamRequest], context: Any
    ) -> Iterator[prediction_pb2.PredictStreamResponse]:
        def read(put: Put[prediction_pb2.PredictStreamResponse]) -> None:
            stream = self._open_calls.of(context)
            caller = principal_of(context)
            opened: _StreamedPrediction | None = None
            last: _StreamedPrediction | None = None
            for step in request_iterator:
                match step.WhichOneof("step"):
                    case "start":
                        if opened is not None:
                            raise InvalidInput("start", "came while a prediction is open; send end or cancel first")
                        stream.wait_for_room(self._max_message_bytes)
                        opened = self._start(step.start)
                        opened.hold(stream, step.start.ByteSize())
                    case "chunk":
                        open_ = _check_open(opened, "chunk")
                        open_.chunks.add(step.chunk.modality, step.chunk.data)
                        open_.hold(stream, len(step.chunk.data))
                        if open_.interim_is_due():
                            request = _prediction_request(open_.request, caller, open_.chunks.so_far())
                            open_.interim = put(partial(self._interim, open_.request, request, call_context(context)))
                    case "end":
                        last, opened = _check_open(opened, "end"), None
                        last.drop_interim()
                        last.answer = put(partial(self._final, last, caller, call_context(context)), last.held_bytes)
                    case "cancel" if opened is not None:
                        opened.drop_interim()
                        put(partial(_cancelled, opened.request.request_id), opened.held_bytes)
                        opened = None
                    case "cancel":
                        if last is not None:
                            last.cancel()
                    case _:
                        raise InvalidInput("step", "is missing; set one of start, chunk, end, cancel")

        return in_order(read, self._pool, self._open_calls, context, limit=_STREAM_LIMIT)

    def _start(self, start: prediction_pb2.PredictStart) -> _StreamedPrediction:
        if len(start.streamed) > MAX_MODALITIES:
            raise InvalidInput("streamed", f"has {len(start.streamed)} modalities; at most {MAX_MODALITIES} are taken")
        self._predict.check_modalities(check_id("model", start.request.model), list(start.streamed), "streamed")
        return _StreamedPrediction(start, self._limits, self._max_message_bytes)

    def _final(
        self, streamed: _StreamedPrediction, caller: Principal, call: CallContext
    ) -> prediction_pb2.PredictStreamResponse:
        message = streamed.request
        request = _prediction_request(message, caller, streamed.chunks.content())
        try:
            predictions = self._predict.predict(request, streamed.call_context(call))
        except ClientGone:
            return _cancelled(message.request_id)
        return prediction_pb2.PredictStreamResponse(
            final=_response(message, predictions), request_id=message.request_id
        )

    def _interim(
        self, message: prediction_pb2.PredictRequest, request: PredictionRequest, call: CallContext
    ) -> prediction_pb2.PredictStreamResponse | None:
        try:
            predictions = self._predict.preview(request, call)
        except (PlauditError, ClientGone):  # the final answer will say what is wrong, if it still is
            return None
        return prediction_pb2.PredictStreamResponse(
            interim=_response(message, predictions), request_id=message.request_id
        )


class _StreamedPrediction:
    """A streamed prediction, from its start to its answer.

    Attributes:
        held_bytes: memory that it holds of its stream.
        interim: the interim answer that is under way, or was the last.
        answer: the final answer, once all content has arrived.
    """

    def __init__(self, start: prediction_pb2.PredictStart, limits: Limits, max_bytes: int) -> None:
        self.request = start.request
        formats = {name: _format(name, given) for name, given in start.streamed.items()}
        self.chunks = ContentChunks(formats, limits, max_bytes)
        self.held_bytes = 0
        self.interim: _Answer | None = None
        self.answer: _Answer | None = None
        self._lock = threading.Lock()
        self._cancelled = False
        self._claimed = False
        twice = sorted(set(start.streamed) & set(start.request.content))
        if twice:
            raise InvalidInput(f'streamed["{twice[0]}"]', "is in request.content too; send it one way")
        if start.interim_interval_ms < 0:
            raise InvalidInput("interim_interval_ms", f"{start.interim_interval_ms} is negative; 0 is none")
        self._interval_s = start.interim_interval_ms / 1e3
        self._due_s = time.monotonic() + self._interval_s

    def hold(self, stream: OpenStream, size_bytes: int) -> None:
        """Take memory for what has arrived. Raises Overloaded."""
        stream.take(size_bytes)
        self.held_bytes += size_bytes

    def interim_is_due(self) -> bool:
        """True about once an interval, unless the last interim answer is still under way."""
        if not self._interval_s or time.monotonic() < self._due_s:
            return False
        if self.interim is not None and not self.interim.done():
            return False
        self._due_s = time.monotonic() + self._interval_s
        return True

    def drop_interim(self) -> None:
        """Leave the interim answer out, if it is still under way."""
        if self.interim is not None:
            _settle(self.interim, None)

    def call_context(self, call: CallContext) -> CallContext:
        """``call``, which ends with this prediction's cancellation too."""
        return CallContext(call.deadline_s, lambda: not self._cancelled and call.is_active(), lambda: self._claim(call))

    def cancel(self) -> None:
        """Answer at once, without waiting for the model. Does nothing if the answer is logged already."""
        with self._lock:
            self._cancelled = not self._claimed
        if self._cancelled and self.answer is not None:
            _settle(self.answer, _cancelled(self.request.request_id))

    def _claim(self, call: CallContext) -> bool:
        with self._lock:
            self._claimed = not self._cancelled and call.claim()
            return self._claimed


def _settle(future: _Answer, answer: prediction_pb2.PredictStreamResponse | None) -> None:
    with contextlib.suppress(InvalidStateError):  # it has an answer
        future.set_result(answer)


def _check_open(opened: _StreamedPrediction | None, step: str) -> _StreamedPrediction:
    if opened is None:
        raise InvalidInput(step, "came while no prediction is open; send start first")
    return opened


def _cancelled(request_id: str) -> prediction_pb2.PredictStreamResponse:
    return prediction_pb2.PredictStreamResponse(cancelled=True, request_id=request_id)


def _format(name: str, message: prediction_pb2.StreamedContent) -> StreamedFormat:
    match message.WhichOneof("format"):
        case "pcm16_sample_rate_hz":
            return StreamedFormat("pcm16", message.pcm16_sample_rate_hz)
        case "encoded_audio":
            return StreamedFormat("audio")
        case "encoded_image":
            return StreamedFormat("image")
        case _:
            raise InvalidInput(
                f'streamed["{name}"]',
                "has no format; set one of pcm16_sample_rate_hz, encoded_audio, encoded_image",
            )


def _prediction_request(
    message: prediction_pb2.PredictRequest, caller: Principal, streamed: Mapping[str, Content] | None = None
) -> PredictionRequest:
    if message.top_k < 0:
        raise InvalidInput("top_k", f"{message.top_k} is negative; 0 lists all actions")
    for field, most in (("allowed_actions", MAX_ALLOWED_ACTIONS), ("dynamic_actions", MAX_DYNAMIC_ACTIONS)):
        given = len(getattr(message, field))
        if given > most:
            raise InvalidInput(field, f"{given} are given; at most {most} are taken")
    content = contents_from_wire(message.content)
    if streamed:
        content |= streamed
    return PredictionRequest(
        rows=(content,),
        model=check_id("model", message.model),
        user_id=caller.user_of(check_id("user_id", message.user_id)),
        user_group=check_group(message.user_group),
        allowed_actions=tuple(message.allowed_actions),
        dynamic_actions=dynamic_actions_from_wire(message.dynamic_actions),
        greedy=message.greedy,
        explain=message.explain,
        request_id=check_id("request_id", message.request_id),
    )


def _response(request: prediction_pb2.PredictRequest, predictions: Predictions) -> prediction_pb2.PredictResponse:
    manifest = predictions.model.manifest
    (outcome,) = predictions.outcomes
    return prediction_pb2.PredictResponse(
        prediction_id=outcome.prediction_id,
        action=outcome.action,
        propensity=outcome.evaluation.propensity,
        scores=_scores(predictions, request.top_k),
        version=manifest.version,
        version_digest=predictions.model.digest,
        role=ROLE_TO_WIRE[predictions.role],
        contributions=outcome.contributions,
        request_id=request.request_id,
        model=manifest.spec.name,
    )


def _scores(predictions: Predictions, top_k: int) -> Sequence[prediction_pb2.Score]:
    """Allowed actions with their probabilities, most probable first; equals in the order of the action set.

    Args:
        top_k: number of actions; 0 is all.
    """
    actions, (outcome,) = predictions.actions, predictions.outcomes
    values = outcome.evaluation.probabilities
    ids, probabilities = actions.ids, values.tolist()
    order = np.argsort(-values, kind="stable").tolist()
    if not actions.allowed.all():
        order = [index for index in order if actions.allowed[index]]
    return [
        prediction_pb2.Score(action=ids[index], probability=probabilities[index]) for index in order[: top_k or None]
    ]
