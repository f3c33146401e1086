"""The server as a whole: swaps under load, ports, health, reflection, metrics, draining, dying, and what it imports."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import ConfigError
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc, prediction_pb2
from plaudit_models.bandit.policy import probabilities
from plaudit_models.bundle import HEAD, TRUNK, read_manifest
from plaudit_models.spec import SCORES
from support.builders import run_graph, tiny_bundle, tiny_content, tiny_head_refresh, tiny_spec, trunk_inputs
from support.serving_harness import Serve, StuckRuntime, a_request, a_thumb, decisions, feedback, go_live

ROOT = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# --- swaps -----------------------------------------------------------------------------------------------------------


async def test_versions_change_under_load_without_one_failed_request(
    serve: Serve, registry: DirectoryRegistry, log: SqliteLog, tmp_path: Path
) -> None:
    """Eight clients ask all the time while heads and trunks are swapped, ten swaps in all: every answer comes, names a
    version that was live, with its digest, and is what that version alone would have answered."""
    folders = {"bird": tmp_path / "bird", "fish": tmp_path / "fish", "other": tmp_path / "other"}
    tiny_head_refresh(folders["bird"], registry.folder(1), prefer="bird")
    tiny_head_refresh(folders["fish"], registry.folder(1), prefer="fish")
    tiny_bundle(folders["other"], seed=9, prefer="dog")
    versions = [registry.publish(folder).version for folder in folders.values()]
    digests = {number: registry.manifest(number).digest for number in registry.versions()}
    running = await serve(max_batch=4)

    alone = {number: _probabilities(registry.folder(number)) for number in registry.versions()}
    answers: list[prediction_pb2.PredictResponse] = []
    arrived = asyncio.Condition()
    done = False

    def last_is_of(version: int) -> bool:
        return bool(answers) and answers[-1].version == version

    async def client() -> None:
        while not done:
            answer = await running.predict(0, greedy=True)
            async with arrived:
                answers.append(answer)
                arrived.notify_all()

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for number in (versions * 4)[:10]:
        go_live(registry, number)
        async with arrived:
            await asyncio.wait_for(arrived.wait_for(partial(last_is_of, number)), 30)
    done = True
    await asyncio.gather(*clients)

    for answer in answers:
        assert answer.version_digest == digests[answer.version]
        found = {score.action: score.probability for score in answer.scores}
        assert found == pytest.approx(alone[answer.version], rel=1e-4)
    assert {answer.version for answer in answers} >= set(versions)
    assert running.metric("plaudit_serving_swaps_total", model="tiny") == 10
    assert running.metric("plaudit_serving_failed_proofs_total", model="tiny") == 0
    await asyncio.to_thread(running.server.stop)
    logged = {decision.prediction_id: decision for decision in decisions(log)}
    assert len(logged) == len(answers)
    for answer in answers:
        assert logged[answer.prediction_id].version_digest == answer.version_digest


def _probabilities(folder: Path) -> dict[str, float]:
    """What the version in ``folder`` makes of ``tiny_content(0)``, computed without the server."""
    features = run_graph(folder / TRUNK, trunk_inputs(folder, [tiny_content(0)]))
    scores = run_graph(folder / HEAD, features)[SCORES]
    policy = probabilities(scores, np.ones_like(scores, np.bool_), read_manifest(folder).floor)
    return dict(zip(tiny_spec().actions, policy[0].tolist(), strict=True))


async def test_a_damaged_version_goes_live_in_the_registry_and_never_here(
    serve: Serve, registry: DirectoryRegistry, runtime: ModelRuntime
) -> None:
    running = await serve()
    head = registry.folder(3) / "head.onnx"
    head.chmod(0o644)
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(bytes(data))
    go_live(registry, 3)
    while running.metric("plaudit_serving_failed_proofs_total", model="tiny") == 0:
        assert (await running.predict()).version == 1
    go_live(registry, 2)
    while (answer := await running.predict()).version == 1:
        pass
    assert answer.version == 2


# --- starting --------------------------------------------------------------------------------------------------------


async def test_a_port_that_is_taken(serve: Serve) -> None:
    first = await serve()
    with pytest.raises(ConfigError, match=rf"serving\.port: {first.server.port} cannot be opened on 127\.0\.0\.1"):
        await serve(port=first.server.port)
    with pytest.raises(ConfigError, match=rf"serving\.metrics_port: {first.server.metrics_port} cannot be opened"):
        await serve(metrics_port=first.server.metrics_port)
    assert (await first.predict()).version == 1


async def test_an_address_that_is_not_ours(serve: Serve) -> None:
    with pytest.raises(ConfigError, match=r"serving\.port: 0 cannot be opened on 192\.0\.2\.1"):
        await serve(host="192.0.2.1")


async def check(health: Any, service: str) -> int:
    answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_health_follows_the_live_version_and_the_drain(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    empty = DirectoryRegistry(tmp_path / "late", "tiny")
    running = await serve(registries=[empty])
    health = health_pb2_grpc.HealthStub(running.channel)
    for service in ("", "plaudit.v1.PredictionService"):
        assert await check(health, service) == NOT_SERVING
    assert await check(health, "plaudit.v1.FeedbackService") == SERVING

    watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == NOT_SERVING
    assert await asyncio.to_thread(ready, running.server.metrics_port) == (
        503,
        "there is no model, or one without a live version that is proven here\n",
    )
    empty.publish(registry.folder(1))
    go_live(empty, 1)
    assert (await watch.read()).status == SERVING
    assert await asyncio.to_thread(ready, running.server.metrics_port) == (200, "ready\n")
    assert (await running.predict()).version == 1

    stopping = asyncio.create_task(asyncio.to_thread(running.server.stop))
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()
    await stopping


def ready(port: int) -> tuple[int, str]:
    """Status and text of ``/readyz``."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_reflection_lists_the_services(serve: Serve) -> None:
    running = await serve()
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {
        "plaudit.v1.PredictionService",
        "plaudit.v1.FeedbackService",
        "plaudit.v1.ModelService",
        "grpc.health.v1.Health",
    }


