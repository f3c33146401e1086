"""The clients that Triton and KServe users have, unchanged, against a server that runs (scripts in tests/oip)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.inference import open_inference_pb2 as pb
from plaudit.serving.grpc.open_inference.servicer import SERVICE
from support import programs
from support.serving_harness import Running, Serve, decisions, features_of, text_of, until

SCRIPTS = Path(__file__).parents[1] / "oip"


async def output_of(*command: str, environment: Mapping[str, str] | None = None) -> bytes:
    """Standard output; the test fails with what was said on standard error if the program does."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{command} ended with {process.returncode}\n{out.decode()}\n{err.decode()}"
    return out


def address(running: Running) -> str:
    return f"127.0.0.1:{running.server.port}"


async def script(name: str, running: Running, python: str = sys.executable) -> Any:
    return json.loads(await output_of(python, str(SCRIPTS / name), address(running)))


# --- Triton ----------------------------------------------------------------------------------------------------------


async def test_every_field_is_where_triton_has_it() -> None:
    """Ours is a part of Triton's: same names, numbers, types; so neither reads what the other did not write."""
    theirs = FileDescriptorSet.FromString(await output_of(sys.executable, str(SCRIPTS / "triton_descriptors.py")))
    messages: dict[str, DescriptorProto] = {}
    enums: dict[str, EnumDescriptorProto] = {}
    methods: dict[str, MethodDescriptorProto] = {}
    for file in theirs.file:
        messages |= {message.name: message for message in file.message_type}
        enums |= {enum.name: enum for enum in file.enum_type}
        methods |= {method.name: method for service in file.service for method in service.method}
    ours = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert theirs.file[-1].package == ours.package
    for message in ours.message_type:
        _is_part_of(messages[message.name], message)
    for enum in ours.enum_type:
        assert list(enum.value) == list(enums[enum.name].value)
    for method in ours.service[0].method:
        theirs_is = methods[method.name]
        assert (method.input_type, method.output_type) == (theirs_is.input_type, theirs_is.output_type)
        assert (method.client_streaming, method.server_streaming) == (
            theirs_is.client_streaming,
            theirs_is.server_streaming,
        )


def _is_part_of(theirs: DescriptorProto, ours: DescriptorProto) -> None:
    fields = {field.name: field for field in theirs.field}
    nested = {message.name: message for message in theirs.nested_type}
    for field in ours.field:
        other = fields[field.name]
        where = f"{ours.name}.{field.name}"
        assert (field.number, field.type, field.type_name, field.label) == (
            other.number,
            other.type,
            other.type_name,
            other.label,
        ), where
    for message in ours.nested_type:
        _is_part_of(nested[message.name], message)


