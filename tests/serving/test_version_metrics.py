"""What is counted for each version, and that series of versions that are gone leave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.rollout import start_canary
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.version_metrics import EARLIER, SHOWN_AFTER_S, SHOWN_AT_MOST, VersionMetrics
from plaudit.v1 import feedback_pb2
from support.builders import tiny_head_refresh
from support.serving_harness import CHANGE, Running, Serve, a_thumb, go_live, until


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(eq=False)
class Loaded:
    """As much of a version as its metrics look at."""

    manifest: SimpleNamespace


def version(number: int, model: str = "pets") -> Any:
    return Loaded(SimpleNamespace(version=number, spec=SimpleNamespace(name=model)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def page() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def versions(page: CollectorRegistry, clock: Clock) -> VersionMetrics:
    return VersionMetrics(page, clock)


def shown(registry: CollectorRegistry, model: str = "pets") -> set[str]:
    return {
        sample.labels["version"]
        for family in registry.collect()
        for sample in family.samples
        if sample.labels.get("model") == model and "version" in sample.labels
    }


def test_an_unloaded_version_is_shown_for_a_while_and_then_leaves(
    versions: VersionMetrics, page: CollectorRegistry, clock: Clock
) -> None:
    for number in (1, 2):
        versions.of(version(number)).answered(0.01, explored=False)
        versions.feedback("pets", number, "thumb", "accepted").inc()
    versions.keep("pets", [1, 2])
    versions.keep("pets", [2])
    clock.now_s = SHOWN_AFTER_S - 1
    versions.keep("pets", [2])
    assert shown(page) == {"1", "2"}
    clock.now_s = SHOWN_AFTER_S
    versions.keep("pets", [2])
    assert shown(page) == {"2"}


def test_a_version_that_comes_back_in_time_counts_on(
    versions: VersionMetrics, page: CollectorRegistry, clock: Clock
) -> None:
    versions.of(version(1)).answered(0.01, explored=False)
    versions.keep("pets", [2])
    versions.keep("pets", [1, 2])
    clock.now_s = 2 * SHOWN_AFTER_S
    versions.keep("pets", [1, 2])
    versions.of(version(1)).answered(0.01, explored=False)
    labels = {"model": "pets", "version": "1"}
    assert page.get_sample_value("plaudit_serving_predictions_total", labels) == 2


def test_a_request_that_outlives_its_version_brings_no_series_back(
    versions: VersionMetrics, page: CollectorRegistry, clock: Clock
) -> None:
    slow = version(1)
    versions.of(slow).answered(0.01, explored=False)
    versions.keep("pets", [2])
    clock.now_s = SHOWN_AFTER_S
    versions.keep("pets", [2])
    versions.of(slow).answered(60.0, explored=True)
    assert shown(page) == set()


def test_after_500_versions_a_scrape_is_as_large_as_after_fifty(
    versions: VersionMetrics, page: CollectorRegistry
) -> None:
    sizes = {}
    for number in range(1, 501):
        loaded = version(number)
        versions.keep("pets", {1, number})
        versions.of(loaded).answered(0.01, explored=True)
        for status in ("accepted", "duplicate"):
            versions.feedback("pets", number, "thumb", status).inc()
        sizes[number] = len(generate_latest(page).splitlines())
    assert sizes[500] == sizes[50]
    assert shown(page) == {"1", *(str(number) for number in range(500 - SHOWN_AT_MOST, 501))}


def test_models_are_kept_apart(versions: VersionMetrics, page: CollectorRegistry, clock: Clock) -> None:
    for model in ("pets", "cars"):
        versions.of(version(1, model)).answered(0.01, explored=False)
    versions.keep("pets", [])
    clock.now_s = SHOWN_AFTER_S
    versions.keep("pets", [])
    assert (shown(page, "pets"), shown(page, "cars")) == (set(), {"1"})


def test_feedback_on_versions_that_are_gone_shares_one_series(
    versions: VersionMetrics, page: CollectorRegistry
) -> None:
    versions.keep("pets", [90])
    for number in range(91):
        versions.feedback("pets", number, "thumb", "accepted").inc()
    assert shown(page) == {EARLIER, "90"}
    labels = {"model": "pets", "version": EARLIER, "kind": "thumb", "status": "accepted"}
    assert page.get_sample_value("plaudit_serving_feedback_total", labels) == 90


# --- on a server -----------------------------------------------------------------------------------------------------

STAGES = ["prediction_seconds", "decode_seconds", "queue_seconds", "batch_requests", "inference_seconds"]


def serves(running: Running, version: int) -> bool:
    return running.metric("plaudit_serving_live_version") == version


def refresh(registry: DirectoryRegistry, tmp_path: Path, number: int, **fields: Any) -> int:
    folder = tmp_path / f"made-{number}"
    tiny_head_refresh(folder, registry.folder(1), prefer="dog", **fields)
    return registry.publish(folder).version


async def test_every_stage_is_measured_under_the_version_that_it_was_spent_on(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    running = await serve()
    for seed in range(3):
        await running.predict(seed)
    go_live(registry, 2)
    await until(lambda: running.metric("plaudit_serving_live_version") == 2)
    answers = [await running.predict(seed) for seed in range(2)]
    assert {answer.version for answer in answers} == {2}
    for stage in STAGES:
        counts = [
            running.metric(f"plaudit_serving_{stage}_count", model="tiny", version=version) for version in ("1", "2")
        ]
        assert counts == [3, 2], stage
    assert running.metric("plaudit_serving_predictions_total", version="1") == 3
    assert running.metric("plaudit_serving_proof_seconds_count", model="tiny") == 2
    assert running.metric("plaudit_serving_warming_seconds_count", model="tiny") == 2
    assert running.metric("plaudit_serving_swaps_total", model="tiny") == 1


async def test_feedback_is_counted_under_the_version_that_it_judges(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    running = await serve()
    old = await running.predict()
    go_live(registry, 2)
    await until(lambda: running.metric("plaudit_serving_live_version") == 2)
    new = await running.predict()
    await running.feedback.SendFeedback(a_thumb(old.prediction_id, "f1"))
    await running.feedback.SendFeedback(a_thumb(new.prediction_id, "f2", thumb=feedback_pb2.THUMB_DOWN))
    await running.feedback.SendFeedback(a_thumb(new.prediction_id, "f2", thumb=feedback_pb2.THUMB_DOWN))
    name, thumbs = "plaudit_serving_feedback_total", {"model": "tiny", "kind": "thumb"}
    assert running.metric(name, version="1", status="accepted", **thumbs) == 1
    assert running.metric(name, version="2", status="accepted", **thumbs) == 1
    assert running.metric(name, version="2", status="duplicate", **thumbs) == 1


async def test_exploration_is_what_was_drawn_against_the_odds(serve: Serve, registry: DirectoryRegistry) -> None:
    """Greedy answers never explore; of the others those do whose action is not the first of the scores."""
    running = await serve()
    answers = [await running.predict(seed) for seed in range(60)]
    explored = sum(answer.action != answer.scores[0].action for answer in answers)
    assert 0 < explored < 60
    await running.predict(greedy=True)
    assert running.metric("plaudit_serving_explored_total", model="tiny", version="1") == explored


async def test_versions_come_and_go_and_so_do_their_series(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    running = await serve()
    go_live(registry, 2)
    await until(lambda: running.metric("plaudit_serving_live_version") == 2)
    await running.predict()
    assert running.metric("plaudit_serving_predictions_total", version="2") == 1
    for number in range(SHOWN_AT_MOST + 5):
        last = refresh(registry, tmp_path, number)
        go_live(registry, last)
        await until(partial(serves, running, last))
        await running.predict()
    await until(lambda: running.metric("plaudit_serving_predictions_total", version="2") == 0)
    versions = shown(running.metrics.registry, "tiny")
    assert str(last) in versions
    assert "2" not in versions
    assert len(versions) <= SHOWN_AT_MOST + 3


async def test_freshness_is_measured_when_a_version_first_serves(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    running = await serve()
    fresh = refresh(registry, tmp_path, 2, data={"last_feedback_time_s": 1_700_000_000.0})
    count = "plaudit_serving_freshness_seconds_count"
    go_live(registry, fresh)
    await until(lambda: running.metric("plaudit_serving_live_version") == fresh)
    assert running.metric(count, model="tiny") == 1
    assert running.metric("plaudit_serving_freshness_seconds_sum", model="tiny") > 60.0  # that feedback is years old
    for again in (1, fresh):
        go_live(registry, again)
        await until(partial(serves, running, again))
    assert running.metric(count, model="tiny") == 1


async def test_an_experiment_is_shown_while_it_lasts(serve: Serve, registry: DirectoryRegistry, tmp_path: Path) -> None:
    running = await serve()
    candidate = 2
    registry.set_rollout(start_canary(registry.rollout(), candidate, 0.25, CHANGE))
    await until(lambda: running.metric("plaudit_serving_candidate_version", model="tiny") == candidate)
    assert running.metric("plaudit_serving_candidate_share_ratio", model="tiny") == 0.25
    go_live(registry, candidate)
    await until(lambda: running.metric("plaudit_serving_candidate_version", model="tiny") == 0)
    assert running.metric("plaudit_serving_candidate_share_ratio", model="tiny") == 0


def test_a_model_that_is_unloaded_is_not_shown_as_serving() -> None:
    metrics = ServingMetrics(CollectorRegistry())
    metrics.live_version.labels("tiny").set(7)
    metrics.forget("tiny")
    assert metrics.registry.get_sample_value("plaudit_serving_live_version", {"model": "tiny"}) is None
