"""ModelService over a real channel: what there is, and changing what serves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.events import Topic
from plaudit.core.rollout import Rollout, pin
from plaudit.v1 import model_pb2
from support.serving_harness import CHANGE, Serve, damage, events, go_live, make_live, refusal


async def test_versions_are_listed_with_all_that_is_known(serve: Serve, registry: DirectoryRegistry) -> None:
    running = await serve()
    listed = await running.models.ListVersions(model_pb2.ListVersionsRequest())
    assert [(v.version, v.parent, v.kind) for v in listed.versions] == [
        (1, 0, model_pb2.VERSION_KIND_PRETRAINED),
        (2, 1, model_pb2.VERSION_KIND_HEAD),
        (3, 0, model_pb2.VERSION_KIND_PRETRAINED),
    ]
    assert (listed.rollout.model, listed.rollout.generation, listed.rollout.live) == ("tiny", 1, 1)
    assert listed.rollout.changed_at.seconds == 1_700_000_000
    one = (await running.models.GetVersion(model_pb2.GetVersionRequest(version=2))).version
    assert one == listed.versions[1]
    assert one.digest == registry.manifest(2).digest
    assert json.loads(one.manifest_json)["spec"]["actions"] == ["cat", "dog", "bird", "fish"]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"version": 9}, "version: 9 does not exist; there are 1 to 3"), ({"version": 1, "model": "x"}, "model: 'x'")],
)
async def test_a_version_or_model_that_is_not_there(serve: Serve, fields: dict[str, Any], complaint: str) -> None:
    running = await serve()
    for call in (
        running.models.GetVersion(model_pb2.GetVersionRequest(**fields)),
        running.models.Promote(model_pb2.PromoteRequest(**fields)),
        running.models.Pin(model_pb2.PinRequest(**fields)),
    ):
        code, details = await refusal(call)
        assert code is grpc.StatusCode.NOT_FOUND
        assert complaint in details


async def test_promote_serves_when_it_returns_and_rollback_goes_back(
    serve: Serve, registry: DirectoryRegistry, log: SqliteLog
) -> None:
    running = await serve(watch_interval_s=60)
    assert (await running.predict()).version == 1
    rollout = await make_live(running, 3, actor="ada", reason="better")
    assert (rollout.generation, rollout.live, rollout.previous, rollout.gated) == (2, 3, 1, 3)
    assert (rollout.actor, rollout.reason) == ("ada", "better")
    assert (await running.predict()).version == 3

    back = (await running.models.Rollback(model_pb2.RollbackRequest(actor="bob"))).rollout
    assert (back.generation, back.live, back.previous) == (3, 1, 3)
    assert (await running.predict()).version == 1
    assert registry.rollout().live == 1

    await asyncio.to_thread(running.server.stop)
    logged = [event for event in events(log, Topic.VERSIONS) if isinstance(event, Rollout)]
    assert [(event.generation, event.live, event.actor) for event in logged] == [(2, 3, "ada"), (3, 1, "bob")]


async def test_a_version_that_fails_its_proof_is_not_promoted(serve: Serve, registry: DirectoryRegistry) -> None:
    running = await serve()
    damage(registry, 3)
    code, details = await refusal(make_live(running, 3))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "version 3 failed its proof: head.onnx" in details
    assert registry.rollout().generation == 1
    assert (await running.predict()).version == 1
    assert running.metric("plaudit_serving_failed_proofs_total", model="tiny") == 1


async def test_nothing_to_roll_back_to(serve: Serve) -> None:
    running = await serve()
    code, details = await refusal(running.models.Rollback(model_pb2.RollbackRequest()))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no previous version" in details


async def test_a_pinned_version_stays_until_it_is_unpinned(serve: Serve) -> None:
    running = await serve()
    pinned = (await running.models.Pin(model_pb2.PinRequest(version=2))).rollout
    assert (pinned.live, pinned.pinned) == (2, True)
    for call in (make_live(running, 3), running.models.Rollback(model_pb2.RollbackRequest())):
        code, details = await refusal(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "version 2 is pinned; unpin it first" in details
    assert (await running.models.Pin(model_pb2.PinRequest(version=3))).rollout.live == 3
    assert not (await running.models.Pin(model_pb2.PinRequest(version=0))).rollout.pinned
    assert (await make_live(running, 1)).live == 1


async def test_a_change_decided_on_another_generation(serve: Serve) -> None:
    running = await serve()
    code, details = await refusal(make_live(running, 3, expected_generation=7))
    assert code is grpc.StatusCode.ABORTED
    assert details == "expected_generation: the rollout is at generation 1, not 7; read it and try again"
    assert (await make_live(running, 3, expected_generation=1)).generation == 2


async def test_a_change_for_any_generation_is_retried_after_a_concurrent_change(
    serve: Serve, registry: DirectoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the rollout and writing it, another operator pins version 2; then promoting is refused as
    pinned.
    """
    running = await serve()
    original = registry.set_rollout

    def overtaken(rollout: Any) -> None:
        monkeypatch.setattr(registry, "set_rollout", original)
        original(pin(registry.rollout(), 2, CHANGE))
        original(rollout)

    monkeypatch.setattr(registry, "set_rollout", overtaken)
    code, details = await refusal(make_live(running, 3))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "version 2 is pinned" in details


