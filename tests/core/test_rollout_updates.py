"""Compare-and-set: decided again on what is there after a conflict, never repeated after another error, bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import NoPreviousVersion, RolloutMoved
from plaudit.core.rollout import Change, Rollout, pin, promote, rollback
from plaudit.core.rollout_updates import compare_and_set, update_rollout
from support.builders import tiny_bundle, tiny_spec

CHANGE = Change(actor="test", time_s=1.0, reason="because")


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    """Versions 1 and 2, nothing live."""
    registry = DirectoryRegistry(tmp_path / "registry", tiny_spec().name)
    for name in ("one", "two"):
        tiny_bundle(tmp_path / name)
        registry.publish(tmp_path / name)
    return registry


def test_the_rollout_is_set_to_what_the_transition_makes_of_it(registry: DirectoryRegistry) -> None:
    rollout = update_rollout(registry, lambda present: promote(present, 1, CHANGE))
    assert rollout == registry.rollout()
    assert (registry.rollout().live, registry.rollout().generation) == (1, 1)


def test_none_leaves_the_rollout_as_it_is(registry: DirectoryRegistry) -> None:
    assert update_rollout(registry, lambda present: None) is None
    assert list(registry.ledger()) == []


def test_a_change_that_was_overtaken_is_decided_again_on_the_new_rollout(registry: DirectoryRegistry) -> None:
    seen = []

    def overtaken(present: Rollout) -> Rollout | None:
        seen.append(present.generation)
        if len(seen) == 1:
            registry.set_rollout(pin(present, 2, CHANGE))
        return None if present.pinned else promote(present, 1, CHANGE)

    assert update_rollout(registry, overtaken) is None
    assert (seen, registry.rollout().live) == ([0, 1], 2)


def test_an_error_of_the_transition_is_raised_at_once(registry: DirectoryRegistry) -> None:
    attempts = []

    def wrong(present: Rollout) -> Rollout:
        attempts.append(present)
        return rollback(present, CHANGE)

    with pytest.raises(NoPreviousVersion):
        update_rollout(registry, wrong)
    assert len(attempts) == 1


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_after_the_last_attempt_the_conflict_is_raised(max_attempts: int) -> None:
    attempts = []

    def moved(generation: int) -> None:
        attempts.append(generation)
        raise RolloutMoved(generation, generation + 1)

    with pytest.raises(RolloutMoved, match=f"at generation {max_attempts}, not {max_attempts - 1}"):
        compare_and_set(lambda: len(attempts), moved, max_attempts=max_attempts)
    assert attempts == list(range(max_attempts))