async def test_triton_client(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    report = await script("triton_unary.py", running)
    assert [report[each] for each in ("live", "ready", "model_ready", "other_ready")] == [True, True, True, False]
    assert report["server"] == "plaudit"
    assert report["inputs"] == ["image", "audio", "question", "sensor"]
    assert report["config_outputs"] == ["probabilities", "embedding", "action", "propensity", "prediction_id"]
    assert report["index"] == [{"name": "tiny", "version": "1", "state": "READY"}]
    assert report["chosen"] == ["embedding"]
    assert report["refused"]["status"] == "StatusCode.INVALID_ARGUMENT"
    assert "[1, 3] should be [n, 4]" in report["refused"]["message"]
    assert report["rows"] == 4
    assert [report["unloaded"], report["loaded"]] == [True, True]

    answer = report["answer"]
    assert (answer["id"], answer["version"], answer["propensity"]) == ("r1", "1", [[1.0], [1.0]])
    await until(lambda: len(decisions(log)) == 4)
    logged = {decision.prediction_id: decision for decision in decisions(log)}
    for row, prediction_id in enumerate(answer["prediction_id"]):
        decision = logged[prediction_id]
        assert (decision.user_id, decision.request_id, decision.greedy) == ("ada", "r1", True)
        assert decision.action == answer["action"][row]
        np.testing.assert_allclose(features_of(decision).embedding, answer["embedding"][row], rtol=1e-6)


async def test_triton_asyncio_client(serve: Serve, log: SqliteLog) -> None:
    running = await serve(queue_limit=64)  # as many as it asks at once
    report = await script("triton_aio.py", running)
    assert report["errors"] == []
    for number, (request_id, probabilities) in enumerate(report["together"]):
        assert request_id == str(number)
        assert probabilities == pytest.approx(report["alone"][number % 8], rel=1e-5)
    assert [request_id for request_id, _ in report["streamed"]] == [str(number) for number in range(8)]
    for (_, probabilities), alone in zip(report["streamed"], report["alone"], strict=True):
        assert probabilities == pytest.approx(alone, rel=1e-5)
    await until(lambda: len(decisions(log)) == 8 + 64 + 8)


async def test_triton_streaming_client(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    answers = await script("triton_stream.py", running)
    assert [answer.get("id", "refused") for answer in answers] == ["0", "1", "refused", "3", "4"]
    assert "[1, 3] should be [n, 4]" in answers[2]["error"]
    assert [answer.get("final") for answer in answers] == [False, False, None, False, True]
    await until(lambda: len(decisions(log)) == 4)
    logged = {decision.request_id: decision.action for decision in decisions(log)}
    assert logged == {answer["id"]: answer["action"] for answer in answers if "id" in answer}


@pytest.mark.parametrize("options", [["-b", "4"], ["--streaming", "--async"]], ids=["batches", "stream"])
async def test_perf_analyzer(serve: Serve, options: list[str]) -> None:
    """Its own numbers, and those it asked the server for. What it makes up are zeros: random bits hold NaN."""
    analyzer = programs.perf_analyzer()
    running = await serve()
    measured = ["--concurrency-range", "2", "--measurement-interval", "200", "--max-trials", "3"]
    printed = await output_of(
        *(analyzer.path, "-m", "tiny", "-i", "grpc", "-u", address(running), "--input-data", "zero"),
        *(*measured, "--stability-percentage", "999", *options),
        environment=analyzer.environment,
    )
    text = printed.decode()
    rows = int(_number(r"Inference count: (\d+)", text))
    batches = int(_number(r"Execution count: (\d+)", text))
    assert rows >= batches > 0
    queue, infer = (_number(rf"{part} (\d+) usec", text) for part in ("queue", "compute infer"))
    assert float(queue) > 0
    assert float(infer) > 0
    logged, dropped = ("plaudit_serving_decisions_logged_total", "plaudit_serving_decisions_dropped_total")
    await until(lambda: running.metric(logged) + running.metric(dropped) >= rows)


def _number(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]


# --- KServe ----------------------------------------------------------------------------------------------------------


async def test_kserve_client(serve: Serve, log: SqliteLog) -> None:
    python = programs.kserve_python()
    running = await serve()
    report = await script("kserve_client.py", running, python)
    assert [report[each] for each in ("live", "ready", "model_ready")] == [True, True, True]
    assert report["refused"].startswith('INVALID_ARGUMENT: inputs["sensor"].shape: [1, 3] should be [n, 4]')
    answers = report["answers"]
    assert {name: (answer["id"], answer["version"]) for name, answer in answers.items()} == {
        "raw": ("raw", "1"),
        "typed": ("typed", "1"),
        "text": ("text", "1"),
    }
    assert answers["raw"]["probabilities"] == answers["typed"]["probabilities"]
    await until(lambda: len(decisions(log)) == 3)
    logged = {decision.prediction_id: decision for decision in decisions(log)}
    assert logged.keys() == {answer["prediction_id"] for answer in answers.values()}
    assert text_of(logged[answers["text"]["prediction_id"]].content["question"]) == "which animal"


# --- grpcurl, grpc_health_probe --------------------------------------------------------------------------------------


async def test_grpcurl_finds_and_calls_the_services_by_reflection(serve: Serve) -> None:
    grpcurl = programs.grpcurl().path
    running = await serve()

    async def run(*arguments: str, options: Sequence[str] = ()) -> str:
        return (await output_of(grpcurl, "-plaintext", *options, address(running), *arguments)).decode()

    listed = (await run("list")).split()
    assert {SERVICE.full_name, "plaudit.v1.PredictionService", "grpc.health.v1.Health"} <= set(listed)
    methods = (await run("list", SERVICE.full_name)).split()
    assert methods == sorted(f"{SERVICE.full_name}.{method.name}" for method in SERVICE.methods)
    assert "rpc Predict" in await run("describe", "plaudit.v1.PredictionService")

    question = base64.b64encode(b"which animal").decode()
    tensor = {"name": "question", "datatype": "BYTES", "shape": [1, 1], "contents": {"bytes_contents": [question]}}
    asked = json.dumps({"model_name": "tiny", "inputs": [tensor], "outputs": [{"name": "action"}]})
    answer = json.loads(await run(f"{SERVICE.full_name}/ModelInfer", options=["-d", asked]))
    assert answer["model_version"] == "1"
    assert base64.b64decode(answer["raw_output_contents"][0])[4:].decode() in ("cat", "dog", "bird", "fish")
    asked = json.dumps({"content": {"question": {"text": "which animal"}}})
    answer = json.loads(await run("plaudit.v1.PredictionService/Predict", options=["-d", asked]))
    assert answer["model"] == "tiny"


@pytest.mark.parametrize("service", ["", SERVICE.full_name, "plaudit.v1.PredictionService"])
async def test_grpc_health_probe(serve: Serve, service: str) -> None:
    probe = programs.grpc_health_probe().path
    running = await serve()
    process = await asyncio.create_subprocess_exec(
        probe, f"-addr={address(running)}", f"-service={service}", stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert (process.returncode, "status: SERVING" in err.decode()) == (0, True)
