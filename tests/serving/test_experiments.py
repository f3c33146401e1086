"""Experiments at the inference service: begun and stopped by people, counted, and computed in the shadow."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import StoreUnavailable
from plaudit.core.events import ExperimentReport, Role, Topic
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.ports.store import ExperimentSummary
from plaudit.core.rollout import in_experiment, start_canary
from plaudit.serving.models.experiment_reporter import kl_divergence
from plaudit.v1 import model_pb2
from plaudit_models.spec import ImageModality, ModelSpec
from support.builders import tiny_bundle
from support.serving_harness import (
    CHANGE,
    Running,
    Serve,
    StuckRuntime,
    damage,
    decisions,
    events,
    make_live,
    refusal,
    until,
)


async def start(running: Running, version: int, share: float = 0.5, **fields: Any) -> model_pb2.Rollout:
    request = model_pb2.StartCanaryRequest(version=version, share=share, **fields)
    answer: model_pb2.StartCanaryResponse = await running.models.StartCanary(request)
    return answer.rollout


async def stop(running: Running, **fields: Any) -> model_pb2.Rollout:
    answer: model_pb2.StopCanaryResponse = await running.models.StopCanary(model_pb2.StopCanaryRequest(**fields))
    return answer.rollout


def users_of(running: Running, *, candidate: bool, n: int = 5) -> list[str]:
    rollout = running.registry.rollout()
    return [user for user in (f"user {i}" for i in range(1000)) if in_experiment(rollout, user) == candidate][:n]


async def reports(running: Running) -> list[ExperimentReport]:
    """All that the service tells, once it has ended."""
    await asyncio.to_thread(running.server.stop)
    return [event for event in events(running.log, Topic.EXPERIMENTS) if isinstance(event, ExperimentReport)]


# --- people ----------------------------------------------------------------------------------------------------------


async def test_a_canary_serves_its_users_when_the_call_returns_and_no_user_once_it_is_stopped(serve: Serve) -> None:
    running = await serve(watch_interval_s=60)
    rollout = await start(running, 3, 0.5, actor="ada", reason="new")
    assert (rollout.live, rollout.candidate, rollout.candidate_share, rollout.experiment) == (1, 3, 0.5, 2)
    assert (rollout.actor, rollout.reason) == ("ada", "new")
    inside, outside = users_of(running, candidate=True), users_of(running, candidate=False)
    assert {(await running.predict(user_id=user)).version for user in inside} == {3}
    assert {(await running.predict(user_id=user)).version for user in [*outside, ""]} == {1}
    assert (await stop(running, version=3)).candidate == 0
    assert {(await running.predict(user_id=user)).version for user in inside} == {1}


async def test_what_cannot_go_into_an_experiment(serve: Serve, registry: DirectoryRegistry, tmp_path: Path) -> None:
    running = await serve()
    tiny_bundle(tmp_path / "other", spec=ModelSpec("tiny", {"scan": ImageModality(8, 8, 1)}, ("cat", "dog"), 8))
    registry.publish(tmp_path / "other")
    damage(registry, 2)
    for fields, code, complaint in (
        ({"version": 9}, grpc.StatusCode.NOT_FOUND, "version: 9 does not exist"),
        ({"version": 0}, grpc.StatusCode.INVALID_ARGUMENT, "version: 0 is not a version"),
        ({"version": 3, "share": 1.0}, grpc.StatusCode.INVALID_ARGUMENT, "share: 1 is not in (0, 1)"),
        ({"version": 3, "share": 0.0}, grpc.StatusCode.INVALID_ARGUMENT, "share: 0 is not in (0, 1)"),
        ({"version": 3, "share": 1.5, "shadow": True}, grpc.StatusCode.INVALID_ARGUMENT, "share: 1.5 is not in (0, 1]"),
        ({"version": 1}, grpc.StatusCode.FAILED_PRECONDITION, "version: 1 is live"),
        ({"version": 2}, grpc.StatusCode.FAILED_PRECONDITION, "version 2 failed its proof: head.onnx"),
        ({"version": 4}, grpc.StatusCode.FAILED_PRECONDITION, "version: 4 is incompatible with clients of version 1"),
        ({"version": 3, "expected_generation": 7}, grpc.StatusCode.ABORTED, "generation 1, not 7"),
        ({"version": 3, "model": "x"}, grpc.StatusCode.NOT_FOUND, "model: 'x'"),
    ):
        found, details = await refusal(start(running, **fields))
        assert (found, complaint in details) == (code, True), (fields, details)
    assert registry.rollout().generation == 1
    assert (await running.predict()).version == 1


async def test_two_operators_cannot_both_begin_or_end_an_experiment(serve: Serve) -> None:
    running = await serve()
    outcomes = await asyncio.gather(*(start(running, version) for version in (2, 3)), return_exceptions=True)
    (lost,) = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert lost.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "is in an experiment already" in (lost.details() or "")
    candidate = running.registry.rollout().candidate
    code, details = await refusal(stop(running, version=5 - (candidate or 0)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert f"is not in an experiment; version {candidate} is" in details
    ended = await asyncio.gather(*(stop(running, version=candidate) for _ in range(2)), return_exceptions=True)
    assert sum(isinstance(each, grpc.aio.AioRpcError) for each in ended) == 1
    code, details = await refusal(stop(running))
    assert (code, "no version is in an experiment" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)


async def test_two_operators_promoting_on_the_same_generation(serve: Serve, registry: DirectoryRegistry) -> None:
    """Compare and set: one of them wins, the other is refused and looks again, and the ledger has one change."""
    running = await serve()
    outcomes = await asyncio.gather(
        *(make_live(running, version, expected_generation=1) for version in (2, 3)), return_exceptions=True
    )
    (lost,) = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert lost.code() is grpc.StatusCode.ABORTED
    assert [rollout.generation for rollout in registry.ledger()] == [1, 2]
    assert (await running.predict()).version == registry.rollout().live


async def test_a_version_with_other_modalities_is_not_promoted(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    running = await serve()
    spec = registry.manifest(1).spec
    modalities = {name: modality for name, modality in spec.modalities.items() if name != "sensor"}
    tiny_bundle(tmp_path / "other", spec=ModelSpec("tiny", modalities, spec.actions, 8))
    registry.publish(tmp_path / "other")
    for call in (make_live(running, 4), running.models.Pin(model_pb2.PinRequest(version=4))):
        code, details = await refusal(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "it takes ['image', 'audio', 'question'] and not ['image', 'audio', 'question', 'sensor']" in details
    assert registry.rollout().generation == 1
    assert (await running.predict()).version == 1


async def test_a_registry_that_vanishes_under_the_server(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    """Live keeps serving, every change is refused with what is wrong, and all is well once the folder is back."""
    running = await serve()
    await make_live(running, 3)
    (tmp_path / "registry").rename(tmp_path / "elsewhere")
    for call in (
        make_live(running, 2),
        running.models.Rollback(model_pb2.RollbackRequest()),
        running.models.Pin(model_pb2.PinRequest(version=1)),
        start(running, 2),
        stop(running),
        running.models.ListVersions(model_pb2.ListVersionsRequest()),
    ):
        code, details = await refusal(call)
        assert code is grpc.StatusCode.UNAVAILABLE, details
        assert "the registry is unavailable" in details
        assert re.search("put (it|them) back", details), details
    assert (await running.predict()).version == 3
    (tmp_path / "elsewhere").rename(tmp_path / "registry")
    assert (await running.models.Rollback(model_pb2.RollbackRequest())).rollout.live == 1
    assert (await running.predict()).version == 1


async def test_experiments_need_the_admin_token_where_there_is_one(serve: Serve) -> None:
    running = await serve(admin_token="sesame-sesame-sesame")
    for call in (start(running, 3), stop(running)):
        code, _ = await refusal(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED


class Records:
    """What a learner would have noted."""

    def __init__(self, known: Mapping[int, Mapping[str, Any]] | None) -> None:
        self.known = known

    def experiment_summary(self, version: int) -> ExperimentSummary | None:
        if self.known is None:
            raise StoreUnavailable("gone")
        details = self.known.get(version)
        return None if details is None else ExperimentSummary(1, version, details)


async def test_a_version_is_shown_with_its_experiment_as_far_as_it_is_known(serve: Serve) -> None:
    running = await serve(statuses=lambda model: Records({2: {"verdict": "reject"}}))
    for version, known in ((2, {"verdict": "reject"}), (3, None)):
        found = await running.models.GetVersion(model_pb2.GetVersionRequest(version=version))
        assert (json.loads(found.experiment_json) if found.experiment_json else None) == known
    away = await serve(statuses=lambda model: Records(None))
    found = await away.models.GetVersion(model_pb2.GetVersionRequest(version=2))
    assert (found.version.version, found.experiment_json) == (2, "")


# --- counting --------------------------------------------------------------------------------------------------------


class Broken:
    """A runtime whose versions give scores that are not finite from a number on."""

    def __init__(self, runtime: Any, version: int) -> None:
        self._runtime = runtime
        self._version = version

    def load(self, folder: Path) -> Any:
        model = self._runtime.load(folder)
        if model.manifest.version == self._version:
            head = model.head
            model.head = lambda embedding, base_logits: head(embedding, base_logits) * np.nan
        return model


async def test_both_arms_are_counted_and_told_to_the_log(serve: Serve, runtime: ModelRuntime) -> None:
    running = await serve(runtime=Broken(runtime, 3))
    await start(running, 3)
    for user in users_of(running, candidate=True, n=3):
        code, _ = await refusal(running.predict(user_id=user))
        assert code is grpc.StatusCode.INTERNAL
    for user in [*users_of(running, candidate=False, n=5), ""]:  # without a user id it counts for neither
        await running.predict(user_id=user)
    code, _ = await refusal(running.predict(user_id="user 1", content={}))  # a wrong request is no failure of a version
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    reported = await reports(running)
    assert {(each.model, each.experiment, each.version) for each in reported} == {("tiny", 2, 3)}
    assert [each.number for each in reported] == list(range(1, len(reported) + 1))
    assert sum(each.live.answered for each in reported) == 5
    assert sum(each.live.failed for each in reported) == 0
    assert sum(each.candidate.answered for each in reported) == 0
    assert sum(each.candidate.failed for each in reported) == 3


async def test_without_an_experiment_nothing_is_reported(serve: Serve) -> None:
    running = await serve()
    await running.predict(user_id="ada")
    assert await reports(running) == []


async def test_a_candidate_that_fails_its_proof_here_is_reported(serve: Serve, registry: DirectoryRegistry) -> None:
    running = await serve()
    damage(registry, 3)
    registry.set_rollout(start_canary(registry.rollout(), 3, 0.5, CHANGE))
    await until(lambda: running.server._models.pick("").live.experiment is not None)
    assert (await running.predict(user_id=users_of(running, candidate=True)[0])).version == 1
    (report,) = await reports(running)
    assert report.problem.startswith("version 3 failed its proof: head.onnx")
    assert (report.live.answered, report.candidate.answered) == (0, 0)


# --- in the shadow ---------------------------------------------------------------------------------------------------


def test_divergence_by_hand() -> None:
    """½·ln(½/¼) + ½·ln(½/¾) = ½·ln 2 − ½·ln 1.5 = 0.143841; equal policies are 0 apart."""
    assert kl_divergence(np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.75, 0.0])) == pytest.approx(0.143841, abs=1e-6)
    assert kl_divergence(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == 0.0


async def shadowed(running: Running, n: int) -> None:
    experiment = running.server._models.pick("").live.experiment
    assert experiment is not None
    await until(lambda: len(experiment._shadows) + experiment._dropped >= n)


async def test_in_the_shadow_every_user_gets_live_answers_and_the_candidates_are_logged(serve: Serve) -> None:
    running = await serve()
    await start(running, 3, 1.0, shadow=True)
    answers = []
    for seed in range(4):
        answers.append(await running.predict(seed, user_id=f"user {seed}"))
        await shadowed(running, seed + 1)
    assert {(answer.version, answer.role) for answer in answers} == {(1, 1)}
    await make_live(running, 3)
    its = [(await running.predict(seed, greedy=True)).action for seed in range(4)]
    reported = await reports(running)  # those of the experiment's last moments too
    shadows = [shadow for each in reported for shadow in each.shadows]
    assert [shadow.prediction_id for shadow in shadows] == [answer.prediction_id for answer in answers]
    assert [shadow.action for shadow in shadows] == its
    best = [max(answer.scores, key=lambda score: score.probability).action for answer in answers]
    assert [shadow.agrees for shadow in shadows] == [ours == theirs for ours, theirs in zip(best, its, strict=True)]
    assert all(shadow.kl_nats > 0.0 and shadow.duration_s > 0.0 and not shadow.failure for shadow in shadows)
    shown = [(each.version, each.role) for each in decisions(running.log)]
    assert shown == [(1, Role.LIVE)] * 4 + [(3, Role.LIVE)] * 4
    assert sum(each.live.answered for each in reported) == 4


async def test_a_version_that_fails_in_the_shadow_fails_no_request(serve: Serve, runtime: ModelRuntime) -> None:
    running = await serve(runtime=Broken(runtime, 3))
    await start(running, 3, 1.0, shadow=True)
    assert (await running.predict(user_id="ada")).version == 1
    await shadowed(running, 1)
    (shadow,) = [shadow for each in await reports(running) for shadow in each.shadows]
    assert shadow.failure == "FloatingPointError: version 3 gave scores that are not finite"


async def test_a_version_that_hangs_in_the_shadow_delays_no_request_and_the_rest_is_dropped(
    serve: Serve, runtime: ModelRuntime
) -> None:
    """The candidate never answers; live goes on, and what cannot be computed is dropped and counted."""
    stuck = StuckRuntime(runtime)

    class OnlyThree:
        def load(self, folder: Path) -> Any:
            return (stuck if folder.name == "000003" else runtime).load(folder)

    running = await serve(runtime=OnlyThree())
    await start(running, 3, 1.0, shadow=True)
    stuck.stuck = True
    for seed in range(24):
        assert (await running.predict(seed, user_id="ada")).version == 1
    assert stuck.entered.wait(10)
    experiment = running.server._models.pick("").live.experiment
    assert experiment is not None
    assert experiment._dropped == 24 - 1 - 16  # one is computed, sixteen wait
    stuck.stuck = False
    stuck.go_on.set()
    reported = await reports(running)
    assert sum(each.dropped + len(each.shadows) for each in reported) == 24


async def test_a_share_of_the_requests_is_computed_in_the_shadow(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await serve()
    draws = iter([0.1, 0.9, 0.29, 0.31])
    monkeypatch.setattr("plaudit.serving.models.experiment_reporter.random.random", lambda: next(draws))
    await start(running, 3, 0.3, shadow=True)
    answers = [await running.predict(seed) for seed in range(4)]
    await shadowed(running, 2)
    ids = [shadow.prediction_id for each in await reports(running) for shadow in each.shadows]
    assert ids == [answers[0].prediction_id, answers[2].prediction_id]
