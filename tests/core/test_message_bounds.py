"""Messages that would become many times as much memory, or a long text, are refused before they are parsed."""

from __future__ import annotations

import contextlib
import random
import resource
from typing import Any

import pytest

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Topic
from plaudit.core.limits import MAX_ALLOWED_ACTIONS, MAX_DYNAMIC_ACTIONS, MAX_MODALITIES
from plaudit.core.message_bounds import check_message
from plaudit.core.wire import UnreadableEvent, decode_event
from plaudit.inference import open_inference_pb2 as oip
from plaudit.v1 import content_pb2, events_pb2, feedback_pb2, model_pb2, prediction_pb2

LONG = 15 * 2**20
Request = prediction_pb2.PredictRequest
Infer = oip.ModelInferRequest


def tag(cls: Any, field: str) -> bytes:
    return bytes([cls.DESCRIPTOR.fields_by_name[field].number << 3 | 2])


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def within(cls: Any, field: str, value: bytes) -> bytes:
    return tag(cls, field) + varint(len(value)) + value


def empty(cls: Any, field: str) -> bytes:
    return (tag(cls, field) + b"\0") * (LONG // 2)


PIECES = within(content_pb2.Tensor, "shape", bytes(80)) * (LONG // 82)
IN_PIECES = b"\x0a\x01a\x12" + varint(len(inner := within(content_pb2.Content, "tensor", PIECES))) + inner
A_FEW = (tag(Infer.InferInputTensor, "parameters") + b"\0") * 60
MANY: dict[str, tuple[Any, bytes, str]] = {
    "allowed actions": (Request, empty(Request, "allowed_actions"), "allowed_actions"),
    "dynamic actions": (Request, empty(Request, "dynamic_actions"), "dynamic_actions"),
    "one modality again and again": (Request, empty(Request, "content"), "content"),
    "inputs": (Infer, empty(Infer, "inputs"), "inputs"),
    "raw contents": (Infer, empty(Infer, "raw_input_contents"), "raw_input_contents"),
    "a few in each of many": (Infer, within(Infer, "inputs", A_FEW) * (LONG // 123), "(inputs|parameters)"),
    "unknown fields": (Request, b"\xf8\x07\x00" * (LONG // 3), "request"),
    "unknown short fields": (Request, b"\x7a\x00" * (LONG // 2), "request"),
    "taking turns": (
        Request,
        (tag(Request, "allowed_actions") + b"\0" + tag(Request, "user_id") + b"\0") * (LONG // 4),
        "(allowed_actions|user_id)",
    ),
    "axes in pieces": (Request, within(Request, "content", IN_PIECES), "shape"),
    "axes in one piece": (content_pb2.Tensor, within(content_pb2.Tensor, "shape", bytes(LONG)), "shape"),
    "a user id": (Request, Request(user_id="é" * (LONG // 2)).SerializeToString(), "user_id"),
    "a request id": (Request, Request(request_id="x" * LONG).SerializeToString(), "request_id"),
    "a group": (Request, Request(user_group="x" * LONG).SerializeToString(), "user_group"),
    "a reason": (model_pb2.PinRequest, model_pb2.PinRequest(reason="x" * LONG).SerializeToString(), "reason"),
    "a correction": (
        feedback_pb2.SendFeedbackRequest,
        feedback_pb2.SendFeedbackRequest(correction="x" * LONG).SerializeToString(),
        "correction",
    ),
}


@pytest.mark.parametrize(("cls", "raw", "field"), MANY.values(), ids=MANY)
def test_refused_before_it_is_parsed(cls: Any, raw: bytes, field: str) -> None:
    """Parsing one of them took up to 665 MiB and 370 ms. The time is measured by ``make bench-attacks``."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        check_message(raw, cls.DESCRIPTOR)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 4_096


def test_what_the_limits_allow_is_taken() -> None:
    tensor = content_pb2.Content(
        tensor=content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_FP32, shape=[1] * 8, data=bytes(400))
    )
    for message in (
        Request(allowed_actions=[f"action-{number}" for number in range(MAX_ALLOWED_ACTIONS)]),
        Request(allowed_actions=["é" * 128] * MAX_ALLOWED_ACTIONS),
        Request(content={f"m{number}": tensor for number in range(MAX_MODALITIES)}),
        Request(content={"image": content_pb2.Content(image=bytes(LONG))}, user_id="é" * 128),
        Request(content={"text": content_pb2.Content(text="x" * LONG)}),
        Request(dynamic_actions=[prediction_pb2.DynamicAction(id="i", text="t" * 4_000)] * MAX_DYNAMIC_ACTIONS),
        Infer(inputs=[Infer.InferInputTensor(name="x", contents=oip.InferTensorContents(int64_contents=[1] * 10**6))]),
        Infer(raw_input_contents=[bytes(10**6)] * 8, model_name="x"),
    ):
        raw = message.SerializeToString()
        check_message(raw, message.DESCRIPTOR)


def test_bytes_that_are_no_message_are_left_to_the_parser() -> None:
    rng = random.Random(3)
    whole = Request(
        content={"a": content_pb2.Content(image=bytes(2**17))}, allowed_actions=["x"] * 9
    ).SerializeToString()
    check_message(whole[:-1], Request.DESCRIPTOR)
    check_message(b"\xff" * 2**17, Request.DESCRIPTOR)
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.randrange(40)] = rng.randrange(256)
        with contextlib.suppress(InvalidInput):
            check_message(bytes(changed[: rng.randrange(2**16, len(changed))]), Request.DESCRIPTOR)


def test_a_record_of_many_elements_is_unreadable_and_a_long_id_is_left_to_its_own_check() -> None:
    with pytest.raises(UnreadableEvent, match="allowed_actions: "):
        decode_event(Topic.DECISIONS, empty(events_pb2.DecisionEvent, "allowed_actions"))
    long = events_pb2.FeedbackEvent(feedback_id="f" * 2**17).SerializeToString()
    with pytest.raises(UnreadableEvent, match="131072 characters"):
        decode_event(Topic.FEEDBACK, long)
