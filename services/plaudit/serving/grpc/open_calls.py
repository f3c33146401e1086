"""Calls that wait for their peer: unary ones for their message, streams for the next one. None does so for long.

A peer that is gone, stopped or silent costs a thread. So a message has a time to arrive in, a stream ends when nothing
happened on it for a while, and where places run out the longest silent gives way. Knows no method.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from plaudit.core.errors import Draining, Overloaded, PlauditError, StreamClosed
from plaudit.core.limits import MAX_MESSAGE_WAIT_S, MIN_STREAM_SILENCE_S
from plaudit.serving.engine.admission import ByteBudget
from plaudit.serving.engine.shutdown import ShutdownSignal

_LATE_S: Final = 0.02
"""Time after which a message that has not arrived is late: the call holds a thread, but no place."""
_SPARED_S: Final = 1.0
"""Time that a late message has even where threads run out."""
_GRACE_S: Final = 5.0
"""Time that a stream has to end itself before its connection is told that it is cancelled."""
_SHARE: Final = 4
"""A connection with more than one in so many of the places of streams gives way first."""

Clock = Callable[[], float]


class OpenStream:
    """A stream between its first and its last message; safe to use from several threads.

    Attributes:
        connection: address of the peer; another one for each connection.
        active_s: when the last message arrived or left.
        closed: why the server ends the stream; None while it does not.
    """

    def __init__(self, context: Any, budget: ByteBudget, max_bytes: int, clock: Clock, *, may_idle: bool) -> None:
        self.connection: str = context.peer()
        self.may_idle = may_idle
        self.closed: PlauditError | None = None
        self.closed_s = 0.0
        self.cancel: Callable[[], None] = context.cancel
        self.end: Callable[[PlauditError], None] | None = None
        self._budget = budget
        self._max_bytes = max_bytes
        self._clock = clock
        self._held_bytes = 0
        self._over = False
        self._changed = threading.Condition()
        self.active_s = clock()

    def touch(self) -> None:
        """Something arrived or left."""
        self.active_s = self._clock()

    def messages(self, requests: Iterator[Any]) -> Iterator[Any]:
        """The requests, each of which is a sign of life."""
        for request in requests:
            self.active_s = self._clock()
            yield request

    def wait_for_room(self, size_bytes: int) -> None:
        """Wait until ``size_bytes`` more fit beside what is being worked on, or nothing is."""
        with self._changed:
            while self._held_bytes and self._held_bytes + size_bytes > self._max_bytes and not self._over:
                self._changed.wait()

    def take(self, size_bytes: int) -> None:
        """Hold memory until :meth:`give`. Raises Overloaded: all streams together hold too much."""
        self._budget.take(size_bytes)
        with self._changed:
            self._held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give back what :meth:`take` took."""
        with self._changed:
            returned = min(size_bytes, self._held_bytes)  # the end of a stream gives back what was left
            self._held_bytes -= returned
            self._changed.notify_all()
        self._budget.give(returned)

    def close(self, problem: PlauditError) -> None:
        """End the stream with ``problem`` as its status, or by cancelling it where it does not listen."""
        self.closed, self.closed_s = problem, self._clock()
        if self.end is not None:
            self.end(problem)

    def finish(self) -> None:
        """Give back all memory and let nothing wait."""
        with self._changed:
            held, self._held_bytes, self._over = self._held_bytes, 0, True
            self._changed.notify_all()
        self._budget.give(held)


