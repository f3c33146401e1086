"""A real inference service on free ports: real SQLite log, real registry, tiny ONNX versions."""

from __future__ import annotations

import asyncio
import socketserver
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.compose.runtime import content_limits
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings, Settings
from plaudit.serving.server import NO_GUARD, InferenceServer
from plaudit.serving.telemetry.metrics import ServingMetrics
from support.builders import tiny_bundle, tiny_head_refresh, tiny_spec
from support.serving_harness import KEY, Registries, Running, Serve, go_live


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    """Version 1, pre-trained, live; 2, a head refresh that prefers "dog"; 3, another trunk."""
    registry = DirectoryRegistry(tmp_path / "registry", tiny_spec().name)
    tiny_bundle(tmp_path / "one")
    registry.publish(tmp_path / "one")
    tiny_head_refresh(tmp_path / "two", registry.folder(1), prefer="dog")
    registry.publish(tmp_path / "two")
    tiny_bundle(tmp_path / "three", seed=3, prefer="fish")
    registry.publish(tmp_path / "three")
    go_live(registry, 1)
    return registry


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    return SqliteLog(tmp_path / "log.sqlite", "NORMAL")


@pytest.fixture
def runtime() -> ModelRuntime:
    return OnnxRuntime("cpu")


@pytest.fixture
def ids() -> PredictionIds:
    return PredictionIds(KEY, 3600.0)


@pytest.fixture
def metrics() -> ServingMetrics:
    return ServingMetrics(CollectorRegistry())


@pytest.fixture
async def serve(
    registry: DirectoryRegistry,
    log: SqliteLog,
    runtime: ModelRuntime,
    ids: PredictionIds,
    metrics: ServingMetrics,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Serve]:
    """``await serve(max_batch=4)`` starts a server with these settings; ``log=`` and so on replace its parts."""
    # The standard library's HTTP server looks twice a second whether it is to end; tests end more often.
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))
    started: list[Running] = []

    async def start(**settings: Any) -> Running:
        served = settings.pop("registries", [registry])
        parts = {
            "catalog": Registries(*served),
            "log": settings.pop("log", log),
            "runtime": settings.pop("runtime", runtime),
            "ids": settings.pop("ids", ids),
            "metrics": settings.pop("metrics", metrics),
            "statuses": settings.pop("statuses", None),
            "guard": settings.pop("guard", NO_GUARD),
            "raters": settings.pop("raters", "asker"),
            "seed": 0,
        }
        defaults = {"port": 0, "metrics_port": 0, "watch_interval_s": 0.01, "drain_s": 5.0}
        serving = ServingSettings(**(defaults | settings))
        limits = content_limits(Settings(model={}, serving=serving))
        server = InferenceServer(**parts, settings=serving, limits=limits)
        server.start()
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}", options=[("grpc.max_send_message_length", 2**26)]
        )
        running = Running(server, channel, served[0], parts["log"], parts["metrics"])
        started.append(running)
        return running

    yield start
    for running in started:
        await running.channel.close()
        await asyncio.to_thread(running.server.stop)
    log.close()
