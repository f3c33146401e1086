"""Reward states in blocks: what is written grows with what changed, nothing stays that nothing refers to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from plaudit.adapters.store.engine import sqlite_url
from plaudit.adapters.store.schema import STATE
from plaudit.adapters.store.sql import SqlStore
from plaudit.core.errors import StateTooLarge
from plaudit.core.ports.store import LeaderCommit
from plaudit.learner import state as learner_state
from plaudit.learner.features.action_heads import FixedActions, Learned
from plaudit.learner.state import LearnerState
from plaudit.learner.state_blocks import BlockIndex, read_state
from plaudit_models.bandit.features import FeatureSpace, features
from plaudit_models.bandit.reward_model import CorruptState, RewardState, empty_state, evidence_of_actions

FILE = "experiences.sqlite"
SPACE = FeatureSpace("trunk", n_actions=400, embedding_size=5, embedding_features=8, exclusivity=0.1)


def thumbs(state: RewardState, n: int, seed: int, *, reward: float = 1.0, actions: int = 400) -> RewardState:
    rng = np.random.default_rng(seed)
    phi = features(SPACE, rng.normal(size=(n, 5)), rng.normal(size=(n, 400)))
    return state.add(evidence_of_actions(SPACE, phi, rng.integers(0, actions, n), np.full(n, reward)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore(sqlite_url(tmp_path / FILE))
    assert store.lead()
    yield store
    store.close()


def saved_names(folder: Path) -> set[str]:
    with closing(sqlite3.connect(folder / FILE)) as connection:
        return {part for (part,) in connection.execute(f"SELECT part FROM {STATE.name}")}


def learned(state: RewardState) -> Learned:
    return Learned((FixedActions(state),))


def test_a_thumb_down_writes_what_it_is_about_and_no_more() -> None:
    before = thumbs(empty_state(SPACE), 300, seed=1)
    _, index = BlockIndex().changed({"state": before})
    written, _ = index.changed({"state": thumbs(before, 1, seed=2, reward=0.0)})
    whole, _ = BlockIndex().changed({"state": before})
    sizes = [sum(len(value) for value in values.values() if value) for values in (written, whole)]
    assert sizes[0] < sizes[1] / 4


def test_states_come_back_after_a_restart_bit_for_bit(store: SqlStore) -> None:
    state, served = LearnerState(store), thumbs(empty_state(SPACE), 50, seed=1)
    latest = thumbs(served, 50, seed=2)
    state.save(learned=learned(latest), served_heads={2: served, 3: latest})
    again = LearnerState(store)
    assert again.fixed_actions is not None
    for found, wanted in ((again.fixed_actions.state, latest), (again.served_head(2), served)):
        assert found is not None
        assert found.space == SPACE
        for name in ("shared", "target", "weight"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        assert {k: own.digest for k, own in found.own.items()} == {k: own.digest for k, own in wanted.own.items()}


def test_what_served_is_kept_once_and_goes_with_the_last_that_needs_it(store: SqlStore, tmp_path: Path) -> None:
    state, latest = LearnerState(store), thumbs(empty_state(SPACE), 50, seed=1)
    state.save(learned=learned(latest))
    before = saved_names(tmp_path)
    state.save(served_heads={2: latest})
    assert saved_names(tmp_path) - before == {"served_head/2", "served_heads"}
    after = thumbs(latest, 5, seed=2)
    LearnerState(store).save(learned=learned(after))
    state = LearnerState(store)
    state.save(served_heads={2: None})
    kept, _ = BlockIndex().changed({"fixed_actions": after})
    assert {name for name in saved_names(tmp_path) if name.startswith("block/")} == kept.keys() - {"fixed_actions"}


def test_a_state_of_the_version_before_is_read_and_saved_in_blocks(store: SqlStore, tmp_path: Path) -> None:
    latest = thumbs(empty_state(SPACE), 50, seed=1)
    store.save(LeaderCommit(state={"fixed_actions": latest.to_bytes(), "served_head/7": latest.to_bytes()}))
    state = LearnerState(store)
    assert state.fixed_actions is not None
    assert state.served_head(7) is not None
    state.save(learned=learned(thumbs(state.fixed_actions.state, 1, seed=2)), served_heads={7: None})
    assert "served_head/7" not in saved_names(tmp_path)
    assert LearnerState(store).fixed_actions is not None


def test_a_missing_block_is_named(store: SqlStore, tmp_path: Path) -> None:
    state = LearnerState(store)
    state.save(learned=learned(thumbs(empty_state(SPACE), 5, seed=1)))
    block = min(name for name in saved_names(tmp_path) if name.startswith("block/"))
    store.save(LeaderCommit(state={block: None}))
    with pytest.raises(CorruptState, match=f"fixed_actions: block {block.removeprefix('block/')} .* missing"):
        read_state("fixed_actions", store.get_state)


def test_a_part_that_is_too_large_is_said_and_nothing_changes(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    state, latest = LearnerState(store), thumbs(empty_state(SPACE), 50, seed=1)
    monkeypatch.setattr(learner_state, "MAX_STATE_PART_BYTES", 1_000)
    with pytest.raises(StateTooLarge, match="bytes of the learner's state are more than the 1000"):
        state.save(learned=learned(latest))
    assert state.fixed_actions is None
    assert LearnerState(store).fixed_actions is None


def test_every_block_is_bounded_however_much_was_said() -> None:
    state = empty_state(SPACE)
    for seed in range(20):
        state = thumbs(state, 100, seed, actions=2)
    blocks, _ = BlockIndex().changed({"state": state})
    g = SPACE.n_regressors
    assert any(own.total is not None for own in state.own.values())
    assert max(len(value) for value in blocks.values() if value) < 8 * g * (g + 2)