class OpenCalls:
    """Calls of one server that wait for their peer. A thread watches over them between ``start`` and ``close``.

    Args:
        shutdown: ends all streams.
        refused: counts what was refused or ended, by a word for the reason.
        max_streams: streams that may be open at once.
        idle_s: silence after which a stream ends; of a stream that only sends, none.
        budget: memory of what streams have sent and is being worked on.
        max_bytes: part of it that one stream takes before reading waits.
    """

    def __init__(
        self,
        shutdown: ShutdownSignal,
        refused: Callable[[str], None],
        *,
        max_streams: int,
        idle_s: float,
        budget: ByteBudget,
        max_bytes: int,
        clock: Clock = time.monotonic,
    ) -> None:
        self.shutdown = shutdown
        self._refused = refused
        self._max_streams = max_streams
        self._idle_s = idle_s
        self._budget = budget
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._streams: dict[Any, OpenStream] = {}
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="open-calls", daemon=True)
        self.waiting: list[WaitingMessages] = []

    def start(self) -> None:
        self._watcher.start()

    def close(self) -> None:
        self._closed.set()
        self._watcher.join()

    # --- streams ---------------------------------------------------------------------------------------------------

    @contextmanager
    def stream(self, context: Any, *, may_idle: bool = False) -> Iterator[OpenStream]:
        """A place for a stream, as long as it is open.

        Args:
            may_idle: the client sends nothing more, so its silence means nothing.

        Raises:
            Overloaded: there is no place, and none that another stream should give up.
        """
        opened = OpenStream(context, self._budget, self._max_bytes, self._clock, may_idle=may_idle)
        with self._lock:
            self._make_room(opened)
            self._streams[context] = opened
        try:
            yield opened
        finally:
            with self._lock:
                del self._streams[context]
            opened.finish()

    def of(self, context: Any) -> OpenStream:
        """The open stream of a call."""
        return self._streams[context]

    @contextmanager
    def notifying(self, context: Any, end: Callable[[PlauditError], None]) -> Iterator[None]:
        """Calls ``end`` when the stream is to end, or now if it is: because the server drains, or the stream is closed;
        not after the block.
        """
        opened = self.of(context)
        with self.shutdown.notifying(lambda: end(Draining())):
            opened.end = end
            if opened.closed is not None:
                end(opened.closed)
            try:
                yield
            finally:
                opened.end = None

    def _make_room(self, newcomer: OpenStream) -> None:
        streams = [each for each in self._streams.values() if each.closed is None]
        if len(streams) < self._max_streams:
            return
        victim = self._least_active(streams, newcomer.connection)
        if victim is None:
            self._refused("streams")
            raise Overloaded("the server's number of streams", self._max_streams)
        self._refused("silent stream")
        victim.close(StreamClosed("others wait for its place; open another one when there is something to send"))

    def _least_active(self, streams: list[OpenStream], connection: str) -> OpenStream | None:
        """The stream that should give up its place, if there is one."""
        now_s = self._clock()
        of_connection = Counter(each.connection for each in streams)
        for each in sorted(streams, key=lambda each: each.active_s):
            greedy = each.connection != connection and of_connection[each.connection] > max(
                1, self._max_streams // _SHARE
            )
            if greedy or now_s - each.active_s >= MIN_STREAM_SILENCE_S:
                return each
        return None

    # --- the watch -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._idle_s / 4)):
            self.look()

    def look(self) -> None:
        """Close what has been silent for too long."""
        now_s = self._clock()
        for messages in self.waiting:
            for cancel in messages.longer_than(MAX_MESSAGE_WAIT_S):
                self._refused("late message")
                cancel()
        with self._lock:
            streams = list(self._streams.values())
        for each in streams:
            if each.closed is not None:
                if each.end is None or now_s - each.closed_s >= _GRACE_S:
                    each.cancel()
            elif not each.may_idle and now_s - each.active_s >= self._idle_s:
                self._refused("silent stream")
                each.close(StreamClosed(f"nothing happened on it for {self._idle_s:g} s; open another one"))


class WaitingMessages:
    """Calls of one kind whose message has not arrived; safe to use from several threads."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[Any, float] = {}

    def first(self, requests: Iterator[Any], context: Any) -> Any:
        """The message of a call, None if the client ended without any. Raises what reading raises."""
        self._waiting[context] = self._clock()
        try:
            return next(requests, None)
        finally:
            del self._waiting[context]

    def late(self) -> int:
        """Number of calls whose message is late."""
        return len(self.longer_than(_LATE_S))

    def longer_than(self, wait_s: float) -> list[Callable[[], None]]:
        """What cancels the calls that have waited for so long, the longest first."""
        since_s = self._clock() - wait_s
        return [context.cancel for context, began_s in list(self._waiting.items()) if began_s <= since_s]

    def give_way(self) -> bool:
        """Cancel the call that has waited longest, if that is long."""
        for cancel in self.longer_than(_SPARED_S)[:1]:
            cancel()
            return True
        return False
