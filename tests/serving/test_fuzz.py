"""Whatever is sent to whatever method: a status that names what was wrong, and a server that goes on.

Never UNKNOWN or INTERNAL, which are what a crash looks like from outside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryCatalog, DirectoryRegistry
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings
from plaudit.core.wire import contents_to_wire
from plaudit.inference import open_inference_pb2 as oip
from plaudit.serving.server import InferenceServer
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.v1 import feedback_pb2, model_pb2, prediction_pb2
from plaudit_models.limits import Limits
from support.builders import tiny_bundle, tiny_content, tiny_spec
from support.serving_harness import KEY, go_live

SERVICES: Final = [
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"],
    feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
    model_pb2.DESCRIPTOR.services_by_name["ModelService"],
    oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
]
METHODS: Final = [method for service in SERVICES for method in service.methods]
CRASHES: Final = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
DEADLINE_S: Final = 10.0

Send = Callable[[MethodDescriptor, bytes], tuple[grpc.StatusCode, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServer]:
    folder = tmp_path_factory.mktemp("fuzz")
    registry = DirectoryRegistry(folder / "registry", tiny_spec().name)
    tiny_bundle(folder / "one")
    registry.publish(folder / "one")
    go_live(registry, 1)
    log = SqliteLog(folder / "log.sqlite", "NORMAL")
    server = InferenceServer(
        DirectoryCatalog(folder / "registry"),
        log,
        OnnxRuntime("cpu"),
        PredictionIds(KEY, 3600.0),
        ServingSettings(port=0, metrics_port=0, watch_interval_s=0.01),
        Limits(),
        ServingMetrics(CollectorRegistry()),
    )
    server.start()
    yield server
    server.stop()
    log.close()


@pytest.fixture(scope="module")
def channel(server: InferenceServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def send(channel: Any) -> Send:
    """Sends bytes and returns the status; streams get the message once, and are read to their first answer or end."""

    def send_one(method: MethodDescriptor, request: bytes) -> tuple[grpc.StatusCode, str]:
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            if not method.server_streaming:
                channel.unary_unary(path)(request, timeout=DEADLINE_S)
            elif method.client_streaming:
                for answer in channel.stream_stream(path)(iter([request]), timeout=DEADLINE_S):
                    if method.name == "ModelStreamInfer":  # whose errors are answers
                        problem = oip.ModelStreamInferResponse.FromString(answer).error_message
                        assert "internal error" not in problem
                        if problem:
                            return grpc.StatusCode.INVALID_ARGUMENT, problem
            else:  # it never ends by itself
                answers = channel.unary_stream(path)(request, timeout=DEADLINE_S)
                next(answers)
                answers.cancel()
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    return send_one


def checked(method: MethodDescriptor, found: tuple[grpc.StatusCode, str]) -> grpc.StatusCode:
    code, details = found
    assert code not in CRASHES, (method.full_name, code, details)
    assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, method.full_name
    assert code is grpc.StatusCode.OK or len(details) > 10, (method.full_name, code, details)
    return code


def still_answers(send: Send) -> None:
    whole = prediction_pb2.PredictRequest(content=contents_to_wire(tiny_content()))
    assert send(METHODS[0], whole.SerializeToString())[0] is grpc.StatusCode.OK


# --- messages --------------------------------------------------------------------------------------------------------

NUMBERS: Final = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 8, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63)]), st.integers(-5, 70000)
)
FLOATS: Final = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 0.5, 1.0, float("nan"), float("inf")]))
NAMES: Final = ["", "tiny", "image", "audio", "question", "state", "probabilities", "action", "nothing", "1", "99"]
DATATYPES: Final = ["FP32", "INT64", "BYTES", "FP16", "BF16", "BOOL", "UINT8", "fp32", "X"]
TEXTS: Final = st.one_of(st.sampled_from([*NAMES, *DATATYPES]), st.text(max_size=20))
BYTES: Final = st.one_of(
    st.binary(max_size=64), st.sampled_from([b"", bytes(4), bytes(8 * 8 * 4), b"RIFF", b"\xff\xd8"])
)


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_INT32:
            return NUMBERS.map(lambda number: max(-(2**31), min(2**31 - 1, number)))
        case FieldDescriptor.CPPTYPE_INT64:
            return NUMBERS
        case FieldDescriptor.CPPTYPE_UINT32:
            return NUMBERS.map(lambda number: abs(number) % 2**32)
        case FieldDescriptor.CPPTYPE_UINT64:
            return NUMBERS.map(abs)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return FLOATS
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.integers(0, 12)
        case _:
            return BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS


@st.composite
def messages(draw: st.DrawFn, descriptor: Any, depth: int = 4) -> Message:
    """A well-formed message of any content: each field set or not, maps and lists short, oneofs at random."""
    message: Any = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.message_type is not None and depth == 0:
            continue
        if not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            for key in draw(st.lists(TEXTS, max_size=3)):
                if value.message_type is not None:
                    getattr(message, field.name)[key].CopyFrom(draw(messages(value.message_type, depth - 1)))
                else:
                    getattr(message, field.name)[key] = draw(scalars(value))
        elif field.message_type is not None and field.is_repeated:
            for _ in range(draw(st.integers(0, 3))):
                getattr(message, field.name).append(draw(messages(field.message_type, depth - 1)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(messages(field.message_type, depth - 1)))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(scalars(field), max_size=4)))
        else:
            setattr(message, field.name, draw(scalars(field)))
    assert isinstance(message, Message)
    return message


CALLS: Final = st.sampled_from([method for method in METHODS if method.name != "RepositoryModelUnload"]).flatmap(
    # Unloading the model is nothing wrong, but then nothing else has anything to do.
    lambda method: st.tuples(st.just(method), messages(method.input_type).map(lambda m: m.SerializeToString()))
)


@st.composite
def tensors(draw: st.DrawFn) -> oip.ModelInferRequest:
    """Nearly right: the model's inputs with right and wrong shapes, types, names and numbers of bytes."""
    request = oip.ModelInferRequest(model_name="tiny", model_version=draw(st.sampled_from(["", "", "1", "7", "x"])))
    for name in draw(st.lists(st.sampled_from([*tiny_spec().modalities, "nothing"]), min_size=1, max_size=4)):
        modality = tiny_spec().modalities.get(name)
        right = [1, *(modality.shape if modality is not None else (2,))]
        shape = draw(st.one_of(st.just(right), st.lists(NUMBERS, max_size=4)))
        datatype = draw(st.sampled_from(DATATYPES))
        request.inputs.append(oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape))
        elements = 1
        for length in right:
            elements *= length
        size = draw(st.sampled_from([4 * elements, 8 * elements, 0, 3]))
        fill = draw(st.sampled_from([b"\x00", b"\xff", b"\x7f"]))  # zeros, NaN, large numbers
        request.raw_input_contents.append(fill * size)
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        request.outputs.add(name=name)
    return request


