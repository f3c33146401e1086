"""The batcher: which items share a batch, which are never computed, and that no call gets another's answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.core.errors import Draining, Expired
from plaudit.serving.engine.batcher import Batcher, results
from plaudit.serving.engine.call_context import CallContext, ClientGone


class Gate:
    """A model that doubles, one batch per :meth:`open`; negative items fail alone, ``broken`` fails the whole batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.broken: set[int] = set()
        self._entered = threading.Semaphore(0)
        self._opened = threading.Semaphore(0)

    def run(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self._entered.release()
        assert self._opened.acquire(timeout=30)
        if self.broken & set(items):
            raise ValueError(f"cannot double {items}")
        return [ValueError(f"{item} is negative") if item < 0 else 2 * item for item in items]

    def open(self, times: int = 1) -> None:
        self._opened.release(times)

    def entered(self) -> None:
        """Returns once the model runs another batch."""
        assert self._entered.acquire(timeout=30)


class Asking:
    """One call, whose outcomes a thread of its own waits for."""

    def __init__(self, users: Users, items: Sequence[int], deadline_s: float) -> None:
        self._left = threading.Event()
        waiting = users.batcher.enqueue(items, CallContext(deadline_s, lambda: not self._left.is_set()))
        self._future = users.pool.submit(lambda: [each.outcome() for each in waiting])

    def leave(self) -> None:
        self._left.set()

    def outcomes(self) -> list[int | Exception]:
        return self._future.result(30)

    def outcome(self) -> int | Exception:
        (outcome,) = self.outcomes()
        return outcome


class Users:
    """Callers who come one after the other: when :meth:`ask` returns, the item is in the queue or in the model."""

    def __init__(self, batcher: Batcher[int, int], gate: Gate) -> None:
        self.batcher = batcher
        self.pool = ThreadPoolExecutor(200)
        self._gate = gate

    def ask(self, *items: int, deadline_s: float = math.inf) -> list[Asking]:
        return [self.ask_together([item], deadline_s) for item in items]

    def ask_together(self, items: Sequence[int], deadline_s: float = math.inf) -> Asking:
        return Asking(self, items, deadline_s)


@contextmanager
def batching(gate: Gate, *, max_batch: int = 8, workers: int = 1) -> Iterator[Users]:
    batcher = Batcher([gate.run] * workers, name="the gate", max_batch=lambda: max_batch)
    batcher.start()
    users = Users(batcher, gate)
    try:
        yield users
    finally:
        gate.open(1000)
        batcher.close()
        users.pool.shutdown()


def test_a_batch_starts_at_once_and_the_next_takes_what_came_meanwhile() -> None:
    gate = Gate()
    with batching(gate) as users:
        first = users.ask(1)
        gate.entered()
        rest = users.ask(2, 3, 4)
        gate.open(2)
        assert [asking.outcome() for asking in (*first, *rest)] == [2, 4, 6, 8]
    assert gate.batches == [[1], [2, 3, 4]]


def test_a_batch_has_at_most_max_batch_items() -> None:
    gate = Gate()
    with batching(gate, max_batch=2) as users:
        users.ask(1)
        gate.entered()
        rest = users.ask(2, 3, 4)
        gate.open(3)
        assert [asking.outcome() for asking in rest] == [4, 6, 8]
    assert gate.batches == [[1], [2, 3], [4]]


def test_the_items_of_one_caller_are_answered_together_and_in_order() -> None:
    gate = Gate()
    with batching(gate, max_batch=2) as users:
        asking = users.ask_together([3, 1, -2, 5, 4])
        gate.open(3)
        outcomes = asking.outcomes()
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [6, 2, 10, 8]
    assert str(outcomes[2]) == "-2 is negative"


def test_a_caller_with_many_items_fills_whole_batches() -> None:
    gate = Gate()
    with batching(gate, max_batch=4) as users:
        asking = users.ask_together(range(6))
        gate.entered()
        (after,) = users.ask(9)
        gate.open(2)
        assert asking.outcomes() == [0, 2, 4, 6, 8, 10]
        assert after.outcome() == 18
    assert gate.batches == [[0, 1, 2, 3], [4, 5, 9]]


def test_several_workers_run_batches_at_once() -> None:
    gate = Gate()
    with batching(gate, workers=2) as users:
        first = users.ask(1)
        gate.entered()
        second = users.ask(2)
        gate.entered()  # though the first batch is not done
        gate.open(2)
        assert [asking.outcome() for asking in (*first, *second)] == [2, 4]


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_one_of_three_leaves_while_the_model_runs_and_the_others_get_their_answers(leaver: int) -> None:
    gate = Gate()
    with batching(gate) as users:
        warm = users.ask(0)
        gate.entered()
        asking = users.ask(1, 2, 3)
        gate.open()
        gate.entered()  # all three are in the model now
        asking[leaver].leave()
        gate.open()
        assert warm[0].outcome() == 0
        assert [each.outcome() for each in asking] == [2, 4, 6]
        again = users.ask(5)
        gate.open()
        assert again[0].outcome() == 10
    assert gate.batches == [[0], [1, 2, 3], [5]]


def test_who_left_or_expired_in_the_queue_is_not_computed() -> None:
    gate = Gate()
    with batching(gate) as users:
        users.ask(1)
        gate.entered()
        left, stays = users.ask(2, 3)
        (expired,) = users.ask(4, deadline_s=time.monotonic())
        (in_time,) = users.ask(5, deadline_s=time.monotonic() + 60)
        left.leave()
        gate.open(2)
        assert (stays.outcome(), in_time.outcome()) == (6, 10)
        assert isinstance(expired.outcome(), Expired)
        assert isinstance(left.outcome(), ClientGone)
    assert gate.batches == [[1], [3, 5]]


def test_a_batch_of_none_but_leavers_is_not_run() -> None:
    gate = Gate()
    with batching(gate) as users:
        users.ask(1)
        gate.entered()
        (left,) = users.ask(2)
        left.leave()
        gate.open()
        assert isinstance(left.outcome(), ClientGone)
    assert gate.batches == [[1]]


def test_a_failing_batch_fails_alone() -> None:
    gate = Gate()
    gate.broken = {2}
    with batching(gate) as users:
        first = users.ask(1)
        gate.entered()
        rest = users.ask(2, 3)
        gate.open(2)
        assert first[0].outcome() == 2
        assert [str(each.outcome()) for each in rest] == ["cannot double [2, 3]"] * 2
        (after,) = users.ask(3)
        gate.open()
        assert after.outcome() == 6


def test_a_wrong_number_of_results_is_a_failure_and_no_mix_up() -> None:
    batcher: Batcher[int, int] = Batcher([lambda items: [1]], name="short", max_batch=lambda: 8)
    batcher.start()
    assert [str(outcome) for outcome in batcher.submit([1, 2])] == ["short gave 1 results for 2 items"] * 2
    batcher.close()


def test_one_item_is_answered_or_its_failure_raised() -> None:
    batcher: Batcher[int, int] = Batcher([lambda items: [2 * items[0]]], name="b", max_batch=lambda: 1)
    batcher.start()
    assert results(batcher.submit([2])) == [4]
    with pytest.raises(Expired):
        results(batcher.submit([2], CallContext(deadline_s=time.monotonic())))
    batcher.close()


def test_closing_computes_what_waits_and_refuses_what_comes() -> None:
    gate = Gate()
    with batching(gate, workers=2) as users:
        asking = users.ask(1, 2, 3)
    assert [each.outcome() for each in asking] == [2, 4, 6]
    with pytest.raises(Draining):
        users.batcher.submit([4])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 4)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("run"), st.integers(1, 2)),
        st.tuples(st.just("break"), st.integers(0, 30)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=100)
