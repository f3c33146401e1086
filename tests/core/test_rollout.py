"""The transitions between rollouts, one by one and in any order."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plaudit.core.errors import (
    ExperimentActive,
    NoActiveExperiment,
    NoPreviousVersion,
    VersionAlreadyLive,
    VersionPinned,
)
from plaudit.core.rollout import (
    Change,
    Rollout,
    confirm,
    end_canary,
    in_experiment,
    pin,
    promote,
    refresh,
    revert,
    rollback,
    rollout_from_dict,
    start_canary,
    unpin,
)

CHANGE = Change(actor="ada", time_s=5.0, reason="because")
EMPTY = Rollout("tiny")


def state(rollout: Rollout) -> tuple[int | None, int | None, int | None]:
    return rollout.live, rollout.previous, rollout.gated


def test_promote_goes_live_and_is_gated() -> None:
    first = promote(EMPTY, 1, CHANGE)
    assert first == Rollout("tiny", 1, live=1, gated=1, changed_at_s=5.0, reason="because", actor="ada")
    assert state(promote(first, 2, CHANGE)) == (2, 1, 2)


def test_refresh_leaves_the_gated_version() -> None:
    rollout = refresh(refresh(promote(EMPTY, 1, CHANGE), 2, CHANGE), 3, CHANGE)
    assert state(rollout) == (3, 2, 1)


def test_confirm_makes_the_live_version_the_gated_one() -> None:
    assert state(confirm(refresh(promote(EMPTY, 1, CHANGE), 2, CHANGE), CHANGE)) == (2, 1, 2)


def test_revert_goes_back_to_the_gated_version() -> None:
    rollout = refresh(refresh(promote(EMPTY, 1, CHANGE), 2, CHANGE), 3, CHANGE)
    reverted = revert(rollout, CHANGE)
    assert state(reverted) == (1, 3, 1)
    with pytest.raises(NoPreviousVersion):
        revert(reverted, CHANGE)


def test_rollback_twice_returns() -> None:
    rollout = promote(promote(EMPTY, 1, CHANGE), 2, CHANGE)
    back = rollback(rollout, CHANGE)
    assert state(back) == (1, 2, 1)
    assert state(rollback(back, CHANGE)) == (2, 1, 2)


def test_rollback_needs_something_to_go_back_to() -> None:
    with pytest.raises(NoPreviousVersion):
        rollback(EMPTY, CHANGE)
    with pytest.raises(NoPreviousVersion):
        rollback(promote(EMPTY, 1, CHANGE), CHANGE)


def test_promoting_the_live_version_keeps_what_was_before_it() -> None:
    rollout = promote(promote(EMPTY, 1, CHANGE), 2, CHANGE)
    assert state(promote(rollout, 2, CHANGE)) == (2, 1, 2)


def test_a_pinned_version_stays() -> None:
    pinned = pin(promote(promote(EMPTY, 1, CHANGE), 2, CHANGE), 1, CHANGE)
    assert (pinned.live, pinned.pinned) == (1, True)
    with pytest.raises(VersionPinned, match="version 1 is pinned"):
        promote(pinned, 3, CHANGE)
    with pytest.raises(VersionPinned):
        refresh(pinned, 3, CHANGE)
    with pytest.raises(VersionPinned):
        rollback(pinned, CHANGE)
    freed = unpin(pinned, CHANGE)
    assert (freed.live, freed.pinned) == (1, False)
    assert promote(freed, 3, CHANGE).live == 3


def test_another_pin_replaces_a_pin() -> None:
    pinned = pin(pin(promote(EMPTY, 1, CHANGE), 1, CHANGE), 2, CHANGE)
    assert (pinned.live, pinned.previous, pinned.pinned) == (2, 1, True)


VERSIONS = st.integers(1, 6)


class Rollouts(RuleBasedStateMachine):
    """Any order of transitions, against what must hold in all of them."""

    @initialize()
    def begin(self) -> None:
        self.rollout = EMPTY
        self.been_live: set[int | None] = {None}
        self.before = EMPTY

    def move(self, after: Rollout) -> None:
        self.before, self.rollout = self.rollout, after
        self.been_live.add(after.live)

    @rule(version=VERSIONS)
    def promote(self, version: int) -> None:
        if self.rollout.pinned:
            with pytest.raises(VersionPinned):
                promote(self.rollout, version, CHANGE)
        else:
            self.move(promote(self.rollout, version, CHANGE))
            assert self.rollout.live == self.rollout.gated == version

    @rule(version=VERSIONS)
    def refresh(self, version: int) -> None:
        if self.rollout.pinned:
            with pytest.raises(VersionPinned):
                refresh(self.rollout, version, CHANGE)
        else:
            self.move(refresh(self.rollout, version, CHANGE))
            assert (self.rollout.live, self.rollout.gated) == (version, self.before.gated)

    @rule()
    @precondition(lambda self: self.rollout.live is not None)
    def confirm(self) -> None:
        self.move(confirm(self.rollout, CHANGE))
        assert self.rollout.gated == self.rollout.live == self.before.live

    @rule()
    def revert(self) -> None:
        if self.rollout.gated in (None, self.rollout.live):
            with pytest.raises(NoPreviousVersion):
                revert(self.rollout, CHANGE)
        elif self.rollout.pinned:
            with pytest.raises(VersionPinned):
                revert(self.rollout, CHANGE)
        else:
            self.move(revert(self.rollout, CHANGE))
            assert self.rollout.live == self.rollout.gated == self.before.gated

    @rule()
    def rollback(self) -> None:
        if self.rollout.previous is None:
            with pytest.raises(NoPreviousVersion):
                rollback(self.rollout, CHANGE)
        elif self.rollout.pinned:
            with pytest.raises(VersionPinned):
                rollback(self.rollout, CHANGE)
        else:
            self.move(rollback(self.rollout, CHANGE))
            assert self.rollout.live == self.before.previous

    @rule(version=VERSIONS)
    def pin(self, version: int) -> None:
        self.move(pin(self.rollout, version, CHANGE))
        assert (self.rollout.live, self.rollout.pinned) == (version, True)

    @rule()
    def unpin(self) -> None:
        self.move(unpin(self.rollout, CHANGE))
        assert (self.rollout.live, self.rollout.pinned) == (self.before.live, False)

    @invariant()
    def each_change_is_one_generation(self) -> None:
        assert self.rollout.generation == self.before.generation + (self.rollout is not self.before)

    @invariant()
    def what_is_named_has_served(self) -> None:
        assert {self.rollout.live, self.rollout.previous, self.rollout.gated} <= self.been_live

    @invariant()
    def previous_is_another_version(self) -> None:
        assert self.rollout.live is None or self.rollout.previous != self.rollout.live

    @invariant()
    def what_leaves_live_is_previous(self) -> None:
        if self.rollout.live != self.before.live:
            assert self.rollout.previous == self.before.live


TestRollouts = Rollouts.TestCase


# --- the canary ------------------------------------------------------------------------------------------------------


def test_an_experiment_is_sticky_and_has_its_share() -> None:
    experiment = start_canary(Rollout("m", live=1), 2, 0.25, CHANGE)
    users = [f"user {i}" for i in range(4000)]
    chosen = [in_experiment(experiment, user) for user in users]
    assert chosen == [in_experiment(experiment, user) for user in users]
    assert 0.22 < sum(chosen) / len(users) < 0.28
    assert chosen != [in_experiment(start_canary(Rollout("m", live=1), 3, 0.25, CHANGE), user) for user in users]


def test_a_request_without_a_user_is_never_in_an_experiment() -> None:
    assert not in_experiment(start_canary(Rollout("m", live=1), 2, 0.999, CHANGE), "")


def test_a_refresh_leaves_the_experiment_alone_and_a_promotion_ends_it() -> None:
    experiment = start_canary(Rollout("m", live=1, gated=1), 2, 0.25, CHANGE)
    refreshed = refresh(experiment, 3, CHANGE)
    assert (refreshed.live, refreshed.candidate, refreshed.candidate_share) == (3, 2, 0.25)
    for ended in (promote(refreshed, 2, CHANGE), end_canary(refreshed, CHANGE), pin(refreshed, 3, CHANGE)):
        assert (ended.candidate, ended.candidate_share) == (None, 0.0)
        assert not in_experiment(ended, "user 1")


def test_no_experiment_beside_a_pinned_version() -> None:
    with pytest.raises(VersionPinned):
        start_canary(Rollout("m", live=1, pinned=True), 2, 0.25, CHANGE)


def test_one_experiment_at_a_time_and_never_of_the_live_version() -> None:
    live = promote(EMPTY, 1, CHANGE)
    with pytest.raises(VersionAlreadyLive, match="version: 1 is live"):
        start_canary(live, 1, 0.1, CHANGE)
    trying = start_canary(live, 2, 0.1, CHANGE)
    assert (trying.candidate, trying.experiment, trying.shadow) == (2, 2, False)
    assert refresh(trying, 4, CHANGE).experiment == 2
    for version in (2, 3):
        with pytest.raises(ExperimentActive, match="2 is in an experiment already; stop that experiment first"):
            start_canary(trying, version, 0.1, CHANGE)
    with pytest.raises(NoActiveExperiment, match="version 3 is not in an experiment; version 2 is"):
        end_canary(trying, CHANGE, version=3)
    ended = end_canary(trying, CHANGE, version=2)
    assert (ended.candidate, ended.candidate_share, ended.experiment) == (None, 0.0, 0)
    with pytest.raises(NoActiveExperiment, match="no version is in an experiment"):
        end_canary(ended, CHANGE)


def test_in_the_shadow_no_user_is_in_an_experiment_and_a_pinned_version_may_have_one() -> None:
    pinned = pin(promote(EMPTY, 1, CHANGE), 1, CHANGE)
    with pytest.raises(VersionPinned):
        start_canary(pinned, 2, 0.5, CHANGE)
    shadow = start_canary(pinned, 2, 1.0, CHANGE, shadow=True)
    assert not any(in_experiment(shadow, f"user {i}") for i in range(100))


def test_what_is_no_rollout_is_named() -> None:
    with pytest.raises(ValueError, match=r"'live': 3.* is no rollout: .*model"):
        rollout_from_dict({"live": 3})


def test_the_draw_of_an_experiment_cannot_be_computed_without_its_salt() -> None:
    users = [f"user {n}" for n in range(2000)]
    began = [start_canary(Rollout("m", live=1), 2, 0.25, CHANGE, salt=salt) for salt in ("", "pepper", "salt")]
    public, one, two = ([in_experiment(rollout, user) for user in users] for rollout in began)
    assert one == [in_experiment(began[1], user) for user in users]
    for drawn in (one, two):
        agreeing = sum(a and b for a, b in zip(drawn, public, strict=True))
        assert 0.2 < sum(drawn) / len(users) < 0.3
        assert agreeing / sum(drawn) < 0.35  # as good as by chance, 0.25
    assert "pepper" not in repr(began[1])
    assert end_canary(began[1], CHANGE).salt == ""
    assert rollout_from_dict(asdict(began[1])) == began[1]
