"""Following the registry: what serves, what stays loaded, and what happens to versions that are not what they say."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client import CollectorRegistry

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import NoLiveModel, UnknownVersion, UnprovenVersion
from plaudit.core.events import Role
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.rollout import Rollout, end_canary, in_experiment, promote, rollback, start_canary
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.bundle import HEAD, TRUNK, CorruptBundle
from support.builders import tiny_bundle, tiny_spec
from support.serving_harness import CHANGE, damage, go_live


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class CountingRuntime:
    """Counts loads of a real runtime."""

    runtime: Any
    loads: Counter[str] = field(default_factory=Counter)

    def load(self, folder: Path) -> Any:
        self.loads[folder.name] += 1
        return self.runtime.load(folder)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counting(runtime: ModelRuntime) -> CountingRuntime:
    return CountingRuntime(runtime)


@pytest.fixture
def live(registry: DirectoryRegistry, counting: CountingRuntime, metrics: ServingMetrics, clock: Clock) -> LiveModel:
    return LiveModel(registry, counting, metrics, max_batch=2, clock=clock)


def version(live: LiveModel) -> int:
    return live.serving().manifest.version


def value(metrics: ServingMetrics, name: str) -> float:
    return metrics.registry.get_sample_value(name, {"model": "tiny"}) or 0.0


def test_nothing_serves_before_the_first_look(live: LiveModel) -> None:
    with pytest.raises(NoLiveModel, match="tiny"):
        live.serving()


def test_it_serves_what_the_rollout_says(live: LiveModel, registry: DirectoryRegistry, metrics: ServingMetrics) -> None:
    live.sync()
    assert (version(live), live.serving().digest) == (1, registry.manifest(1).digest)
    assert value(metrics, "plaudit_serving_live_version") == 1
    assert value(metrics, "plaudit_serving_live_since_timestamp_seconds") > 0
    go_live(registry, 3)
    live.sync()
    assert (version(live), live.serving().digest) == (3, registry.manifest(3).digest)
    assert value(metrics, "plaudit_serving_live_version") == 3
    assert value(metrics, "plaudit_serving_swaps_total") == 1
    assert value(metrics, "plaudit_serving_swap_seconds_count") == 1


def test_it_is_warm_before_it_serves(live: LiveModel) -> None:
    live.sync()
    model: Any = live.current
    assert model._trunk.warm == {1, 2}


def test_an_empty_registry_serves_nothing(
    registry: DirectoryRegistry, counting: CountingRuntime, metrics: ServingMetrics, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "registry")
    live = LiveModel(registry, counting, metrics, max_batch=1)
    live.sync()
    assert live.current is None


def test_rolling_back_loads_nothing(live: LiveModel, registry: DirectoryRegistry, counting: CountingRuntime) -> None:
    live.sync()
    go_live(registry, 3)
    live.sync()
    loads = counting.loads.total()
    registry.set_rollout(rollback(registry.rollout(), CHANGE))
    live.sync()
    assert version(live) == 1
    assert counting.loads.total() == loads


def test_what_rollback_returns_to_is_loaded_after_a_restart_too(
    registry: DirectoryRegistry, counting: CountingRuntime, metrics: ServingMetrics
) -> None:
    go_live(registry, 2)
    live = LiveModel(registry, counting, metrics, max_batch=1)
    live.sync()
    assert version(live) == 2
    assert counting.loads == {"000002": 1, "000001": 1}


def test_older_versions_are_released(live: LiveModel, registry: DirectoryRegistry) -> None:
    live.sync()
    old = weakref.ref(live.current)
    go_live(registry, 2)
    live.sync()
    assert old() is not None  # it is what rollback returns to
    go_live(registry, 3)
    live.sync()
    assert old() is None


def test_who_uses_an_older_version_keeps_it(live: LiveModel, registry: DirectoryRegistry) -> None:
    live.sync()
    in_use = live.serving()
    for number in (2, 3):
        go_live(registry, number)
        live.sync()
    assert in_use.manifest.version == 1
    in_use.warm([5])


@pytest.mark.parametrize("name", [HEAD, TRUNK])
def test_a_damaged_version_never_serves_and_is_not_tried_in_a_hot_loop(
    live: LiveModel,
    registry: DirectoryRegistry,
    counting: CountingRuntime,
    metrics: ServingMetrics,
    clock: Clock,
    name: str,
) -> None:
    live.sync()
    damage(registry, 3, name)
    go_live(registry, 3)
    for _ in range(50):
        live.sync()
    assert version(live) == 1
    assert counting.loads["000003"] == 1
    assert value(metrics, "plaudit_serving_failed_proofs_total") == 1
    clock.now_s += 1.5
    live.sync()
    assert counting.loads["000003"] == 2
    clock.now_s += 1.5  # the second pause is twice as long
    live.sync()
    assert counting.loads["000003"] == 2


def test_a_damaged_version_that_is_mended_serves_after_a_while(
    live: LiveModel, registry: DirectoryRegistry, clock: Clock
) -> None:
    live.sync()
    damage(registry, 3)
    go_live(registry, 3)
    live.sync()
    damage(registry, 3)  # flips the bit back
    clock.now_s += 2.0
    live.sync()
    assert version(live) == 3


def test_after_a_restart_a_proven_version_serves_where_the_live_one_is_damaged(
    registry: DirectoryRegistry, counting: CountingRuntime, metrics: ServingMetrics
) -> None:
    go_live(registry, 3)
    damage(registry, 3)
    live = LiveModel(registry, counting, metrics, max_batch=1)
    live.sync()
    assert version(live) == 1


def test_a_folder_that_holds_another_version(live: LiveModel, registry: DirectoryRegistry) -> None:
    live.sync()
    shutil.rmtree(registry.folder(3))
    shutil.copytree(registry.folder(2), registry.folder(2).with_name("000003"))
    with pytest.raises(UnprovenVersion, match="holds version 2"):
        live.prepare(3)


def test_a_registry_that_vanishes_leaves_what_serves(
    live: LiveModel, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    live.sync()
    shutil.rmtree(tmp_path / "registry")
    live.sync()
    assert version(live) == 1


def test_a_rollout_file_that_cannot_be_read_leaves_what_serves(
    live: LiveModel, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    live.sync()
    (tmp_path / "registry/tiny/rollout.json").write_text("{")
    live.sync()
    live.sync()
    assert version(live) == 1


def test_a_version_that_vanishes_before_it_is_loaded(live: LiveModel, registry: DirectoryRegistry) -> None:
    live.sync()
    go_live(registry, 3)
    shutil.rmtree(registry.folder(3))
    live.sync()
    assert version(live) == 1


def test_preparing_makes_the_flip_load_nothing(
    live: LiveModel, registry: DirectoryRegistry, counting: CountingRuntime
) -> None:
    live.sync()
    live.prepare(3)
    live.sync()
    assert version(live) == 1
    go_live(registry, 3)
    live.sync()
    assert version(live) == 3
    assert counting.loads["000003"] == 1


def test_preparing_what_cannot_serve(live: LiveModel, registry: DirectoryRegistry, metrics: ServingMetrics) -> None:
    damage(registry, 3)
    with pytest.raises(UnprovenVersion, match=r"version 3 failed its proof: head\.onnx"):
        live.prepare(3)
    with pytest.raises(UnknownVersion, match="9"):
        live.prepare(9)
    assert value(metrics, "plaudit_serving_failed_proofs_total") == 1


def test_why_nothing_serves_is_told_to_clients_without_paths(live: LiveModel, registry: DirectoryRegistry) -> None:
    damage(registry, 1)
    live.sync()
    with pytest.raises(NoLiveModel, match=r"version 1 does not run here: .* head\.onnx") as told:
        live.serving()
    assert str(registry.folder(1).parent) not in str(told.value)
    assert len(str(told.value)) < 500


def test_a_version_that_cannot_run_batches_of_its_recorded_rows_fails_its_proof(
    registry: DirectoryRegistry, runtime: ModelRuntime, metrics: ServingMetrics
) -> None:
    class Unwarm:
        def load(self, folder: Path) -> Any:
            model: Any = runtime.load(folder)

            def warm(sizes: Any, again: bool = False) -> None:
                raise RuntimeError("no kernel for batches")

            model.warm = warm
            return model

    live = LiveModel(registry, Unwarm(), metrics, max_batch=2)
    live.sync()
    with pytest.raises(NoLiveModel, match="it cannot run batches of recorded rows: no kernel for batches"):
        live.serving()
    with pytest.raises(UnprovenVersion):
        live.prepare(1)
    assert value(metrics, "plaudit_serving_failed_proofs_total") == 2


def test_a_model_of_another_name(live: LiveModel, registry: DirectoryRegistry, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "other", spec=tiny_spec("other"))
    folder = registry.folder(3)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "other", folder)
    with pytest.raises(UnprovenVersion, match="'other'"):
        live.prepare(3)


# --- any sequence of events ------------------------------------------------------------------------------------------


class World:
    """A registry and a runtime in memory, some of whose versions are damaged or gone."""

    model = "tiny"

    def __init__(self) -> None:
        self.present = Rollout("tiny")
        self.damaged: set[int] = set()
        self.gone: set[int] = set()
        self.away = False
        self.loads: Counter[int] = Counter()

    def rollout(self) -> Rollout:
        if self.away:
            raise OSError("the registry is away")
        return self.present

    def first_live(self, version: int) -> Rollout | None:
        return None

    def versions(self) -> list[int]:
        return [number for number in range(1, 100) if number not in self.gone]

    def folder(self, number: int) -> Path:
        if self.away or number in self.gone:
            raise UnknownVersion(number, [])
        return Path(str(number))

    def load(self, folder: Path) -> Any:
        number = int(folder.name)
        self.loads[number] += 1
        if number in self.damaged:
            raise CorruptBundle("one byte is wrong")
        manifest = SimpleNamespace(
            version=number, data={}, spec=SimpleNamespace(name="tiny"), trunk_digest=f"t{number}"
        )
        return SimpleNamespace(manifest=manifest, digest=f"d{number}", warm=lambda sizes, again=False: None)


NUMBERS = st.integers(1, 3)


class Following(RuleBasedStateMachine):
    """Whatever is promoted, damaged, mended, lost and found: no damaged version ever begins to serve, what serves goes
    on serving, a sound version serves after one look, and a failing one is tried once per pause."""

    @initialize()
    def start(self) -> None:
        self.world = World()
        self.clock = Clock()
        registry: Any = self.world
        self.live = LiveModel(registry, self.world, ServingMetrics(CollectorRegistry()), max_batch=1, clock=self.clock)
        self.decision = False

    @rule(number=NUMBERS)
    def promote(self, number: int) -> None:
        self.world.present = promote(self.world.present, number, CHANGE)

    @precondition(lambda self: self.world.present.previous is not None)
    @rule()
    def rollback(self) -> None:
        self.world.present = rollback(self.world.present, CHANGE)

    @rule(number=NUMBERS)
    def damage_or_mend(self, number: int) -> None:
        self.world.damaged ^= {number}

    @rule(number=NUMBERS)
    def lose_or_find(self, number: int) -> None:
        self.world.gone ^= {number}

    @rule()
    def leave_or_return(self) -> None:
        self.world.away = not self.world.away

    @rule()
    def a_minute_later(self) -> None:
        self.clock.now_s += 61.0

    @rule()
    def look(self) -> None:
        before = self.live.current
        proven_before = set(self.live._loaded)  # and may serve from memory, whatever became of their folders
        pausing = {v for v, failure in self.live._failures.items() if self.clock.now_s < failure.retry_s}
        unusable = (self.world.damaged | self.world.gone) - proven_before
        loads = self.world.loads.copy()
        self.live.sync()
        assert all(self.world.loads[number] == loads[number] for number in pausing)
        after = self.live.current
        wanted = self.world.present.live
        if self.world.away or wanted is None:
            assert after is before
            return
        if after is not before:
            assert after is not None
            assert after.manifest.version not in unusable
        if wanted not in unusable | pausing:
            assert after is not None
            assert after.manifest.version == wanted

    @invariant()
    def what_serves_goes_on(self) -> None:
        assert not self.decision or self.live.current is not None
        self.decision = self.live.current is not None

    @invariant()
    def few_are_kept(self) -> None:
        assert len(self.live._loaded) <= 4


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# --- the canary ------------------------------------------------------------------------------------------------------


def test_a_candidate_serves_its_share_of_the_users_alone(registry: DirectoryRegistry, live: LiveModel) -> None:
    go_live(registry, 1)
    candidate = 2
    registry.set_rollout(start_canary(registry.rollout(), candidate, 0.5, CHANGE))
    live.sync()
    parts: Counter[Role] = Counter()
    for user in (f"user {i}" for i in range(200)):
        model, role = live.bound(None, user)
        assert (model.manifest.version == candidate) == (role is Role.CANDIDATE) == in_experiment(live.rollout, user)
        parts[role] += 1
    assert min(parts[Role.LIVE], parts[Role.CANDIDATE]) > 50
    registry.set_rollout(end_canary(registry.rollout(), CHANGE))
    live.sync()
    assert {live.bound(None, f"user {i}")[1] for i in range(200)} == {Role.LIVE}


def test_a_candidate_that_fails_its_proof_serves_no_user(registry: DirectoryRegistry, live: LiveModel) -> None:
    go_live(registry, 1)
    candidate = 2
    damaged = registry.folder(candidate) / HEAD
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.unlink()
    damaged.write_bytes(bytes(data))
    registry.set_rollout(start_canary(registry.rollout(), candidate, 0.5, CHANGE))
    live.sync()
    assert {live.bound(None, f"user {i}")[1] for i in range(200)} == {Role.LIVE}