@pytest.mark.parametrize("version", [0, -1])
async def test_numbers_that_are_no_versions(serve: Serve, version: int) -> None:
    running = await serve()
    code, details = await refusal(make_live(running, version))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"version: {version} is not a version" in details


async def test_changes_need_the_admin_token_where_there_is_one(serve: Serve) -> None:
    running = await serve(admin_token="sesame-sesame-sesame")
    changes = [
        (running.models.Promote, model_pb2.PromoteRequest(version=2)),
        (running.models.Rollback, model_pb2.RollbackRequest()),
        (running.models.Pin, model_pb2.PinRequest(version=3)),
    ]
    for call, request in changes:
        code, details = await refusal(call(request))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "authorization: Bearer TOKEN" in details
        for wrong in ("Bearer open", "sesame-sesame-sesame", ""):
            code, details = await refusal(call(request, metadata=(("authorization", wrong),)))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "sesame-sesame-sesame" not in details
    for call, request in changes:
        await call(request, metadata=(("authorization", "Bearer sesame-sesame-sesame"),))
    await running.models.ListVersions(model_pb2.ListVersionsRequest())


async def test_a_damaged_manifest_hides_one_version_and_no_other(serve: Serve, registry: DirectoryRegistry) -> None:
    running = await serve()
    manifest = registry.folder(2) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.02", "0.03"))
    registry._manifests.clear()
    listed = await running.models.ListVersions(model_pb2.ListVersionsRequest())
    assert [v.version for v in listed.versions] == [1, 3]
    code, details = await refusal(running.models.GetVersion(model_pb2.GetVersionRequest(version=2)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "version 2 failed its proof" in details


async def test_watching_shows_the_present_then_every_change_and_ends_at_drain(
    serve: Serve, registry: DirectoryRegistry
) -> None:
    running = await serve()
    call = running.models.WatchVersions(model_pb2.WatchVersionsRequest())
    assert (await call.read()).rollout.generation == 1
    for version in (2, 3, 1, 2):  # faster than watchers poll
        go_live(registry, version)
    assert [(await call.read()).rollout.live for _ in range(4)] == [2, 3, 1, 2]
    await make_live(running, 3)
    assert (await call.read()).rollout.generation == 6
    stopping = asyncio.create_task(asyncio.to_thread(running.server.stop))
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    await stopping


async def test_watching_a_model_that_is_not_there(serve: Serve) -> None:
    running = await serve()
    code, _ = await refusal(running.models.WatchVersions(model_pb2.WatchVersionsRequest(model="x")).read())
    assert code is grpc.StatusCode.NOT_FOUND