@given(steps=STEPS, max_batch=st.integers(1, 5), workers=st.integers(1, 3))
def test_no_answer_crosses_requests(steps: list[tuple[str, int]], max_batch: int, workers: int) -> None:
    """Whatever the interleaving of arrivals, departures, batches and failures: every call that stays gets twice its
    own items, or the failure of its own batch; no item is computed twice."""
    gate = Gate()
    asked: list[tuple[list[int], Asking]] = []
    left: set[int] = set()
    count = 0
    with batching(gate, max_batch=max_batch, workers=workers) as users:
        for action, number in steps:
            match action:
                case "ask":
                    items = list(range(count, count + number))
                    count += number
                    asked.append((items, users.ask_together(items)))
                case "leave" if number < len(asked):
                    asked[number][1].leave()
                    left |= set(asked[number][0])
                case "run":
                    gate.open(number)
                case "break":
                    gate.broken.add(number)
        gate.open(1000)
        outcomes = [
            (item, outcome) for items, each in asked for item, outcome in zip(items, each.outcomes(), strict=True)
        ]
    computed = [item for batch in gate.batches for item in batch]
    assert len(computed) == len(set(computed))
    assert all(len(batch) <= max_batch for batch in gate.batches)
    batch_of = {item: batch for batch in gate.batches for item in batch}
    for item, outcome in outcomes:
        if isinstance(outcome, ClientGone):
            assert item in left
            assert item not in batch_of
        elif isinstance(outcome, ValueError):
            assert gate.broken & set(batch_of[item])
            assert str(outcome) == f"cannot double {batch_of[item]}"
        else:
            assert outcome == 2 * item