async def test_metrics_are_served(serve: Serve) -> None:
    running = await serve()
    await running.predict()

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.server.metrics_port}/metrics", timeout=30) as page:
            text: bytes = page.read()
            return text.decode()

    page = await asyncio.to_thread(scrape)
    assert 'plaudit_serving_requests_total{code="OK",method="PredictionService/Predict"} 1.0' in page
    assert 'plaudit_serving_live_version{model="tiny"} 1.0' in page


async def test_two_servers_in_one_process_count_apart(serve: Serve, metrics: ServingMetrics) -> None:
    first, second = await serve(), await serve(metrics=ServingMetrics(CollectorRegistry()))
    await first.predict()
    labels = {"method": "PredictionService/Predict", "code": "OK"}
    assert first.metric("plaudit_serving_requests_total", **labels) == 1
    assert second.metric("plaudit_serving_requests_total", **labels) == 0


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_draining_finishes_what_is_under_way_and_refuses_what_comes(
    serve: Serve, runtime: ModelRuntime, log: SqliteLog
) -> None:
    stuck = StuckRuntime(runtime)
    running = await serve(runtime=stuck, drain_s=30)
    stuck.stuck = True
    under_way = asyncio.create_task(running.predict(request_id="under way"))
    assert await asyncio.to_thread(stuck.entered.wait, 30)
    stopping = asyncio.create_task(asyncio.to_thread(running.server.stop))
    await asyncio.to_thread(running.server._shutdown.wait, 30)
    stuck.go_on.set()
    assert (await under_way).request_id == "under way"
    await stopping
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.predict()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [decision.request_id for decision in decisions(log)] == ["under way"]