FUZZ: Final = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
LONG: Final = settings(FUZZ, max_examples=4000)


# --- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bytes_that_are_no_message(send: Send, method: MethodDescriptor) -> None:
    """A field whose length runs past the end: no protobuf message at all."""
    code, details = send(method, b"\x0a\xff\xff\xff\x7fabc")
    assert code is grpc.StatusCode.INVALID_ARGUMENT, details
    assert "8 bytes are not" in details
    still_answers(send)


@FUZZ
@given(method=st.sampled_from(METHODS), request=st.binary(max_size=200))
def test_random_bytes(send: Send, method: MethodDescriptor, request: bytes) -> None:
    checked(method, send(method, request))


@FUZZ
@given(call=CALLS)
def test_random_messages(send: Send, call: tuple[MethodDescriptor, bytes]) -> None:
    checked(call[0], send(*call))


@FUZZ
@given(request=tensors())
def test_tensors_that_are_nearly_right(send: Send, request: oip.ModelInferRequest) -> None:
    method = next(method for method in METHODS if method.name == "ModelInfer")
    checked(method, send(method, request.SerializeToString()))


@pytest.mark.slow
@LONG
@given(call=CALLS)
def test_many_random_messages(send: Send, call: tuple[MethodDescriptor, bytes]) -> None:
    checked(call[0], send(*call))


@pytest.mark.slow
@LONG
@given(request=tensors())
def test_many_tensors_that_are_nearly_right(send: Send, request: oip.ModelInferRequest) -> None:
    method = next(method for method in METHODS if method.name == "ModelInfer")
    checked(method, send(method, request.SerializeToString()))


def test_it_still_answers(send: Send) -> None:
    still_answers(send)


@pytest.mark.slow
def test_its_memory_stays_flat(send: Send) -> None:
    """Refusals of every kind, after some that let allocators and caches settle."""
    bad = [
        (method, request)
        for method in METHODS
        for request in (b"\x0a\xff\xff\xff\x7fabc", bytes(1000), b"\x0a\x04tiny" * 50)
    ]

    def rounds(count: int) -> int:
        for _ in range(count):
            for method, request in bad:
                send(method, request)
        return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    settled_bytes = rounds(40)
    assert rounds(120) < settled_bytes * 1.03
