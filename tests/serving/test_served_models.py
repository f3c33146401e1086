"""Models beside what is none: one entry of the registry never affects another, and nothing ends the watch."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryCatalog, DirectoryRegistry
from plaudit.compose.runtime import content_limits
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings, Settings
from plaudit.serving.server import InferenceServer
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.v1 import model_pb2
from plaudit_models.bundle import HEAD
from support.builders import tiny_bundle, tiny_spec
from support.serving_harness import Running, a_request, go_live, refusal, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def start(
    registry: DirectoryRegistry, log: SqliteLog, runtime: ModelRuntime, ids: PredictionIds, tmp_path: Path
) -> AsyncIterator[Callable[[], Running]]:
    """Starts a server of whatever is in ``tmp_path/registry``; the model there is "tiny", version 1 is live."""
    started: list[Running] = []

    def begin() -> Running:
        settings = ServingSettings(port=0, metrics_port=0, watch_interval_s=0.01, drain_s=5.0)
        metrics = ServingMetrics(CollectorRegistry())
        server = InferenceServer(
            DirectoryCatalog(tmp_path / "registry"),
            log,
            runtime,
            ids,
            settings,
            content_limits(Settings(model={}, serving=settings)),
            metrics,
            seed=0,
        )
        server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        started.append(Running(server, channel, registry, log, metrics))
        return started[-1]

    yield begin
    for running in started:
        await running.channel.close()
        await asyncio.to_thread(running.server.stop)
    log.close()


async def health(running: Running) -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    answer: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


def broken_model(root: Path) -> None:
    """Its rollout names a version that is not there."""
    shutil.copytree(root / "tiny", root / "zoo")
    shutil.rmtree(root / "zoo" / "versions")
    (root / "zoo" / "versions").mkdir()
    text = (root / "zoo" / "rollout.json").read_text()
    (root / "zoo" / "rollout.json").write_text(text.replace('"tiny"', '"zoo"'))


STRANGERS: dict[str, Callable[[Path], object]] = {
    "lost+found": lambda root: (root / "lost+found").mkdir(),
    "copy": lambda root: shutil.copytree(root / "tiny", root / "tiny.bak"),
    "copy with the name of a model": lambda root: shutil.copytree(root / "tiny", root / "tiny-old"),
    "model without a version": lambda root: (root / "zoo" / "versions").mkdir(parents=True),
    "model whose live version is gone": broken_model,
    "file": lambda root: (root / ".DS_Store").write_bytes(b"x"),
    "half a version": lambda root: (root / "tiny" / "versions" / "000009").mkdir(),
    "links of Kubernetes": lambda root: (root / "..data").symlink_to("..2026_11_30"),
}


@pytest.mark.parametrize("before", [True, False], ids=["before the start", "while it serves"])
@pytest.mark.parametrize("stranger", STRANGERS)
async def test_clients_that_name_no_model_are_answered(
    start: Callable[[], Running], registry: DirectoryRegistry, tmp_path: Path, stranger: str, before: bool
) -> None:
    """https://github.com/triton-inference-server/server/issues/3786 and 5786: one bad entry unloads all the others."""
    if before:
        STRANGERS[stranger](tmp_path / "registry")
    running = start()
    if not before:
        STRANGERS[stranger](tmp_path / "registry")
    assert (await running.predict()).version == 1
    assert await health(running) == SERVING
    go_live(registry, 2)
    await until(lambda: running.metric("plaudit_serving_live_version", model="tiny") == 2)
    assert (await running.predict()).version == 2
    assert await health(running) == SERVING


async def test_a_stranger_is_told_once_and_counted(
    start: Callable[[], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit.serving.models.served_models._IGNORED_INTERVAL_S", 0.0)
    (tmp_path / "registry" / "lost+found").mkdir()
    with structlog.testing.capture_logs() as logs:
        running = start()
        polled = running.server._models
        for _ in range(20):
            polled.poll()
        assert running.metric("plaudit_serving_registry_ignored_entries") == 1
        (tmp_path / "registry" / "lost+found").rmdir()
        await until(lambda: running.metric("plaudit_serving_registry_ignored_entries") == 0)
    told = [entry for entry in logs if entry["event"] == "ignored_in_registry"]
    assert [entry["entry"] for entry in told] == ["lost+found"]


async def test_a_registry_that_cannot_be_listed_is_told_once_and_followed_again(
    start: Callable[[], Running], registry: DirectoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every folder can be read, so the refusal is injected. There were 20 tracebacks a second."""
    refused = True
    listdir = os.listdir

    def refuse(path: Any = ".") -> Any:
        if refused and Path(path) == tmp_path / "registry":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)

    running = start()
    monkeypatch.setattr(os, "listdir", refuse)
    with structlog.testing.capture_logs() as logs:
        failures = running.metric("plaudit_serving_follow_failures_total")
        await until(lambda: running.metric("plaudit_serving_follow_failures_total") > failures + 20)
        assert (await running.predict()).version == 1  # and models that serve are followed all the same
        go_live(registry, 2)
        await until(lambda: running.metric("plaudit_serving_live_version", model="tiny") == 2)
        refused = False
        (tmp_path / "made").mkdir()
        tiny_bundle(tmp_path / "made" / "zoo", spec=tiny_spec("zoo"))
        zoo = DirectoryRegistry(tmp_path / "registry", "zoo")
        zoo.publish(tmp_path / "made" / "zoo")
        go_live(zoo, 1)
        await until(lambda: running.metric("plaudit_serving_live_version", model="zoo") == 1)
    told = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["event"], entry["subject"], entry["exc_info"]) for entry in told] == [
        ("not_followed", "the catalog", None)
    ]


async def test_a_model_with_a_live_version_that_fails_its_proof_is_waited_for(
    start: Callable[[], Running], registry: DirectoryRegistry, tmp_path: Path
) -> None:
    """It is a model: while it cannot serve, the server is not ready; the other one answers by its name."""
    tiny_bundle(tmp_path / "zoo", spec=tiny_spec("zoo"))
    zoo = DirectoryRegistry(tmp_path / "registry", "zoo")
    zoo.publish(tmp_path / "zoo")
    go_live(zoo, 1)
    head = zoo.folder(1) / HEAD
    head.chmod(0o644)
    head.write_bytes(b"damaged")
    running = start()
    assert await health(running) == NOT_SERVING
    assert (await running.predict(model="tiny")).version == 1
    code, details = await refusal(running.predictions.Predict(a_request(model="zoo")))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert str(tmp_path) not in details


async def test_a_model_that_never_served_and_is_removed_is_forgotten(
    start: Callable[[], Running], tmp_path: Path
) -> None:
    (tmp_path / "registry" / "zoo" / "versions").mkdir(parents=True)
    running = start()
    assert list(running.server._models.names()) == ["tiny", "zoo"]
    shutil.rmtree(tmp_path / "registry" / "zoo")
    await until(lambda: list(running.server._models.names()) == ["tiny"])
    assert (await running.predict()).version == 1


async def test_what_clients_are_told_of_the_registry_names_no_path(
    start: Callable[[], Running], tmp_path: Path
) -> None:
    running = start()
    (tmp_path / "registry").rename(tmp_path / "away")
    for call in (
        running.models.ListVersions(model_pb2.ListVersionsRequest()),
        running.models.GetVersion(model_pb2.GetVersionRequest(version=1)),
        running.models.Promote(model_pb2.PromoteRequest(version=2)),
    ):
        code, details = await refusal(call)
        assert code is not grpc.StatusCode.INTERNAL
        assert str(tmp_path) not in details
    assert (await running.predict()).version == 1