async def test_draining_ends_open_streams_after_answering_what_they_sent(
    serve: Serve, ids: PredictionIds, log: SqliteLog
) -> None:
    running = await serve(drain_s=30)
    signed = ids.sign(SignedPrediction(time.time(), "tiny", 1, "cat", 0.5))
    sent = running.feedback.StreamFeedback()
    await sent.write(a_thumb(signed, "f1"))
    assert (await sent.read()).status == feedback_pb2.FEEDBACK_STATUS_ACCEPTED
    idle = running.predictions.PredictStream()
    await idle.write(prediction_pb2.PredictStreamRequest(start=prediction_pb2.PredictStart(request=a_request())))
    await idle.write(prediction_pb2.PredictStreamRequest(end=prediction_pb2.PredictEnd()))
    assert (await idle.read()).final.version == 1
    await asyncio.to_thread(running.server.stop)
    for stream in (sent, idle):
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in (ended.value.details() or "")
    assert len(feedback(log)) == 1


PROGRAM = """
import sys, threading
from pathlib import Path
from prometheus_client import CollectorRegistry
from plaudit.adapters.registry.directory import DirectoryCatalog
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.limits import Limits
from plaudit.serving.server import InferenceServer

def main():
    folder = Path(sys.argv[1])
    server = InferenceServer(
        DirectoryCatalog(folder / "registry"), SqliteLog(folder / "log.sqlite", "NORMAL"),
        OnnxRuntime("cpu"), PredictionIds(b"k" * 32, 3600.0), ServingSettings(port=0, metrics_port=0),
        Limits(), ServingMetrics(CollectorRegistry()),
    )
    server.start()
    unwanted = [name for name in ("torch", "onnx", "sqlalchemy", "sklearn", "matplotlib") if name in sys.modules]
    print("ready", server.port, *unwanted, flush=True)
    threading.Event().wait()

main()
"""


async def test_kill_9_loses_no_acknowledged_feedback_and_a_whole_server_loads_no_torch(
    registry: DirectoryRegistry, log: SqliteLog, ids: PredictionIds, tmp_path: Path
) -> None:
    path = os.pathsep.join([str(ROOT / "services"), str(ROOT / "models")])
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(PROGRAM),
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert child.stdout is not None
    try:
        while not (line := (await asyncio.wait_for(child.stdout.readline(), 60)).decode()).startswith("ready"):
            assert line, "the server ended"
        _, port, *unwanted = line.split()
        assert unwanted == []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
            acknowledged = set()
            enough = asyncio.Event()

            async def client(name: str) -> None:
                number = 0
                while True:
                    number += 1
                    signed = ids.sign(SignedPrediction(time.time(), "tiny", 1, "cat", 0.5))
                    await stub.SendFeedback(a_thumb(signed, f"{name}-{number}"))
                    acknowledged.add(f"{name}-{number}")
                    if len(acknowledged) >= 200:
                        enough.set()

            clients = [asyncio.create_task(client(name)) for name in "abcdefgh"]
            await asyncio.wait_for(enough.wait(), 60)
            child.send_signal(signal.SIGKILL)
            ends = await asyncio.gather(*clients, return_exceptions=True)
            assert all(isinstance(end, grpc.aio.AioRpcError) for end in ends)
            assert {end.code() for end in ends if isinstance(end, grpc.aio.AioRpcError)} == {
                grpc.StatusCode.UNAVAILABLE
            }
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    assert acknowledged <= {found.feedback_id for found in feedback(log)}
    log.close()


def test_importing_the_server_loads_nothing_of_the_learner() -> None:
    program = (
        "import sys, plaudit.serving.server, plaudit.adapters.runtime.onnx; "
        "print([m for m in ('torch', 'sqlalchemy', 'onnx', 'sklearn', 'plaudit.learner') if m in sys.modules])"
    )
    path = os.pathsep.join([str(ROOT / "services"), str(ROOT / "models")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout.strip() == "[]"
