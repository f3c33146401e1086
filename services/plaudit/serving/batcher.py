"""Joins concurrent callers into one call of something that takes a list. Knows nothing about what the items are.

Greedy: as soon as the function is free, it gets whatever waits; there is no timer, so an idle server adds no delay and
a busy one finds its batches full.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from plaudit.core.errors import Draining, Expired, Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True, frozen=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    deadline_s: float


class Batcher(Generic[Item, Result]):
    """Callers on one event loop, the function on a thread of its own.

    A caller that has left, or whose deadline has passed, is never computed. Whatever happens to one caller, the others
    of its batch get their answers.

    Args:
        run: items → results, one each and in their order. A result that is an exception is raised to its caller alone;
            an exception that ``run`` raises fails this batch and no other.
        name: what the queue is called in errors, and the thread.
        max_batch: the most items of one call.
        queue_limit: the most that may wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        name: str,
        max_batch: int,
        queue_limit: int,
    ) -> None:
        self._run = run
        self._name = name
        self._max_batch = max_batch
        self._queue_limit = queue_limit
        self._queue: SimpleQueue[_Waiting[Item, Result] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._closed = False

    def start(self) -> None:
        """To be called on the event loop of the callers."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Refuse new items, compute those that wait, end the thread."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def waiting(self) -> int:
        return self._queue.qsize()

    async def submit(self, item: Item, deadline_s: float = math.inf) -> Result:
        """The result for ``item``.

        Args:
            deadline_s: on the clock of ``time.monotonic``; later than that, the item is not computed.

        Raises:
            Overloaded: the queue is full.
            Expired: the deadline passed before its batch began.
            Draining: the batcher is closed.
            Exception: what ``run`` raised for this batch, or returned for this item.
        """
        if self._closed:
            raise Draining
        if self._queue.qsize() >= self._queue_limit:
            raise Overloaded(f"the queue of {self._name}", self._queue_limit)
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put(_Waiting(item, future, deadline_s))
        return await future

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            with contextlib.suppress(Empty):
                while len(batch) < self._max_batch:
                    following = self._queue.get_nowait()
                    if following is None:
                        self._queue.put(None)
                        break
                    batch.append(following)
            self._compute(batch)

    def _compute(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        now_s = time.monotonic()
        wanted = [waiting for waiting in batch if not waiting.future.done()]
        due = [waiting for waiting in wanted if waiting.deadline_s > now_s]
        outcomes: list[Result | Exception] = []
        if due:
            try:
                outcomes.extend(self._run([waiting.item for waiting in due]))
                if len(outcomes) != len(due):
                    raise RuntimeError(f"{self._name} gave {len(outcomes)} results for {len(due)} items")
            except Exception as error:
                outcomes = [error] * len(due)
        expired = [(waiting, Expired()) for waiting in wanted if waiting.deadline_s <= now_s]
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
            self._loop.call_soon_threadsafe(_answer, [*zip(due, outcomes, strict=True), *expired])


def _answer(answers: Sequence[tuple[_Waiting[Item, Result], Result | Exception]]) -> None:
    for waiting, outcome in answers:
        if waiting.future.done():  # its caller left while it was computed
            continue
        if isinstance(outcome, Exception):
            waiting.future.set_exception(outcome)
        else:
            waiting.future.set_result(outcome)
