"""Parsers of requests: chunked streams, the Open Inference Protocol, the console's page, scrapes, and whole calls."""

from __future__ import annotations

import asyncio
import atexit
import io
import json
import tempfile
import threading
import wave
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter

from fuzz.parser import Parser, Wrong, must
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryCatalog, DirectoryRegistry
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.console.content import BadRequest, contents
from plaudit.core.errors import InvalidInput
from plaudit.core.events import EncodedContent
from plaudit.core.host.metrics_server import MetricsServer, page_of
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings
from plaudit.core.wire import contents_to_wire
from plaudit.inference import open_inference_pb2 as oip
from plaudit.serving.grpc.open_inference.converters import Contract, prediction_request, user_of
from plaudit.serving.grpc.streams import ContentChunks, StreamedFormat
from plaudit.serving.server import InferenceServer
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.v1 import feedback_pb2, model_pb2, prediction_pb2
from plaudit_models.bundle import FileDigest, Manifest
from plaudit_models.limits import Limits
from plaudit_models.spec import ModelSpec, OutputSpec, TensorModality
from support.builders import tiny_bundle, tiny_content, tiny_spec
from support.serving_harness import KEY, go_live

# --- chunked streams -------------------------------------------------------------------------------------------------

_KINDS: Final = ("pcm16", "audio", "image")
_STREAM_BYTES: Final = 1_024


def chunks(data: bytes) -> bool:
    """Pieces of a stream: a byte for the modality and one for the length before each."""
    rate_hz = int.from_bytes(data[:4], "big", signed=True)
    formats = {kind: StreamedFormat(kind, rate_hz if kind == "pcm16" else 0) for kind in _KINDS}
    limits = Limits(max_image_bytes=_STREAM_BYTES, max_audio_bytes=_STREAM_BYTES)
    given: dict[str, bytes] = {}
    try:
        stream = ContentChunks(formats, limits, 2 * _STREAM_BYTES)
        at = 4
        while at + 2 <= len(data):
            kind, size = (*_KINDS, "other")[data[at] % 4], data[at + 1]
            stream.add(kind, data[at + 2 : at + 2 + size])
            given[kind] = given.get(kind, b"") + data[at + 2 : at + 2 + size]
            at += 2 + size
        stream.so_far()
        whole = stream.content()
    except InvalidInput:
        return False
    must(whole.keys() == {kind for kind, part in given.items() if part}, "a modality is gone")
    for kind, part in whole.items():
        must(isinstance(part, EncodedContent) and len(part.data) <= _STREAM_BYTES + 64, "more than the limit")
        encoded = cast(EncodedContent, part).data
        if kind == "pcm16":
            with wave.open(io.BytesIO(encoded)) as sound:
                encoded = sound.readframes(sound.getnframes())
        must(encoded == given[kind], "other bytes than were sent")
    return True


# --- the Open Inference Protocol -------------------------------------------------------------------------------------


@cache
def _contract() -> tuple[ModelSpec, Contract]:
    files = {"trunk.onnx": FileDigest("0" * 64, 5)}
    spec = ModelSpec(
        "tiny",
        {"sensor": TensorModality((3,), "float32"), "free": TensorModality((-1, 2), "int64", required=True)},
        ("a", "b"),
        outputs={"o": OutputSpec("float32", (-1,))},
    )
    return spec, Contract(cast(Any, SimpleNamespace(manifest=Manifest(spec, "imported", 1.7e9, files))))


def _inferences() -> list[bytes]:
    tensor = oip.ModelInferRequest.InferInputTensor
    raw = oip.ModelInferRequest(
        model_name="tiny",
        id="7",
        inputs=[
            tensor(name="sensor", datatype="FP32", shape=[2, 3]),
            tensor(name="free", datatype="INT64", shape=[2, 1, 2]),
        ],
        raw_input_contents=[bytes(24), bytes(32)],
    )
    raw.outputs.add(name="probabilities")
    raw.parameters["allowed_actions"].string_param = '["a", "b"]'
    raw.parameters["user_id"].string_param = "u"
    typed = oip.ModelInferRequest(inputs=[tensor(name="sensor", datatype="FP32", shape=[1, 3])])
    typed.inputs[0].contents.fp32_contents.extend([1.0, 2.0, 3.0])
    typed.parameters["greedy"].bool_param = True
    return [raw.SerializeToString(), typed.SerializeToString()]


def inference(data: bytes) -> bool:
    _, contract = _contract()
    try:
        message = oip.ModelInferRequest.FromString(data)
        rows = contract.rows(message, max_rows=8)
        request = prediction_request(message, rows, contract.choice(message.outputs), user_of(message))
    except DecodeError:
        return False
    except InvalidInput as error:
        must(len(str(error)) < 4_000, "an error as long as its request")
        return False
    must(1 <= len(request.rows) <= 8, f"{len(request.rows)} rows")
    return True


# --- the console -----------------------------------------------------------------------------------------------------


def _pages() -> list[bytes]:
    return [
        b'{"a": {"image": "iVBORw0KGgo="}, "b": {"text": "hi"}, "c": {"tensor": [[1, 2.5]], "dtype": "float32"}}',
        b'{"c": {"tensor": [true, false], "dtype": "bool"}, "d": {"audio": "AAAA"}}',
    ]


