"""Requests with which people met faults of other servers, each with the public report's address."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from plaudit.core.wire import contents_to_wire
from plaudit.inference import open_inference_pb2 as pb
from plaudit.v1 import content_pb2, prediction_pb2
from support.builders import tiny_content, tiny_spec
from support.serving_harness import Running, Serve, a_request, refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TRITON = "https://github.com/triton-inference-server"
SENSOR = tiny_spec().modalities["sensor"]
WIDTH = int(np.prod(SENSOR.shape))
NAN = np.full(WIDTH, np.nan, "<f4").tobytes()
Input = pb.ModelInferRequest.InferInputTensor


def sensor(shape: list[int], data: bytes | None = None, *, datatype: str = "FP32") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", inputs=[Input(name="sensor", datatype=datatype, shape=shape)])
    request.raw_input_contents.append(bytes(4 * WIDTH) if data is None else data)
    return request


def with_text(value: bytes) -> pb.ModelInferRequest:
    question = Input(name="question", datatype="BYTES", shape=[1, 1])
    question.contents.bytes_contents.append(value)
    return pb.ModelInferRequest(model_name="tiny", inputs=[question])


def twice() -> pb.ModelInferRequest:
    request = sensor([1, WIDTH])
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    return request


def without_contents() -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name="tiny", inputs=[Input(name="sensor", datatype="FP32", shape=[1, WIDTH])])


def of_parameter(name: str, value: str) -> pb.ModelInferRequest:
    request = sensor([1, WIDTH])
    request.parameters[name].string_param = value
    return request


def of_version(version: str) -> pb.ModelInferRequest:
    request = sensor([1, WIDTH])
    request.model_version = version
    return request


def unknown_input() -> pb.ModelInferRequest:
    request = sensor([1, WIDTH])
    request.inputs[0].name = "input__0"
    return request


def two_raw_for_one() -> pb.ModelInferRequest:
    request = sensor([1, WIDTH])
    request.raw_input_contents.append(b"")
    return request


REFUSED: dict[str, tuple[pb.ModelInferRequest, str]] = {
    f"{TRITON}/server/issues/3563": (sensor([-1, WIDTH]), "shape"),
    f"{TRITON}/server/pull/8182": (sensor([1, -(2**63)]), "shape"),
    f"{TRITON}/common/pull/150": (sensor([2**62, 2**62], b""), "rows"),
    f"{TRITON}/server/issues/5972": (sensor([0, WIDTH], b""), "shape"),
    "https://github.com/microsoft/onnxruntime/issues/4559": (sensor([1, 0], b""), "shape"),
    f"{TRITON}/server/issues/3188": (twice(), "twice"),
    f"{TRITON}/server/issues/5053": (unknown_input(), "'sensor'"),
    f"{TRITON}/server/issues/3119": (without_contents(), "sensor"),
    "https://github.com/SeldonIO/seldon-core/issues/5188": (sensor([1, WIDTH + 1]), "shape"),
    "https://github.com/SeldonIO/seldon-core/issues/5188#datatype": (sensor([1, WIDTH], datatype="INT64"), "FP32"),
    "https://github.com/kserve/kserve/issues/3731": (with_text(b"\xff\xfe\xfa"), "UTF-8"),
    "https://github.com/pytorch/serve/issues/1776": (of_parameter("allowed_actions", '["Blue shirt!'), "JSON"),
    "https://github.com/mlflow/mlflow/issues/4897": (of_version("0.0199132142]"), "version"),
    "https://github.com/tensorflow/serving/issues/1530": (sensor([WIDTH]), "shape"),
    "https://github.com/kserve/kserve/issues/3377": (sensor([1, WIDTH], NAN), "finite"),
    f"{TRITON}/server/issues/2643": (two_raw_for_one(), "raw_input_contents"),
}


def infer(running: Running, request: pb.ModelInferRequest, **options: Any) -> Any:
    method: Any = running.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return method(request.SerializeToString(), **options)


@pytest.mark.parametrize(("request_", "named"), REFUSED.values(), ids=REFUSED)
async def test_refused_with_what_is_wrong_and_the_next_request_is_answered(
    serve: Serve, request_: pb.ModelInferRequest, named: str
) -> None:
    """What ended a server, hung it, or was answered with a riddle."""
    running = await serve()
    code, details = await refusal(infer(running, request_))
    assert code is INVALID, details
    assert named in details
    assert len(details) < 1_000
    assert (await running.predict()).action


@pytest.mark.parametrize("value", ["dog", "été 🐶".encode().decode(), "x" * 65_000])
async def test_texts_in_typed_contents_are_read(serve: Serve, value: str) -> None:
    """https://github.com/SeldonIO/MLServer/issues/400 and https://github.com/SeldonIO/MLServer/issues/484."""
    running = await serve()
    answer = pb.ModelInferResponse.FromString(await infer(running, with_text(value.encode())))
    assert "action" in [output.name for output in answer.outputs]


