"""Joins concurrent calls into one call of something that takes a list. Knows nothing about what the items are.

Greedy: as soon as a worker is free, it gets whatever waits; there is no timer, so an idle server adds no delay and a
busy one finds its batches full. How many may wait is decided where calls are admitted (admission.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from plaudit.core.errors import Draining, Expired
from plaudit.serving.engine.call_context import NO_DEADLINE, CallContext, ClientGone

Item = TypeVar("Item")
Result = TypeVar("Result")

Run = Callable[[Sequence[Item]], Sequence[Result | Exception]]
"""Items → results, one each and in their order. A result that is an exception is the outcome of its item alone; an
exception that is raised fails the batch and no other."""


def results(outcomes: Iterable[Result | Exception]) -> list[Result]:
    """The outcomes, none of which is an exception; raises the first one that is."""
    found = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        found.append(outcome)
    return found


class Waiting(Generic[Item, Result]):
    """One item in the queue; a lock is the cheapest thing a thread can wait for."""

    __slots__ = ("_answered", "_outcome", "call", "item")

    def __init__(self, item: Item, call: CallContext) -> None:
        self.item = item
        self.call = call
        self._answered = threading.Lock()
        self._answered.acquire()

    def answer(self, outcome: Result | Exception) -> None:
        self._outcome = outcome
        self._answered.release()

    def outcome(self) -> Result | Exception:
        self._answered.acquire()
        return self._outcome


class Batcher(Generic[Item, Result]):
    """Calls on threads of their own; batches on one worker thread for each of ``runs``.

    An item whose client has left, or whose deadline has passed, is never computed. Whatever happens to one call, the
    others of its batch get their answers.

    Args:
        runs: what computes a batch, one for each worker; each is only ever called by its own.
        name: prefix of the workers' thread names.
        max_batch: the most items of one batch; asked before each.
    """

    def __init__(self, runs: Sequence[Run[Item, Result]], *, name: str, max_batch: Callable[[], int]) -> None:
        self._name = name
        self._max_batch = max_batch
        self._queue: SimpleQueue[list[Waiting[Item, Result]] | None] = SimpleQueue()
        self._workers = [
            threading.Thread(target=self._work, args=(run,), name=f"{name}-{number}", daemon=True)
            for number, run in enumerate(runs)
        ]
        self._closing = threading.Lock()
        self._closed = False

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """Refuse new items, compute those that wait, end the threads."""
        with self._closing:
            self._closed = True
            for _ in self._workers:
                self._queue.put(None)
        for worker in self._workers:
            worker.join()

    def waiting(self) -> int:
        """Number of calls whose items no worker has begun."""
        return self._queue.qsize()

    def submit(self, items: Sequence[Item], call: CallContext = NO_DEADLINE) -> list[Result | Exception]:
        """The outcome of each item, in their order. Blocks until all are there.

        An outcome is an exception where ``run`` gave or raised one, where the deadline passed before the batch began
        (Expired), and where the client had left (ClientGone).

        Raises:
            Draining: the batcher is closed.
        """
        return [each.outcome() for each in self.enqueue(items, call)]

    def enqueue(self, items: Sequence[Item], call: CallContext = NO_DEADLINE) -> list[Waiting[Item, Result]]:
        """As :meth:`submit`, but returns as soon as the items are in the queue."""
        waiting = [Waiting[Item, Result](item, call) for item in items]
        with self._closing:
            if self._closed:
                raise Draining
            self._queue.put(waiting)
        return waiting

    def _work(self, run: Run[Item, Result]) -> None:
        """What does not fit into a batch is the beginning of this worker's next one."""
        batch: list[Waiting[Item, Result]] = []
        while True:
            if not batch:
                group = self._queue.get()
                if group is None:
                    return
                batch = group
            max_batch = self._max_batch()
            with contextlib.suppress(Empty):
                while len(batch) < max_batch:
                    following = self._queue.get_nowait()
                    if following is None:
                        self._queue.put(None)
                        break
                    batch = batch + following
            self._compute(run, batch[:max_batch])
            batch = batch[max_batch:]

    def _compute(self, run: Run[Item, Result], batch: Sequence[Waiting[Item, Result]]) -> None:
        now_s = time.monotonic()
        due = []
        for waiting in batch:
            if waiting.call.deadline_s <= now_s:
                waiting.answer(Expired())
            elif not waiting.call.is_active():
                waiting.answer(ClientGone())
            else:
                due.append(waiting)
        if not due:
            return
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = run([waiting.item for waiting in due])
            if len(outcomes) != len(due):
                raise RuntimeError(f"{self._name} gave {len(outcomes)} results for {len(due)} items")
        except Exception as error:
            outcomes = [error] * len(due)
        for waiting, outcome in zip(due, outcomes, strict=True):
            waiting.answer(outcome)
