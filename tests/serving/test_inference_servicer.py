"""The Open Inference Protocol over a real channel: what is answered, what is logged, what is refused, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.adapters.runtime.importer import ImportOptions, import_onnx
from plaudit.core.events import Role
from plaudit.core.rollout import start_canary
from plaudit.core.wire import contents_to_wire
from plaudit.inference import open_inference_pb2 as pb
from plaudit.serving.grpc.open_inference.servicer import SERVICE
from support.builders import png, tiny_bundle, tiny_content, tiny_spec, trunk_inputs
from support.serving_harness import (
    CHANGE,
    Running,
    Serve,
    a_thumb,
    array_of,
    data_of,
    decisions,
    features_of,
    go_live,
    refusal,
    text_of,
    until,
)

SENSOR = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


def call(running: Running, method: str, message: Any = None, **options: Any) -> Any:
    """A call of the service; ``message`` may be bytes."""
    described = SERVICE.methods_by_name[method]
    caller: Any = running.channel.unary_unary(
        f"/{SERVICE.full_name}/{method}",
        response_deserializer=getattr(pb, described.output_type.name).FromString,
    )
    message = message if message is not None else getattr(pb, described.input_type.name)()
    return caller(message if isinstance(message, bytes) else message.SerializeToString(), **options)


def asking(rows: Any = SENSOR, *, outputs: Sequence[str] = (), **fields: Any) -> pb.ModelInferRequest:
    parameters = fields.pop("parameters", {})
    message = pb.ModelInferRequest(model_name="tiny", **fields)
    rows = np.asarray(rows, np.float32)
    message.inputs.add(name="sensor", datatype="FP32", shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        setattr(message.parameters[name], "bool_param" if isinstance(value, bool) else "string_param", value)
    return message


def strings(response: pb.ModelInferResponse, name: str) -> list[str]:
    place = [output.name for output in response.outputs].index(name)
    data, found = response.raw_output_contents[place], []
    while data:
        size = 4 + int.from_bytes(data[:4], "little")
        found.append(data[4:size].decode())
        data = data[size:]
    return found


def floats(response: pb.ModelInferResponse, name: str, dtype: str = "<f4") -> np.ndarray[Any, Any]:
    place = [output.name for output in response.outputs].index(name)
    return np.frombuffer(response.raw_output_contents[place], dtype).reshape(response.outputs[place].shape)


# --- inference -------------------------------------------------------------------------------------------------------


async def test_each_row_is_a_decision_that_takes_feedback(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    parameters = {"user_id": "ada", "user_group": "premium", "allowed_actions": "cat,bird"}
    response = await call(running, "ModelInfer", asking(id="r1", parameters=parameters))
    assert (response.id, response.model_version) == ("r1", "1")
    ids, actions = strings(response, "prediction_id"), strings(response, "action")
    assert len(set(ids)) == 2
    assert set(actions) <= {"cat", "bird"}
    answer = await running.feedback.SendFeedback(a_thumb(ids[1], "f1"))
    assert answer.feedback_id == "f1"

    await until(lambda: len(decisions(log)) == 2)
    for row, decision in enumerate(decisions(log)):
        assert decision.prediction_id == ids[row]
        assert (decision.action, decision.user_id, decision.request_id) == (actions[row], "ada", "r1")
        assert decision.user_group == "premium"
        assert decision.propensity == floats(response, "propensity", "<f8")[row, 0]
        assert decision.allowed_actions == ("cat", "bird")
        np.testing.assert_array_equal(features_of(decision).embedding, floats(response, "embedding")[row])
        np.testing.assert_array_equal(array_of(decision.content["sensor"]), SENSOR[row])


async def test_the_answer_is_the_one_that_predict_gives(serve: Serve) -> None:
    """Encoded content goes through the same decoding; the probabilities are the same."""
    running = await serve()
    content = tiny_content(3)
    message = pb.ModelInferRequest()  # the only model needs no name
    for name, data in (
        ("image", data_of(content["image"])),
        ("audio", data_of(content["audio"])),
        ("question", text_of(content["question"]).encode()),
    ):
        message.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        message.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    message.inputs.add(name="sensor", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(array_of(content["sensor"]).tobytes())
    message.outputs.add(name="probabilities")
    response = await call(running, "ModelInfer", message)
    expected = {score.action: score.probability for score in (await running.predict(3)).scores}
    found = dict(zip(tiny_spec().actions, floats(response, "probabilities")[0].tolist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-6)


async def test_ready_tensors_are_what_decoding_would_have_made(serve: Serve, registry: DirectoryRegistry) -> None:
    running = await serve()
    content = {"image": tiny_content(1)["image"], "question": tiny_content(1)["question"]}
    arrays = trunk_inputs(registry.folder(1), [content])
    message = pb.ModelInferRequest(model_name="tiny")
    for name, datatype in (("image", "FP32"), ("question", "INT64")):
        message.inputs.add(name=name, datatype=datatype, shape=arrays[name].shape)
        message.raw_input_contents.append(arrays[name].tobytes())
    response = await call(running, "ModelInfer", message)
    expected = await running.predict(1, content=contents_to_wire(content))
    found = dict(zip(tiny_spec().actions, floats(response, "probabilities")[0].tolist(), strict=True))
    assert found == pytest.approx({score.action: score.probability for score in expected.scores}, rel=1e-6)


async def test_a_version_that_is_loaded_can_be_asked_for(serve: Serve, registry: DirectoryRegistry) -> None:
    """The previous version stays loaded; one that never served is not."""
    running = await serve()
    go_live(registry, 2)
    await until(lambda: running.metric("plaudit_serving_live_version", model="tiny") == 2)
    answers = {
        version: await call(running, "ModelInfer", asking(model_version=version, parameters={"greedy": True}))
        for version in ("", "1", "2")
    }
    assert [answer.model_version for answer in answers.values()] == ["2", "1", "2"]
    assert strings(answers["2"], "action") == ["dog", "dog"]  # its head prefers it
    np.testing.assert_array_equal(floats(answers[""], "probabilities"), floats(answers["2"], "probabilities"))
    assert not np.allclose(floats(answers["1"], "probabilities"), floats(answers["2"], "probabilities"))
    code, text = await refusal(call(running, "ModelInfer", asking(model_version="3")))
    assert (code, "3 is not loaded here; loaded are [1, 2]" in text) == (grpc.StatusCode.NOT_FOUND, True)


async def test_a_candidate_answers_its_share_of_the_users(
    serve: Serve, registry: DirectoryRegistry, log: SqliteLog
) -> None:
    registry.set_rollout(start_canary(registry.rollout(), 2, 1.0, CHANGE))
    running = await serve()
    response = await call(running, "ModelInfer", asking(parameters={"user_id": "ada"}))
    assert (response.model_version, response.parameters["role"].string_param) == ("2", "candidate")
    await until(lambda: len(decisions(log)) == 2)
    assert {decision.role for decision in decisions(log)} == {Role.CANDIDATE}


async def test_an_imported_graph_answers_as_it_did_elsewhere(serve: Serve, tmp_path: Path, log: SqliteLog) -> None:
    """Inputs of other datatypes and free lengths, native outputs by name; and a decision for each row all the same."""
    weights = np.array([[1, 0, 2], [0, 1, -1]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["logits"]),
            helper.make_node("Mul", ["ids", "two"], ["doubled"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", "length"]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("doubled", TensorProto.INT32, ["batch", "length"]),
        ],
        [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(np.array(2, np.int32), "two")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    registry = DirectoryRegistry(tmp_path / "others", "mine")
    (tmp_path / "version").mkdir()
    import_onnx(tmp_path / "m.onnx", "mine", tmp_path / "version", ImportOptions())
    registry.publish(tmp_path / "version")
    go_live(registry, 1)
    running = await serve(registries=[registry])

    metadata = await call(running, "ModelMetadata", pb.ModelMetadataRequest(name="mine"))
    assert {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs} == {
        "x": ("FP32", [-1, 2]),
        "ids": ("INT32", [-1, -1]),
    }
    assert [each.name for each in metadata.outputs][:2] == ["logits", "doubled"]

    x = np.array([[1, 2], [0.5, 0]], np.float32)
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    message = pb.ModelInferRequest(model_name="mine")
    message.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    message.inputs.add(name="ids", datatype="INT32", shape=[2, 3])
    message.raw_input_contents.extend([x.tobytes(), ids.tobytes()])
    for name in ("doubled", "logits", "prediction_id"):
        message.outputs.add(name=name)
    response = await call(running, "ModelInfer", message)
    np.testing.assert_allclose(floats(response, "logits"), x @ weights)
    np.testing.assert_array_equal(floats(response, "doubled", "<i4"), 2 * ids)
    await until(lambda: len(decisions(log)) == 2)
    assert [decision.prediction_id for decision in decisions(log)] == strings(response, "prediction_id")

    del message.inputs[1], message.raw_input_contents[1]
    code, text = await refusal(call(running, "ModelInfer", message))
    assert (code, text) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[\"ids\"]: is missing; 'mine' cannot answer without ['ids']",
    )


@pytest.mark.parametrize(
    ("message", "code", "named"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "request: its 2 bytes are not the message of this method"),
        (pb.ModelInferRequest(model_name="other"), "NOT_FOUND", "'other' is not served here; served are ['tiny']"),
        (asking(model_version="one"), "INVALID_ARGUMENT", "model_version: 'one'"),
        (asking([[1, 2, 3]]), "INVALID_ARGUMENT", 'inputs["sensor"].shape: [1, 3] should be [n, 4]'),
        (asking([[1, 2, np.nan, 4]]), "INVALID_ARGUMENT", 'inputs["sensor"]: the tensor holds nan at [2]'),
        (asking(outputs=["logits"]), "INVALID_ARGUMENT", 'outputs["logits"]'),
        (asking(np.zeros((65, 4))), "INVALID_ARGUMENT", "[65, 4] has more than 64 rows"),
        (asking(parameters={"allowed_actions": "cow"}), "INVALID_ARGUMENT", "'cow' is not an action"),
    ],
)
async def test_what_is_refused_and_how(
    serve: Serve, log: SqliteLog, message: bytes | pb.ModelInferRequest, code: str, named: str
) -> None:
    running = await serve(queue_limit=64)
    found, text = await refusal(call(running, "ModelInfer", message))
    assert found.name == code
    assert named in text
    assert decisions(log) == []


async def test_a_damaged_image_is_named(serve: Serve) -> None:
    running = await serve()
    message = pb.ModelInferRequest(model_name="tiny")
    data = png()[:40]
    message.inputs.add(name="image", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(data)
    code, text = await refusal(call(running, "ModelInfer", message))
    assert (code, text.startswith('inputs["image"]: ')) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods if not method.client_streaming])
async def test_random_bytes_are_answered_or_refused(serve: Serve, method: str) -> None:
    """Never UNKNOWN, never INTERNAL; and the server answers as before."""
    running = await serve()
    rng = np.random.default_rng(0)
    whole = asking(id="r1", parameters={"greedy": True}).SerializeToString()
    refusals = []
    for number in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        data = bytes(damaged) if number % 2 else rng.bytes(int(rng.integers(1, 80)))
        try:
            await call(running, method, data)
        except grpc.aio.AioRpcError as error:
            refusals.append((error.code().name, error.details()))
    assert {code for code, _ in refusals} <= {"INVALID_ARGUMENT", "NOT_FOUND"}, refusals
    assert all(text for _, text in refusals)
    await call(running, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="tiny"))
    assert (await call(running, "ModelInfer", asking())).model_version == "1"


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_a_stream_answers_in_order_and_survives_what_it_refuses(serve: Serve) -> None:
    running = await serve()
    marked = {"triton_enable_empty_final_response": True}
    wrong = asking([[1, 2]], id="wrong", parameters=marked)
    requests = [asking(id=str(number), parameters=marked if number % 2 else {}) for number in range(20)]
    messages: list[bytes | pb.ModelInferRequest] = [*requests, wrong, b"\xff", asking(id="last")]

    method: Any = running.channel.stream_stream(
        f"/{SERVICE.full_name}/ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
    )
    stream = method(each if isinstance(each, bytes) else each.SerializeToString() for each in messages)
    answers = [answer async for answer in stream]

    assert [answer.infer_response.id for answer in answers] == [*map(str, range(20)), "wrong", "", "last"]
    assert [answer.error_message for answer in answers[:20]] == [""] * 20
    for number, answer in enumerate(answers[:20]):
        assert len(strings(answer.infer_response, "prediction_id")) == 2
        assert ("triton_final_response" in answer.infer_response.parameters) == bool(number % 2)
    assert "[1, 2] should be [n, 4]" in answers[20].error_message
    assert answers[20].infer_response.parameters["triton_final_response"].bool_param
    assert "not the message of this method" in answers[21].error_message
    assert answers[22].error_message == ""


# --- what there is ---------------------------------------------------------------------------------------------------


async def test_metadata_and_configuration_describe_the_model(serve: Serve) -> None:
    running = await serve(queue_limit=64)
    server = await call(running, "ServerMetadata")
    assert (server.name, list(server.extensions)) == (
        "plaudit",
        ["model_repository", "model_configuration", "statistics"],
    )
    metadata = await call(running, "ModelMetadata", pb.ModelMetadataRequest(name="tiny"))
    assert list(metadata.versions) == ["1"]
    inputs = {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs}
    assert inputs == {
        "image": ("FP32", [-1, 1, 8, 8]),
        "audio": ("FP32", [-1, 800]),
        "question": ("INT64", [-1, 8]),
        "sensor": ("FP32", [-1, 4]),
    }
    outputs = {each.name: (each.datatype, list(each.shape)) for each in metadata.outputs}
    assert outputs == {
        "probabilities": ("FP32", [-1, 4]),
        "embedding": ("FP32", [-1, 8]),
        "action": ("BYTES", [-1, 1]),
        "propensity": ("FP64", [-1, 1]),
        "prediction_id": ("BYTES", [-1, 1]),
    }
    config = (await call(running, "ModelConfig", pb.ModelConfigRequest(name="tiny"))).config
    assert (config.name, config.max_batch_size) == ("tiny", 64)
    assert {each.name: (each.data_type, list(each.dims), each.optional) for each in config.input}["question"] == (
        pb.TYPE_INT64,
        [8],
        True,
    )
    assert {each.name: each.data_type for each in config.output}["action"] == pb.TYPE_STRING


async def test_ready_means_that_a_version_serves(serve: Serve, tmp_path: Path) -> None:
    empty = DirectoryRegistry(tmp_path / "empty", "tiny")
    running = await serve(registries=[empty])
    health = health_pb2_grpc.HealthStub(running.channel)
    ask = health_pb2.HealthCheckRequest(service=SERVICE.full_name)
    assert (await call(running, "ServerLive")).live
    assert not (await call(running, "ServerReady")).ready
    assert not (await call(running, "ModelReady", pb.ModelReadyRequest(name="tiny"))).ready
    assert (await health.Check(ask)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    code, _ = await refusal(call(running, "ModelMetadata", pb.ModelMetadataRequest(name="tiny")))
    assert code == grpc.StatusCode.UNAVAILABLE

    tiny_bundle(tmp_path / "first")
    empty.publish(tmp_path / "first")
    go_live(empty, 1)
    await until(lambda: running.metric("plaudit_serving_live_version", model="tiny") == 1)
    while not (await call(running, "ServerReady")).ready:
        pass
    assert (await call(running, "ModelReady", pb.ModelReadyRequest(name="tiny", version="1"))).ready
    for name, version in (("other", ""), ("tiny", "2")):
        assert not (await call(running, "ModelReady", pb.ModelReadyRequest(name=name, version=version))).ready


async def test_statistics_count_rows_and_batches(serve: Serve) -> None:
    running = await serve()

    async def statistics(**fields: str) -> pb.ModelStatistics:
        request = pb.ModelStatisticsRequest(**fields)
        answer: pb.ModelStatisticsResponse = await call(running, "ModelStatistics", request)
        return answer.model_stats[0]

    assert (await statistics()).inference_stats.success.count == 0
    for _ in range(3):
        await call(running, "ModelInfer", asking())
    found = await statistics(name="tiny", version="1")
    assert (found.name, found.version, found.inference_count) == ("tiny", "1", 6)
    assert 3 <= found.execution_count <= 6
    assert found.last_inference > 1_700_000_000_000
    spent = found.inference_stats
    parts = (spent.queue, spent.compute_input, spent.compute_infer, spent.compute_output)
    assert [part.count for part in parts] == [6] * 4
    assert all(part.ns > 0 for part in parts)
    assert spent.success.ns == sum(part.ns for part in parts)
    assert spent.fail.count == 0
    assert sum(size.batch_size * size.compute_infer.count for size in found.batch_stats) == 6
    assert sum(size.compute_infer.count for size in found.batch_stats) == found.execution_count
    code, _ = await refusal(call(running, "ModelStatistics", pb.ModelStatisticsRequest(name="tiny", version="9")))
    assert code == grpc.StatusCode.NOT_FOUND


# --- the repository --------------------------------------------------------------------------------------------------


async def test_a_model_is_unloaded_and_loaded_again(serve: Serve) -> None:
    running = await serve()

    async def index(ready: bool = False) -> list[tuple[str, str, str]]:
        answer = await call(running, "RepositoryIndex", pb.RepositoryIndexRequest(ready=ready))
        return [(each.name, each.version, each.state) for each in answer.models]

    assert await index() == [("tiny", "1", "READY")]
    await call(running, "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="tiny"))
    assert await index() == [("tiny", "", "UNAVAILABLE")]
    assert await index(ready=True) == []
    code, _ = await refusal(call(running, "ModelInfer", asking()))
    assert code == grpc.StatusCode.NOT_FOUND
    code, _ = await refusal(call(running, "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="tiny")))
    assert code == grpc.StatusCode.NOT_FOUND
    await call(running, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="tiny"))
    assert await index(ready=True) == [("tiny", "1", "READY")]
    assert (await call(running, "ModelInfer", asking())).model_version == "1"


@pytest.mark.parametrize(
    ("method", "message", "named"),
    [
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(), "model_name: is empty"),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(), "model_name: is empty"),
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), "repository_name: 'r' is unknown"),
        (
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(
                model_name="tiny", parameters={"config": pb.ModelRepositoryParameter(string_param="{}")}
            ),
            "parameters: holds ['config']",
        ),
    ],
)
async def test_what_the_repository_refuses(
    serve: Serve,
    method: str,
    message: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest | pb.RepositoryIndexRequest,
    named: str,
) -> None:
    running = await serve()
    code, text = await refusal(call(running, method, message))
    assert (code, named in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_loading_and_unloading_need_the_admin_token_where_there_is_one(serve: Serve) -> None:
    running = await serve(admin_token="sesame-sesame-sesame")
    for method, message in (
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="tiny")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="tiny")),
    ):
        code, _ = await refusal(call(running, method, message))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        code, _ = await refusal(call(running, method, message, metadata=[("authorization", "Bearer open")]))
        assert code == grpc.StatusCode.PERMISSION_DENIED
        await call(running, method, message, metadata=[("authorization", "Bearer sesame-sesame-sesame")])


async def test_calls_are_counted_like_all_others(serve: Serve) -> None:
    running = await serve()
    await call(running, "ModelInfer", asking())
    method = "inference.GRPCInferenceService/ModelInfer"
    assert running.metric("plaudit_serving_requests_total", method=method, code="OK") == 1
