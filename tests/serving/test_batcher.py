"""The batcher: who shares a batch, who is never computed, and that nobody gets another's answer."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.core.errors import Draining, Expired, Overloaded
from plaudit.serving.batcher import Batcher


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

    async def entered(self) -> None:
        """Returns once the model runs another batch."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=30)


@asynccontextmanager
async def batching(gate: Gate, *, max_batch: int = 8, queue_limit: int = 100) -> AsyncIterator[Batcher[int, int]]:
    batcher = Batcher(gate.run, name="the gate", max_batch=max_batch, queue_limit=queue_limit)
    batcher.start()
    try:
        yield batcher
    finally:
        gate.open(1000)
        await batcher.close()


async def submit(batcher: Batcher[int, int], *items: int, deadline_s: float = math.inf) -> list[asyncio.Task[int]]:
    """Tasks whose items are in the queue."""
    tasks = [asyncio.create_task(batcher.submit(item, deadline_s)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_a_batch_starts_at_once_and_the_next_takes_what_came_meanwhile():
    gate = Gate()
    async with batching(gate) as batcher:
        first = await submit(batcher, 1)
        await gate.entered()
        rest = await submit(batcher, 2, 3, 4)
        gate.open(2)
        assert await asyncio.gather(*first, *rest) == [2, 4, 6, 8]
    assert gate.batches == [[1], [2, 3, 4]]


async def test_a_batch_has_at_most_max_batch_items():
    gate = Gate()
    async with batching(gate, max_batch=2) as batcher:
        first = await submit(batcher, 1)
        await gate.entered()
        rest = await submit(batcher, 2, 3, 4)
        gate.open(3)
        await asyncio.gather(*first, *rest)
    assert gate.batches == [[1], [2, 3], [4]]


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_one_of_three_leaves_while_the_model_runs_and_the_others_get_their_answers(leaver):
    gate = Gate()
    async with batching(gate) as batcher:
        warm = await submit(batcher, 0)
        await gate.entered()
        tasks = await submit(batcher, 1, 2, 3)
        gate.open()
        await gate.entered()  # all three are in the model now
        tasks[leaver].cancel()
        gate.open()
        outcomes = await asyncio.wait_for(asyncio.gather(*warm, *tasks, return_exceptions=True), 30)
        assert isinstance(outcomes.pop(1 + leaver), asyncio.CancelledError)
        assert outcomes == [0, *(2 * item for item in (1, 2, 3) if item != leaver + 1)]
        again = await submit(batcher, 5)
        gate.open()
        assert await again[0] == 10
    assert gate.batches == [[0], [1, 2, 3], [5]]


async def test_who_left_or_expired_in_the_queue_is_not_computed():
    gate = Gate()
    async with batching(gate) as batcher:
        first = await submit(batcher, 1)
        await gate.entered()
        left, stays = await submit(batcher, 2, 3)
        (expired,) = await submit(batcher, 4, deadline_s=time.monotonic())
        (in_time,) = await submit(batcher, 5, deadline_s=time.monotonic() + 60)
        left.cancel()
        gate.open(2)
        assert await asyncio.gather(*first, stays, in_time) == [2, 6, 10]
        with pytest.raises(Expired):
            await expired
    assert gate.batches == [[1], [3, 5]]


async def test_a_batch_of_none_but_leavers_is_not_run():
    gate = Gate()
    async with batching(gate) as batcher:
        first = await submit(batcher, 1)
        await gate.entered()
        (left,) = await submit(batcher, 2)
        left.cancel()
        gate.open()
        await first[0]
    assert gate.batches == [[1]]


async def test_a_full_queue_refuses_at_once():
    gate = Gate()
    async with batching(gate, queue_limit=2) as batcher:
        first = await submit(batcher, 1)
        await gate.entered()
        waiting = await submit(batcher, 2, 3)
        with pytest.raises(Overloaded, match="the gate is full"):
            await batcher.submit(4)
        gate.open(2)
        assert await asyncio.gather(*first, *waiting) == [2, 4, 6]


async def test_a_failing_batch_fails_alone():
    gate = Gate()
    gate.broken = {2}
    async with batching(gate) as batcher:
        first = await submit(batcher, 1)
        await gate.entered()
        rest = await submit(batcher, 2, 3)
        gate.open(2)
        assert await first[0] == 2
        for task in rest:
            with pytest.raises(ValueError, match="cannot double"):
                await task
        (after,) = await submit(batcher, 3)
        gate.open()
        assert await after == 6


async def test_a_failing_item_fails_alone():
    gate = Gate()
    async with batching(gate) as batcher:
        first = await submit(batcher, 1)
        await gate.entered()
        bad, good = await submit(batcher, -2, 3)
        gate.open(2)
        assert (await first[0], await good) == (2, 6)
        with pytest.raises(ValueError, match="-2 is negative"):
            await bad


async def test_a_wrong_number_of_results_is_a_failure_and_no_mix_up():
    batcher: Batcher[int, int] = Batcher(lambda items: [1], name="short", max_batch=8, queue_limit=8)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
    batcher._loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    batcher.start()  # both wait, so both are in the first batch
    for task in tasks:
        with pytest.raises(RuntimeError, match="1 results for 2 items"):
            await task
    await batcher.close()


async def test_closing_computes_what_waits_and_refuses_what_comes():
    gate = Gate()
    async with batching(gate) as batcher:
        tasks = await submit(batcher, 1, 2, 3)
    assert await asyncio.gather(*tasks) == [2, 4, 6]
    with pytest.raises(Draining):
        await batcher.submit(4)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("run"), st.integers(1, 2)),
        st.tuples(st.just("break"), st.integers(0, 30)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=100)
@given(steps=STEPS, max_batch=st.integers(1, 5))
def test_no_answer_crosses_requests(steps, max_batch):
    """Whatever the interleaving of arrivals, departures, batches and failures: every caller that stays gets twice its
    own item, or the failure of its own batch; no item is computed twice."""

    async def check() -> None:
        gate = Gate()
        tasks: list[asyncio.Task[int]] = []
        async with batching(gate, max_batch=max_batch) as batcher:
            for action, number in steps:
                match action:
                    case "submit":
                        tasks += await submit(batcher, *range(len(tasks), len(tasks) + number))
                    case "cancel" if number < len(tasks):
                        tasks[number].cancel()
                        await asyncio.sleep(0)
                    case "run":
                        gate.open(number)
                    case "break":
                        gate.broken.add(number)
            gate.open(1000)
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        computed = [item for batch in gate.batches for item in batch]
        assert len(computed) == len(set(computed))
        assert all(len(batch) <= max_batch for batch in gate.batches)
        batch_of = {item: batch for batch in gate.batches for item in batch}
        for item, outcome in enumerate(outcomes):
            if isinstance(outcome, ValueError):
                assert gate.broken & set(batch_of[item])
                assert str(outcome) == f"cannot double {batch_of[item]}"
            elif not isinstance(outcome, asyncio.CancelledError):
                assert outcome == 2 * item
        cancelled = {number for action, number in steps if action == "cancel"}
        left = {item for item, outcome in enumerate(outcomes) if isinstance(outcome, asyncio.CancelledError)}
        assert left <= cancelled

    asyncio.run(check())
