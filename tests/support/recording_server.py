"""gRPC server that records its requests and gives the answers that a test sets."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message

from plaudit.v1 import (
    feedback_pb2,
    feedback_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
)

Call = Callable[..., Any]
"""``call("predict", {...}, user_id="ada")``: one method of the client under test; streams come back as lists."""


@dataclass
class Recorder(
    prediction_pb2_grpc.PredictionServiceServicer,
    feedback_pb2_grpc.FeedbackServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """Attributes:
    target: host and port.
    received: every request, in order: a protobuf message each.
    metadata: of the last request.
    manifest: of every version that has none of its own in ``manifests``.
    failures: statuses to answer with, one per request, before answering properly.
    """

    target: str = ""
    received: list[Any] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    failures: deque[tuple[grpc.StatusCode, str]] = field(default_factory=deque)
    rollout: model_pb2.Rollout = field(default_factory=model_pb2.Rollout)
    manifest: dict[str, Any] = field(default_factory=lambda: {"floor": 0.02})
    manifests: dict[int, dict[str, Any]] = field(default_factory=dict)

    def _take(self, request: Message, context: grpc.ServicerContext) -> None:
        self.received.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.failures:
            context.abort(*self.failures.popleft())

    def Predict(
        self, request: prediction_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> prediction_pb2.PredictResponse:
        self._take(request, context)
        return prediction_pb2.PredictResponse(
            prediction_id="signed",
            action="cat",
            propensity=0.25,
            scores=[
                prediction_pb2.Score(action="dog", probability=0.75),
                prediction_pb2.Score(action="cat", probability=0.25),
            ],
            version=3,
            version_digest="d3",
            role=prediction_pb2.ROLE_CANDIDATE,
            contributions={"image": 0.5},
            request_id=request.request_id,
            model="pets",
        )

    def SendFeedback(
        self, request: feedback_pb2.SendFeedbackRequest, context: grpc.ServicerContext
    ) -> feedback_pb2.SendFeedbackResponse:
        self._take(request, context)
        return feedback_pb2.SendFeedbackResponse(
            feedback_id=request.feedback_id, status=feedback_pb2.FEEDBACK_STATUS_ACCEPTED
        )

    def StreamFeedback(
        self, request_iterator: Iterator[feedback_pb2.SendFeedbackRequest], context: grpc.ServicerContext
    ) -> Iterator[feedback_pb2.SendFeedbackResponse]:
        for request in request_iterator:
            self._take(request, context)
            if request.prediction_id == "forged":
                error = feedback_pb2.FeedbackError(code=3, message="prediction_id: 'forged' is not a prediction id")
                yield feedback_pb2.SendFeedbackResponse(feedback_id=request.feedback_id, error=error)
            else:
                yield feedback_pb2.SendFeedbackResponse(
                    feedback_id=request.feedback_id, status=feedback_pb2.FEEDBACK_STATUS_DUPLICATE
                )

    def GetReceipt(
        self, request: feedback_pb2.GetReceiptRequest, context: grpc.ServicerContext
    ) -> feedback_pb2.Receipt:
        self._take(request, context)
        receipt = feedback_pb2.Receipt(
            feedback_id=request.feedback_id, state=feedback_pb2.RECEIPT_STATE_USED, used_in_version=4
        )
        receipt.recorded_at.FromMilliseconds(1_500)
        return receipt

    def ListVersions(
        self, request: model_pb2.ListVersionsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListVersionsResponse:
        self._take(request, context)
        return model_pb2.ListVersionsResponse(versions=[self._version(1)], rollout=self.rollout)

    def GetVersion(
        self, request: model_pb2.GetVersionRequest, context: grpc.ServicerContext
    ) -> model_pb2.GetVersionResponse:
        self._take(request, context)
        return model_pb2.GetVersionResponse(version=self._version(request.version))

    def Promote(self, request: model_pb2.PromoteRequest, context: grpc.ServicerContext) -> model_pb2.PromoteResponse:
        self._take(request, context)
        return model_pb2.PromoteResponse(rollout=self.rollout)

    def Rollback(self, request: model_pb2.RollbackRequest, context: grpc.ServicerContext) -> model_pb2.RollbackResponse:
        self._take(request, context)
        return model_pb2.RollbackResponse(rollout=self.rollout)

    def Pin(self, request: model_pb2.PinRequest, context: grpc.ServicerContext) -> model_pb2.PinResponse:
        self._take(request, context)
        return model_pb2.PinResponse(rollout=self.rollout)

    def WatchVersions(
        self, request: model_pb2.WatchVersionsRequest, context: grpc.ServicerContext
    ) -> Iterator[model_pb2.WatchVersionsResponse]:
        self._take(request, context)
        for generation in (1, 2):
            yield model_pb2.WatchVersionsResponse(
                rollout=model_pb2.Rollout(model="pets", generation=generation, live=1)
            )

    def _version(self, number: int) -> model_pb2.Version:
        return model_pb2.Version(
            version=number,
            digest="d",
            kind=model_pb2.VERSION_KIND_HEAD,
            reason="because",
            manifest_json=json.dumps(self.manifests.get(number, self.manifest)),
        )


@contextmanager
def recording_server() -> Iterator[Recorder]:
    recorder = Recorder(
        rollout=model_pb2.Rollout(model="pets", generation=7, live=3, gated=2, pinned=True, reason="why", actor="ada")
    )
    running = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_pb2_grpc.add_PredictionServiceServicer_to_server(recorder, running)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(recorder, running)
    model_pb2_grpc.add_ModelServiceServicer_to_server(recorder, running)
    recorder.target = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    running.start()
    try:
        yield recorder
    finally:
        running.stop(None).wait()
