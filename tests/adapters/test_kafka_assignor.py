"""Sharing partitions out, round by round, as a group does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.adapters.log.kafka.assignor import assign_evenly


def _settle(owned: dict[str, set[int]], count: int) -> tuple[dict[str, set[int]], int]:
    """Assignment by member once nothing changes any more, and the number of rounds that changed something."""
    rounds = 0
    while (shares := assign_evenly(range(count), owned)) != owned:
        for number in range(count):
            holders = {member for member, held in owned.items() if number in held}
            takers = {member for member, held in shares.items() if number in held}
            assert not holders or takers <= holders, "given to another member while it is still held"
        owned, rounds = shares, rounds + 1
    return owned, rounds


def test_one_member_gets_everything_at_once() -> None:
    assert assign_evenly(range(3), {"a": set()}) == {"a": {0, 1, 2}}


def test_newcomers_share_evenly_at_once() -> None:
    shares = assign_evenly(range(5), {"a": set(), "b": set()})
    assert sorted(map(len, shares.values())) == [2, 3]
    assert shares["a"] | shares["b"] == set(range(5))


def test_who_has_too_much_lets_go_before_others_get_it() -> None:
    first = assign_evenly(range(6), {"a": {0, 1, 2, 3, 4, 5}, "b": set()})
    assert first == {"a": {0, 1, 2}, "b": set()}
    assert assign_evenly(range(6), first) == {"a": {0, 1, 2}, "b": {3, 4, 5}}


def test_what_need_not_move_stays() -> None:
    settled, rounds = _settle({"a": {0, 1, 2}, "b": {3, 4, 5}, "c": set()}, 6)
    assert settled["a"] < {0, 1, 2}
    assert settled["b"] < {3, 4, 5}
    assert rounds == 2


def test_what_a_dead_member_had_is_free_at_once() -> None:
    assert assign_evenly(range(4), {"a": {0, 1}, "c": set()}) == {"a": {0, 1}, "c": {2, 3}}


def test_a_partition_claimed_twice_is_unassigned_until_both_release_it() -> None:
    shares = assign_evenly(range(2), {"a": {0, 1}, "b": {1}})
    assert shares == {"a": {0}, "b": set()}
    assert assign_evenly(range(2), shares) == {"a": {0}, "b": {1}}


def test_more_members_than_partitions() -> None:
    settled, _ = _settle({name: set() for name in "abcd"}, 3)
    assert sorted(map(len, settled.values())) == [0, 1, 1, 1]


def test_what_is_no_partition_any_more_is_forgotten() -> None:
    assert assign_evenly(range(1), {"a": {0, 7}}) == {"a": {0}}


@pytest.mark.parametrize("count", [1, 4, 7, 12])
@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_settles_evenly_from_anywhere(count: int, members: int) -> None:
    start: dict[str, set[int]] = {f"m{number}": set() for number in range(members)}
    start["m0"] = set(range(count))
    settled, rounds = _settle(start, count)
    sizes = [len(held) for held in settled.values()]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert rounds <= 2


class _Group:
    """A group as the broker and kafka-python run it: every member joins each round with what it claims to own.

    Attributes:
        owned: partition numbers that each member believes it owns.
        rejoins: whether a member will join again: it lost something, or somebody came or left.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.owned: dict[str, set[int]] = {}
        self.rejoins = False

    def join(self, name: str, claims: set[int]) -> None:
        """``claims``: what a member owned before it was away for so long that others have it."""
        self.owned[name] = claims
        self.rejoins = True

    def leave(self, name: str) -> None:
        """Closed or killed: what it had is nobody's."""
        del self.owned[name]
        self.rejoins = bool(self.owned)

    def round(self) -> None:
        shares = assign_evenly(range(self.count), self.owned)
        claims = [number for held in self.owned.values() for number in held]
        for member, share in shares.items():
            for number in share - self.owned[member]:
                assert number not in claims, "given to another member while it is still held"
        self.rejoins = any(self.owned[member] - share for member, share in shares.items())
        self.owned = shares


_MEMBERS = st.sampled_from("abcde")
_STEPS = st.one_of(
    st.tuples(st.just("join"), _MEMBERS, st.sets(st.integers(0, 7))),
    st.tuples(st.just("leave"), _MEMBERS, st.just(set[int]())),
    st.tuples(st.just("round"), _MEMBERS, st.just(set[int]())),
)


@given(st.integers(1, 8), st.lists(_STEPS, max_size=20))
def test_whoever_comes_and_goes_every_partition_has_one_reader_once_nobody_has_a_reason_to_join(
    count: int, steps: list[tuple[str, str, set[int]]]
) -> None:
    """https://github.com/dpkp/kafka-python/issues/3131 is of the kind: assigned, and read by nobody."""
    group = _Group(count)
    for kind, name, claims in [*steps, ("join", "z", set[int]())]:
        if kind == "join" and name not in group.owned:
            group.join(name, {claim for claim in claims if claim < count})
        elif kind == "leave" and name in group.owned:
            group.leave(name)
        elif kind == "round" and group.owned:
            group.round()
    rounds = 0
    while group.rejoins:
        group.round()
        rounds += 1
    assert rounds <= 4
    held = sorted(number for numbers in group.owned.values() for number in numbers)
    assert held == list(range(count)), "every number once"
    sizes = [len(numbers) for numbers in group.owned.values()]
    assert max(sizes) - min(sizes) <= 1