async def test_a_message_of_more_than_4_mib_is_answered(serve: Serve) -> None:
    """https://github.com/triton-inference-server/server/issues/5840: the usual limit of gRPC ended the server."""
    running = await serve()
    file = io.BytesIO()
    Image.new("RGB", (1_400, 1_400)).save(file, "BMP")
    assert len(file.getvalue()) > 5 * 2**20
    assert (await running.predict(content={"image": content_pb2.Content(image=file.getvalue())})).action


async def test_a_message_that_unpacks_to_more_than_is_taken_is_refused(serve: Serve) -> None:
    """https://github.com/grpc/grpc/pull/41996: 1 MB of gzip may be 1 GB."""
    running = await serve()
    address = f"127.0.0.1:{running.server.port}"
    options = [("grpc.max_send_message_length", 2**30)]
    async with grpc.aio.insecure_channel(address, options=options, compression=grpc.Compression.Gzip) as channel:
        predict: Any = channel.unary_unary("/plaudit.v1.PredictionService/Predict")
        bomb = prediction_pb2.PredictRequest(content={"image": content_pb2.Content(image=bytes(200 * 2**20))})
        code, _ = await refusal(predict(bomb.SerializeToString()))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        whole = prediction_pb2.PredictRequest(content=contents_to_wire(tiny_content()))
        answer = prediction_pb2.PredictResponse.FromString(await predict(whole.SerializeToString()))
        assert answer.action, "a small one is answered compressed too"


async def test_clients_that_leave_take_no_place_with_them(serve: Serve) -> None:
    """https://github.com/ray-project/ray/issues/44644, https://github.com/ray-project/ray/issues/41057 and
    https://github.com/ray-project/ray/issues/37943: places, and what counted them, were lost with each.
    """
    running = await serve(max_calls=4)

    async def ask(number: int) -> grpc.StatusCode:
        call = running.predictions.Predict(a_request(number), timeout=(None, 0.001, 0.002)[number % 3])
        if number % 3 == 0:
            await asyncio.sleep(0)
            call.cancel()
        return await call.code()  # type: ignore[no-any-return]

    left = [await ask(number) for number in range(60)]
    assert grpc.StatusCode.INTERNAL not in left
    assert grpc.StatusCode.CANCELLED in left

    async def answered(number: int) -> bool:
        """Places are free again as soon as the server has seen that their clients are gone."""
        code = await running.predictions.Predict(a_request(number)).code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
        return code is grpc.StatusCode.OK

    while not all(await asyncio.gather(*(answered(number) for number in range(4)))):  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # four at once, which are all the places
    assert running.metric("plaudit_serving_queue_requests") == 0


async def test_a_deadline_that_is_over_costs_no_evaluation(serve: Serve) -> None:
    """https://github.com/tensorflow/serving/issues/1265 and
    https://github.com/triton-inference-server/server/issues/6920.
    """
    running = await serve()
    await running.predict()
    before = running.metric("plaudit_serving_batch_requests_sum")
    assert before >= 1
    for number in range(5):
        code, _ = await refusal(running.predictions.Predict(a_request(number), timeout=0.0))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await running.predict()).action
    assert running.metric("plaudit_serving_batch_requests_sum") == before + 1


async def test_a_model_may_be_unloaded_and_loaded_while_it_is_asked(serve: Serve) -> None:
    """https://github.com/triton-inference-server/server/pull/6150 and
    https://github.com/triton-inference-server/server/issues/6223: it crashed, or hung.
    """
    running = await serve()
    service = "/inference.GRPCInferenceService"
    load: Any = running.channel.unary_unary(f"{service}/RepositoryModelLoad")
    unload: Any = running.channel.unary_unary(f"{service}/RepositoryModelUnload")

    async def ask() -> grpc.StatusCode:
        try:
            await running.predict()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    for _ in range(3):
        asked = [asyncio.create_task(ask()) for _ in range(8)]
        await unload(pb.RepositoryModelUnloadRequest(model_name="tiny").SerializeToString())
        await load(pb.RepositoryModelLoadRequest(model_name="tiny").SerializeToString())
        found = set(await asyncio.gather(*asked))
        assert found <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}
    assert (await running.predict()).action


async def test_truth_values_that_are_neither_0_nor_1_are_truth_values(serve: Serve) -> None:
    """https://github.com/openvinotoolkit/model_server/pull/4338 is of the kind: a byte of 2 is a bool to nobody."""
    running = await serve()
    tensor = content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_BOOL, shape=SENSOR.shape, data=b"\x02" * WIDTH)
    answers = []
    for data in (b"\x02" * WIDTH, b"\x01" * WIDTH):
        tensor.data = data
        answer = await running.predict(content={"sensor": content_pb2.Content(tensor=tensor)}, greedy=True)
        answers.append([(score.action, score.probability) for score in answer.scores])
    assert answers[0] == answers[1]