def page(data: bytes) -> bool:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return False
    try:
        contents(raw)
    except BadRequest as error:
        must(len(str(error)) < 1_000, "an error as long as its request")
        return False
    except ValueError as error:  # ClientError of the client package is one for the page too
        must(type(error).__name__ == "ClientError", repr(error))
        return False
    return True


# --- scrapes ---------------------------------------------------------------------------------------------------------


def _scrapes() -> list[bytes]:
    return [
        b"GET /metrics?name[]=x_total HTTP/1.1\r\naccept: text/plain; version=1.0.0\r\naccept-encoding: gzip\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0; escaping=dots\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
    ]


@cache
def _metrics_server() -> MetricsServer:
    registry = CollectorRegistry()
    Counter("x", "some", registry=registry).inc()
    server = MetricsServer("127.0.0.1", 0, page_of(registry), lambda: None)
    return server


def scrape(data: bytes) -> bool:
    server = _metrics_server()
    answer = asyncio.run_coroutine_threadsafe(server._answer(data.decode("latin-1")), server._loop).result(60)
    must(answer.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in answer, "no answer")
    must(answer.count(b"\r\n\r\n") >= 1 and b"HTTP/1.1 500" not in answer[:20], "an answer that says we failed")
    return answer.startswith(b"HTTP/1.1 200")


# --- gRPC ------------------------------------------------------------------------------------------------------------

_SERVICES: Final = (
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"],
    feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
    model_pb2.DESCRIPTOR.services_by_name["ModelService"],
    oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
_UNARY: Final = [
    method
    for service in _SERVICES
    for method in service.methods
    if not (method.server_streaming or method.client_streaming) and method.name != "RepositoryModelUnload"
]
_CRASHES: Final = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED}
_DEADLINE_S: Final = 60.0


class _Rpc:
    """A server, and an honest client beside what is sent to it."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="plaudit-fuzz-")
        folder = Path(self._made.name)
        registry = DirectoryRegistry(folder / "registry", tiny_spec().name)
        tiny_bundle(folder / "one")
        registry.publish(folder / "one")
        go_live(registry, 1)
        self._log = SqliteLog(folder / "log.sqlite", "NORMAL")
        self._server = InferenceServer(
            DirectoryCatalog(folder / "registry"),
            self._log,
            OnnxRuntime("cpu"),
            PredictionIds(KEY, 3600.0),
            ServingSettings(port=0, metrics_port=0),
            Limits(),
            ServingMetrics(CollectorRegistry()),
        )
        self._server.start()
        address = f"127.0.0.1:{self._server.port}"
        self.channel: Any = grpc.insecure_channel(address)
        self._over = threading.Event()
        self._problem = ""
        self._honest = threading.Thread(target=self._ask, args=(address,), daemon=True)
        self._honest.start()

    def close(self) -> None:
        self._over.set()
        self._honest.join()
        self.channel.close()
        self._server.stop()
        self._log.close()
        self._made.cleanup()

    def _ask(self, address: str) -> None:
        """One honest prediction after the other; the first that fails is the finding of the next input."""
        whole = prediction_pb2.PredictRequest(content=contents_to_wire(tiny_content())).SerializeToString()
        channel: Any = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        with channel:
            predict = channel.unary_unary("/plaudit.v1.PredictionService/Predict")
            while not self._over.wait(0.05):
                try:
                    predict(whole, timeout=_DEADLINE_S)
                except grpc.RpcError as error:
                    self._problem = f"an honest client got {error.code()}: {error.details()}"

    def check(self) -> None:
        if self._problem:
            raise Wrong(self._problem)


@cache
def _rpc() -> _Rpc:
    return _Rpc()


@atexit.register
def close() -> None:
    """End what the parsers have started in this process; what is needed again starts again."""
    for started in (_rpc, _metrics_server):
        if started.cache_info().currsize:
            started().close()
            started.cache_clear()


def _calls() -> list[bytes]:
    """Messages behind a byte for the method."""
    place = {method.name: bytes([number]) for number, method in enumerate(_UNARY)}
    whole = prediction_pb2.PredictRequest(content=contents_to_wire(tiny_content()), user_id="u", request_id="r")
    feedback = feedback_pb2.SendFeedbackRequest(feedback_id="f", prediction_id="p", user_id="u", rating=0.5)
    pinned = model_pb2.PinRequest(version=1)
    return [
        place["Predict"] + whole.SerializeToString(),
        place["SendFeedback"] + feedback.SerializeToString(),
        *(place["ModelInfer"] + each for each in _inferences()),
        place["Pin"] + pinned.SerializeToString(),
        *(each + b"\x0a\x04tiny" for each in place.values()),
    ]


def call(data: bytes) -> bool:
    rpc = _rpc()
    method = _UNARY[(data[0] if data else 0) % len(_UNARY)]
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        rpc.channel.unary_unary(path)(data[1:], timeout=_DEADLINE_S)
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        must(code not in _CRASHES, f"{method.name}: {code}: {details}")
        must(len(details) > 10, f"{method.name}: {code} without a sentence: {details!r}")
        return False
    finally:
        rpc.check()
    return True


PARSERS: Final = (
    Parser("chunks", lambda: [b"\0\0\x3e\x80" + b"\0\x04abcd" + b"\1\x02xy" + b"\2\1z", bytes(5)], chunks, 3_000),
    Parser("inference", _inferences, inference),
    Parser("page", _pages, page, 1_024),
    Parser("scrape", _scrapes, scrape, 1_024),
    Parser("call", _calls, call),
)
