"""Time that the server spends on a message that it refuses, and the memory it keeps of it."""

from __future__ import annotations

from typing import Final

import grpc

from benchmarks.attacks.served import Served, served
from benchmarks.measure import Measure
from plaudit.core.wire import contents_to_wire
from plaudit.v1 import content_pb2, prediction_pb2, prediction_pb2_grpc
from support.builders import tiny_content

GOAL_MS: Final = 10.0
GOAL_MIB: Final = 64.0
CALLS: Final = 50
METHOD: Final = "PredictionService/Predict"


def _shape(*shape: int) -> prediction_pb2.PredictRequest:
    tensor = content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_FP32, shape=shape, data=b"1234")
    return prediction_pb2.PredictRequest(content={"sensor": content_pb2.Content(tensor=tensor)})


def _messages() -> dict[str, prediction_pb2.PredictRequest]:
    whole = contents_to_wire(tiny_content())
    return {
        "40,000 long axes": _shape(*[2**62] * 40_000),
        "65 axes": _shape(*[1] * 65),
        "nothing along long axes": _shape(0, 2**62, 2**62),
        "a user id of 15 MiB": prediction_pb2.PredictRequest(content=whole, user_id="x" * (15 * 2**20)),
        "a request id of 15 MiB": prediction_pb2.PredictRequest(content=whole, request_id="x" * (15 * 2**20)),
        "a million allowed actions": prediction_pb2.PredictRequest(content=whole, allowed_actions=[""] * 1_000_000),
        "15 MiB of empty dynamic actions": prediction_pb2.PredictRequest(
            content=whole, dynamic_actions=[prediction_pb2.DynamicAction()] * (15 * 2**19)
        ),
        "a user id of 15 MiB, not ASCII": prediction_pb2.PredictRequest(content=whole, user_id="é" * (15 * 2**19)),
    }


def run(*, quick: bool) -> list[Measure]:
    calls = 3 if quick else CALLS
    measures = []
    with (
        served() as server,
        grpc.insecure_channel(server.address, [("grpc.max_send_message_length", 2**26)]) as channel,
    ):
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        stub.Predict(prediction_pb2.PredictRequest(content=contents_to_wire(tiny_content())))
        for name, message in _messages().items():
            took_ms, grown_mib = _refused(server, stub, message, calls)
            measures += [
                Measure(
                    f"{name}: time", took_ms, GOAL_MS, "at_most", note=f"mean of {calls}, in the server", unit="ms"
                ),
                Measure(f"{name}: memory kept", grown_mib, GOAL_MIB, "at_most", unit="MiB"),
            ]
    return measures


def _refused(
    server: Served, stub: prediction_pb2_grpc.PredictionServiceStub, message: prediction_pb2.PredictRequest, calls: int
) -> tuple[float, float]:
    """Mean milliseconds of a refusal, and memory that grew after the first one, MiB."""
    _refuse(stub, message)
    memory_mib, (spent_s, count) = server.memory_mib(), server.spent(METHOD)
    for _ in range(calls):
        _refuse(stub, message)
    after_s, after = server.spent(METHOD)
    return 1e3 * (after_s - spent_s) / (after - count), server.memory_mib() - memory_mib


def _refuse(stub: prediction_pb2_grpc.PredictionServiceStub, message: prediction_pb2.PredictRequest) -> None:
    try:
        stub.Predict(message)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return
        raise
    raise AssertionError("it was not refused")
