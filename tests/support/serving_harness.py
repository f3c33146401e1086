"""Harness for tests of the inference service: a running server, requests for it, and its log."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy.typing as npt
import pytest

from plaudit.core.events import (
    Content,
    Decision,
    EncodedContent,
    Event,
    Features,
    Feedback,
    TensorContent,
    TextContent,
    Topic,
)
from plaudit.core.ports.log import EventLog, UnreadableRecord
from plaudit.core.ports.registry import IgnoredEntry, ModelRegistry
from plaudit.core.rollout import Change, promote
from plaudit.core.wire import contents_to_wire
from plaudit.serving.server import InferenceServer
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc, model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc
from plaudit_models.bundle import HEAD
from support.builders import tiny_content

KEY = b"k" * 32
CHANGE = Change(actor="test", time_s=1_700_000_000.0, reason="because")


@dataclass
class Running:
    """Running server and stubs for it."""

    server: InferenceServer
    channel: grpc.aio.Channel
    registry: ModelRegistry
    log: EventLog
    metrics: ServingMetrics

    def __post_init__(self) -> None:
        self.predictions = prediction_pb2_grpc.PredictionServiceStub(self.channel)
        self.feedback = feedback_pb2_grpc.FeedbackServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)

    async def predict(self, seed: int = 0, **fields: Any) -> prediction_pb2.PredictResponse:
        answer: prediction_pb2.PredictResponse = await self.predictions.Predict(a_request(seed, **fields))
        return answer

    def metric(self, name: str, **labels: str) -> float:
        """Sum over all series that have these labels; 0 if there is none."""
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


Serve = Callable[..., Awaitable[Running]]


def a_request(seed: int = 0, **fields: Any) -> prediction_pb2.PredictRequest:
    fields.setdefault("content", contents_to_wire(tiny_content(seed)))
    return prediction_pb2.PredictRequest(**fields)


def a_thumb(prediction_id: str, feedback_id: str, **fields: Any) -> feedback_pb2.SendFeedbackRequest:
    fields = fields or {"thumb": feedback_pb2.THUMB_UP}
    return feedback_pb2.SendFeedbackRequest(
        prediction_id=prediction_id, feedback_id=feedback_id, user_id="ada", **fields
    )


def events(log: EventLog, topic: Topic) -> Sequence[Event | UnreadableRecord]:
    """All events of a topic in the log."""
    reader = log.reader("test", [topic], dict)
    found: list[Event | UnreadableRecord] = []
    while records := reader.poll(1000, 0.0):
        found += [record.event for record in records]
    reader.close()
    return found


def decisions(log: EventLog) -> Sequence[Decision]:
    return [event for event in events(log, Topic.DECISIONS) if isinstance(event, Decision)]


def feedback(log: EventLog) -> Sequence[Feedback]:
    return [event for event in events(log, Topic.FEEDBACK) if isinstance(event, Feedback)]


def array_of(content: Content) -> npt.NDArray[Any]:
    assert isinstance(content, TensorContent)
    return content.array


def text_of(content: Content) -> str:
    assert isinstance(content, TextContent)
    return content.text


def data_of(content: Content) -> bytes:
    assert isinstance(content, EncodedContent)
    return content.data


def features_of(decision: Decision) -> Features:
    assert decision.features is not None
    return decision.features


def go_live(registry: ModelRegistry, version: int) -> None:
    registry.set_rollout(promote(registry.rollout(), version, CHANGE))


async def make_live(running: Running, version: int, **fields: Any) -> model_pb2.Rollout:
    """The rollout after the service was told to promote a version."""
    request = model_pb2.PromoteRequest(version=version, **fields)
    answer: model_pb2.PromoteResponse = await running.models.Promote(request)
    return answer.rollout


def damage(registry: ModelRegistry, version: int, name: str = HEAD) -> None:
    """Change a byte of one file of a version."""
    path = registry.folder(version) / name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, at most for the test's own timeout."""
    while not condition():  # noqa: ASYNC110  # nothing tells us when
        await asyncio.sleep(0.001)  # without a pause it would keep the interpreter from the threads it waits for


class Registries:
    """Catalog of these registries."""

    def __init__(self, *registries: ModelRegistry) -> None:
        self._registries = {registry.model: registry for registry in registries}

    def models(self) -> Sequence[str]:
        return list(self._registries)

    def ignored(self) -> Sequence[IgnoredEntry]:
        return []

    def registry(self, model: str) -> ModelRegistry:
        return self._registries[model]


class StuckRuntime:
    """A runtime whose trunk waits for :attr:`go_on`, once :attr:`stuck` is set, and counts rows."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.stuck = False
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.rows = 0

    def load(self, folder: Any) -> Any:
        model = self.runtime.load(folder)
        trunk = model.trunk

        def stuck_trunk(inputs: Any, outputs: Any = (), deadline_s: float = math.inf) -> Any:
            if self.stuck:
                self.rows += len(inputs["present"])
                self.entered.set()
                assert self.go_on.wait(30)
            return trunk(inputs, outputs, deadline_s)

        model.trunk = stuck_trunk
        return model
