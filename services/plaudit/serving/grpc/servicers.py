"""The services of ``plaudit.v1``: decode, call, encode. Nothing is decided here."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from functools import partial
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.core.errors import InvalidInput, PlauditError
from plaudit.core.events import Content
from plaudit.core.rollout import Rollout
from plaudit.core.user_groups import check_group
from plaudit.core.wire import ROLE_TO_WIRE, contents_from_wire, dynamic_actions_from_wire, signal_from_wire
from plaudit.serving.engine.batcher import Caller, ClientGone
from plaudit.serving.engine.shutdown import ShutdownSignal
from plaudit.serving.grpc.auth import authorize
from plaudit.serving.grpc.interceptors import status_of
from plaudit.serving.grpc.streams import Pieces, Put, StreamedFormat, in_groups, in_order
from plaudit.serving.use_cases.feedback import FeedbackRequest, FeedbackUseCase, Receipt, ReceiptState
from plaudit.serving.use_cases.predict import Prediction, PredictionRequest, PredictUseCase
from plaudit.serving.use_cases.rollouts import RolloutService
from plaudit.v1 import (
    feedback_pb2,
    feedback_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
)
from plaudit_models.bundle import Manifest, VersionKind
from plaudit_models.preprocess import Limits

_STREAM_LIMIT: Final = 64
"""Predictions of one stream that are worked on at once."""
_FEEDBACK_GROUP: Final = 256
"""Feedback of one stream that becomes durable together."""

_KINDS: Final[Mapping[VersionKind, model_pb2.VersionKind]] = {
    "pretrained": model_pb2.VERSION_KIND_PRETRAINED,
    "head": model_pb2.VERSION_KIND_HEAD,
    "finetuned": model_pb2.VERSION_KIND_FINETUNED,
    "imported": model_pb2.VERSION_KIND_IMPORTED,
}
_STATES: Final = {
    ReceiptState.RECORDED: feedback_pb2.RECEIPT_STATE_RECORDED,
    ReceiptState.JOINED: feedback_pb2.RECEIPT_STATE_JOINED,
    ReceiptState.DISCARDED: feedback_pb2.RECEIPT_STATE_DISCARDED,
    ReceiptState.USED: feedback_pb2.RECEIPT_STATE_USED,
    ReceiptState.LIVE: feedback_pb2.RECEIPT_STATE_LIVE,
}


def caller_of(context: Any) -> Caller:
    remaining_s = context.time_remaining()
    deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
    return Caller(deadline_s, context.is_active, context.is_active)


# --- prediction ------------------------------------------------------------------------------------------------------


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """Args:
    limits: how much streamed content is collected.
    pool: works on the predictions of streams.
    """

    def __init__(self, predictor: PredictUseCase, limits: Limits, pool: Executor, ending: ShutdownSignal) -> None:
        self._predictor = predictor
        self._limits = limits
        self._pool = pool
        self._ending = ending

    def Predict(self, request: prediction_pb2.PredictRequest, context: Any) -> prediction_pb2.PredictResponse:
        return _prediction_to_wire(self._predictor.predict(_prediction_request(request), caller_of(context)))

    def PredictStream(
        self, request_iterator: Iterator[prediction_pb2.PredictStreamRequest], context: Any
    ) -> Iterator[prediction_pb2.PredictStreamResponse]:
        def read(put: Put[prediction_pb2.PredictStreamResponse]) -> None:
            opened: _Opened | None = None
            last: _Opened | None = None
            for step in request_iterator:
                match step.WhichOneof("step"):
                    case "start":
                        if opened is not None:
                            raise InvalidInput("start", "came while a prediction is open; send end or cancel first")
                        opened = _Opened(step.start, self._limits)
                    case "chunk":
                        _open(opened, "chunk").pieces.add(step.chunk.modality, step.chunk.data)
                        if opened is not None and opened.interim_is_due():
                            opened.interim = put(partial(self._interim, opened.request_so_far(), caller_of(context)))
                    case "end":
                        last, opened = _open(opened, "end"), None
                        last.drop_interim()
                        last.answer = put(partial(self._final, last, caller_of(context)))
                    case "cancel" if opened is not None:
                        opened.drop_interim()
                        put(partial(_cancelled, opened.request.request_id))
                        opened = None
                    case "cancel":
                        if last is not None:
                            last.give_up()
                    case _:
                        raise InvalidInput("step", "is missing; set one of start, chunk, end, cancel")

        return in_order(read, self._pool, self._ending, context, limit=_STREAM_LIMIT)

    def _final(self, opened: _Opened, caller: Caller) -> prediction_pb2.PredictStreamResponse:
        request_id = opened.request.request_id
        request = _prediction_request(opened.request, opened.pieces.content())
        try:
            answer = self._predictor.predict(request, opened.caller(caller))
        except ClientGone:
            return _cancelled(request_id)
        return prediction_pb2.PredictStreamResponse(final=_prediction_to_wire(answer), request_id=request_id)

    def _interim(self, request: PredictionRequest, caller: Caller) -> prediction_pb2.PredictStreamResponse | None:
        try:
            answer = self._predictor.preview(request, caller)
        except (PlauditError, ClientGone):  # the final answer will say what is wrong, if it still is
            return None
        return prediction_pb2.PredictStreamResponse(interim=_prediction_to_wire(answer), request_id=request.request_id)


class _Opened:
    """A streamed prediction, from its start to its answer.

    Attributes:
        interim: the interim answer that is under way, or was the last.
        answer: the final answer, once all content has arrived.
    """

    def __init__(self, start: prediction_pb2.PredictStart, limits: Limits) -> None:
        self.request = start.request
        self.pieces = Pieces({name: _format(name, given) for name, given in start.streamed.items()}, limits)
        self.interim: Future[prediction_pb2.PredictStreamResponse | None] | None = None
        self.answer: Future[prediction_pb2.PredictStreamResponse | None] | None = None
        self._lock = threading.Lock()
        self._given_up = False
        self._taken = False
        twice = sorted(set(start.streamed) & set(start.request.content))
        if twice:
            raise InvalidInput(f'streamed["{twice[0]}"]', "is in request.content too; send it one way")
        if start.interim_interval_ms < 0:
            raise InvalidInput("interim_interval_ms", f"{start.interim_interval_ms} is negative; 0 is none")
        self._interval_s = start.interim_interval_ms / 1e3
        self._due_s = time.monotonic() + self._interval_s

    def interim_is_due(self) -> bool:
        """True about once an interval, unless the last interim answer is still under way."""
        if not self._interval_s or time.monotonic() < self._due_s:
            return False
        if self.interim is not None and not self.interim.done():
            return False
        self._due_s = time.monotonic() + self._interval_s
        return True

    def request_so_far(self) -> PredictionRequest:
        return _prediction_request(self.request, self.pieces.so_far())

    def drop_interim(self) -> None:
        """Nothing waits for it any more."""
        if self.interim is not None:
            _settle(self.interim, None)

    def caller(self, caller: Caller) -> Caller:
        return Caller(caller.deadline_s, lambda: not self._given_up and caller.waits(), lambda: self._take(caller))

    def give_up(self) -> None:
        """Does not wait for the model. Nothing is done if the answer is a fact already."""
        with self._lock:
            self._given_up = not self._taken
        if self._given_up and self.answer is not None:
            _settle(self.answer, _cancelled(self.request.request_id))

    def _take(self, caller: Caller) -> bool:
        with self._lock:
            self._taken = not self._given_up and caller.takes()
            return self._taken


def _settle(
    future: Future[prediction_pb2.PredictStreamResponse | None], answer: prediction_pb2.PredictStreamResponse | None
) -> None:
    with contextlib.suppress(InvalidStateError):  # it has an answer
        future.set_result(answer)


def _open(opened: _Opened | None, step: str) -> _Opened:
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
    message: prediction_pb2.PredictRequest, streamed: Mapping[str, Content] | None = None
) -> PredictionRequest:
    return PredictionRequest(
        content=contents_from_wire(message.content) | dict(streamed or {}),
        model=message.model,
        user_id=message.user_id,
        allowed_actions=tuple(message.allowed_actions),
        greedy=message.greedy,
        top_k=message.top_k,
        explain=message.explain,
        request_id=message.request_id,
        dynamic_actions=dynamic_actions_from_wire(message.dynamic_actions),
        user_group=check_group(message.user_group),
    )


def _prediction_to_wire(answer: Prediction) -> prediction_pb2.PredictResponse:
    return prediction_pb2.PredictResponse(
        prediction_id=answer.prediction_id,
        action=answer.action,
        propensity=answer.propensity,
        scores=[prediction_pb2.Score(action=action, probability=probability) for action, probability in answer.scores],
        version=answer.version,
        version_digest=answer.version_digest,
        role=ROLE_TO_WIRE[answer.role],
        contributions=answer.contributions,
        request_id=answer.request_id,
        model=answer.model,
    )


# --- feedback --------------------------------------------------------------------------------------------------------


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    def __init__(self, recorder: FeedbackUseCase, ending: ShutdownSignal) -> None:
        self._recorder = recorder
        self._ending = ending

    def SendFeedback(
        self, request: feedback_pb2.SendFeedbackRequest, context: Any
    ) -> feedback_pb2.SendFeedbackResponse:
        duplicate = self._recorder.send(_feedback_request(request), caller_of(context))
        return _feedback_to_wire(request.feedback_id, duplicate)

    def StreamFeedback(
        self, request_iterator: Iterator[feedback_pb2.SendFeedbackRequest], context: Any
    ) -> Iterator[feedback_pb2.SendFeedbackResponse]:
        """Whatever came while the last group became durable is the next group."""
        caller = caller_of(context)
        for group in in_groups(request_iterator, self._ending, context, limit=_FEEDBACK_GROUP):
            yield from self._send_group(group, caller)

    def GetReceipt(self, request: feedback_pb2.GetReceiptRequest, context: Any) -> feedback_pb2.Receipt:
        return _receipt_to_wire(self._recorder.receipt(request.feedback_id))

    def _send_group(
        self, group: Sequence[feedback_pb2.SendFeedbackRequest], caller: Caller
    ) -> Iterator[feedback_pb2.SendFeedbackResponse]:
        """One answer each; a refusal is an answer too, so that the stream goes on."""
        outcomes: list[bool | Exception] = [False] * len(group)
        readable = []
        for place, message in enumerate(group):
            try:
                readable.append((place, _feedback_request(message)))
            except InvalidInput as error:
                outcomes[place] = error
        sent = self._recorder.send_all([request for _, request in readable], caller)
        for (place, _), outcome in zip(readable, sent, strict=True):
            outcomes[place] = outcome
        for message, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                code, text = status_of(outcome, "FeedbackService/StreamFeedback")
                yield feedback_pb2.SendFeedbackResponse(
                    feedback_id=message.feedback_id, error=feedback_pb2.FeedbackError(code=code.value[0], message=text)
                )
            else:
                yield _feedback_to_wire(message.feedback_id, outcome)


def _feedback_request(message: feedback_pb2.SendFeedbackRequest) -> FeedbackRequest:
    return FeedbackRequest(
        feedback_id=message.feedback_id,
        prediction_id=message.prediction_id,
        user_id=message.user_id,
        signal=signal_from_wire(message),
    )


def _feedback_to_wire(feedback_id: str, duplicate: bool) -> feedback_pb2.SendFeedbackResponse:
    status = feedback_pb2.FEEDBACK_STATUS_DUPLICATE if duplicate else feedback_pb2.FEEDBACK_STATUS_ACCEPTED
    return feedback_pb2.SendFeedbackResponse(feedback_id=feedback_id, status=status)


def _receipt_to_wire(receipt: Receipt) -> feedback_pb2.Receipt:
    return feedback_pb2.Receipt(
        feedback_id=receipt.feedback_id,
        state=_STATES[receipt.state],
        reason=receipt.reason,
        recorded_at=_timestamp(receipt.recorded_at_s),
        used_in_version=receipt.used_in_version or 0,
        live_since=None if receipt.live_since_s is None else _timestamp(receipt.live_since_s),
    )


# --- versions --------------------------------------------------------------------------------------------------------


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Args:
    admin_token: what changes must present; None leaves them open.
    """

    def __init__(self, versions: RolloutService, admin_token: str | None, ending: ShutdownSignal) -> None:
        self._versions = versions
        self._admin_token = admin_token
        self._ending = ending

    def ListVersions(self, request: model_pb2.ListVersionsRequest, context: Any) -> model_pb2.ListVersionsResponse:
        manifests, rollout = self._versions.all(request.model)
        return model_pb2.ListVersionsResponse(
            versions=[_version_to_wire(manifest) for manifest in manifests], rollout=_rollout_to_wire(rollout)
        )

    def GetVersion(self, request: model_pb2.GetVersionRequest, context: Any) -> model_pb2.GetVersionResponse:
        manifest = self._versions.one(request.model, request.version)
        experiment = self._versions.experiment(request.model, request.version)
        return model_pb2.GetVersionResponse(
            version=_version_to_wire(manifest), experiment_json="" if experiment is None else json.dumps(experiment)
        )

    def Promote(self, request: model_pb2.PromoteRequest, context: Any) -> model_pb2.PromoteResponse:
        authorize(context, self._admin_token)
        rollout = self._versions.promote(
            request.model, request.version, request.expected_generation, request.actor, request.reason
        )
        return model_pb2.PromoteResponse(rollout=_rollout_to_wire(rollout))

    def Rollback(self, request: model_pb2.RollbackRequest, context: Any) -> model_pb2.RollbackResponse:
        authorize(context, self._admin_token)
        rollout = self._versions.rollback(request.model, request.expected_generation, request.actor, request.reason)
        return model_pb2.RollbackResponse(rollout=_rollout_to_wire(rollout))

    def Pin(self, request: model_pb2.PinRequest, context: Any) -> model_pb2.PinResponse:
        authorize(context, self._admin_token)
        rollout = self._versions.pin(
            request.model, request.version, request.expected_generation, request.actor, request.reason
        )
        return model_pb2.PinResponse(rollout=_rollout_to_wire(rollout))

    def StartCanary(self, request: model_pb2.StartCanaryRequest, context: Any) -> model_pb2.StartCanaryResponse:
        authorize(context, self._admin_token)
        rollout = self._versions.start_canary(
            request.model,
            request.version,
            request.share,
            request.shadow,
            request.expected_generation,
            request.actor,
            request.reason,
        )
        return model_pb2.StartCanaryResponse(rollout=_rollout_to_wire(rollout))

    def StopCanary(self, request: model_pb2.StopCanaryRequest, context: Any) -> model_pb2.StopCanaryResponse:
        authorize(context, self._admin_token)
        rollout = self._versions.stop_canary(
            request.model, request.version, request.expected_generation, request.actor, request.reason
        )
        return model_pb2.StopCanaryResponse(rollout=_rollout_to_wire(rollout))

    def WatchVersions(
        self, request: model_pb2.WatchVersionsRequest, context: Any
    ) -> Iterator[model_pb2.WatchVersionsResponse]:
        for rollout in self._versions.watch(request.model, self._ending, caller_of(context)):
            yield model_pb2.WatchVersionsResponse(rollout=_rollout_to_wire(rollout))


def _version_to_wire(manifest: Manifest) -> model_pb2.Version:
    return model_pb2.Version(
        version=manifest.version,
        digest=manifest.digest,
        parent=manifest.parent or 0,
        kind=_KINDS.get(manifest.kind, model_pb2.VERSION_KIND_UNSPECIFIED),
        created_at=_timestamp(manifest.created_at_s),
        reason=manifest.reason,
        manifest_json=manifest.to_json(),
    )


def _rollout_to_wire(rollout: Rollout) -> model_pb2.Rollout:
    return model_pb2.Rollout(
        model=rollout.model,
        generation=rollout.generation,
        live=rollout.live or 0,
        previous=rollout.previous or 0,
        gated=rollout.gated or 0,
        candidate=rollout.candidate or 0,
        candidate_share=rollout.candidate_share,
        pinned=rollout.pinned,
        changed_at=_timestamp(rollout.changed_at_s) if rollout.generation else None,
        reason=rollout.reason,
        actor=rollout.actor,
        shadow=rollout.shadow,
        experiment=rollout.experiment,
    )


def _timestamp(time_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(time_s * 1e6))
    return stamp
