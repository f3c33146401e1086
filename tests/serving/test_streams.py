"""Answers in order, requests in groups, and content in pieces."""

from __future__ import annotations

import io
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue

import pytest

from plaudit.core.errors import Draining, InvalidInput, Overloaded, StreamClosed
from plaudit.core.events import EncodedContent
from plaudit.serving.engine.admission import ByteBudget
from plaudit.serving.engine.shutdown import ShutdownSignal
from plaudit.serving.grpc.open_calls import OpenCalls, WaitingMessages
from plaudit.serving.grpc.streams import ContentChunks, Put, StreamedFormat, in_groups, in_order
from plaudit_models.limits import Limits

TIMEOUT_S = 30.0


class Call:
    """A gRPC call as far as streams look at it."""

    def __init__(self, connection: str = "ipv4:192.0.2.1:1") -> None:
        self._over: list[Callable[[], None]] = []
        self._connection = connection
        self.cancelled = threading.Event()

    def peer(self) -> str:
        return self._connection

    def cancel(self) -> None:
        self.cancelled.set()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._over.append(callback)
        return True

    def end(self) -> None:
        for callback in self._over:
            callback()


class Requests:
    """Requests that come when the test says; reading past the end of the call fails, as gRPC's does."""

    def __init__(self) -> None:
        self._coming: SimpleQueue[int | Exception | None] = SimpleQueue()

    def send(self, *requests: int | Exception | None) -> None:
        for request in requests:
            self._coming.put(request)

    def __iter__(self) -> Iterator[int]:
        while (request := self._coming.get(timeout=TIMEOUT_S)) is not None:
            if isinstance(request, Exception):
                raise request
            yield request


class Clock:
    """Time that passes when the test says."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def open_calls(
    shutdown: ShutdownSignal | None = None,
    *,
    max_streams: int = 8,
    idle_s: float = 60.0,
    budget: ByteBudget | None = None,
    max_bytes: int = 1_000,
    clock: Callable[[], float] = time.monotonic,
    refused: Callable[[str], None] = lambda _: None,
) -> OpenCalls:
    return OpenCalls(
        shutdown or ShutdownSignal(),
        refused,
        max_streams=max_streams,
        idle_s=idle_s,
        budget=budget or ByteBudget("the memory", 10_000),
        max_bytes=max_bytes,
        clock=clock,
    )


@contextmanager
def answers_of(
    read: Callable[[Put[int]], None],
    pool: ThreadPoolExecutor,
    calls: OpenCalls | None = None,
    call: Call | None = None,
    limit: int = 8,
) -> Iterator[Iterator[int]]:
    """What :func:`in_order` answers on an open stream."""
    calls, call = calls or open_calls(), call or Call()
    with calls.stream(call):
        yield in_order(read, pool, calls, call, limit=limit)


@contextmanager
def groups_of(
    requests: Iterator[int], calls: OpenCalls | None = None, call: Call | None = None, limit: int = 3
) -> Iterator[Iterator[Sequence[int]]]:
    """What :func:`in_groups` hands out on an open stream; a request has as many bytes as it says."""
    calls, call = calls or open_calls(), call or Call()
    with calls.stream(call):
        yield in_groups(requests, abs, calls, call, limit=limit)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_answers_come_in_the_order_of_the_requests_though_the_last_is_ready_first(pool: ThreadPoolExecutor) -> None:
    ready = [threading.Event() for _ in range(3)]

    def work(number: int) -> int:
        assert ready[number].wait(TIMEOUT_S)
        if number:
            ready[number - 1].set()
        return number

    def read(put: Put[int]) -> None:
        for number in range(3):
            put(partial(work, number))

    ready[2].set()  # the last is done first, and each lets the one before it end
    with answers_of(read, pool) as answers:
        assert list(answers) == [0, 1, 2]


def test_reading_waits_while_too_much_is_under_way(pool: ThreadPoolExecutor) -> None:
    put_so_far = []
    go_on = threading.Event()
    full = threading.Event()

    def wait(number: int) -> int:
        assert go_on.wait(TIMEOUT_S)
        return number

    def read(put: Put[int]) -> None:
        for number in range(10):
            if number == 2:
                full.set()
            put(partial(wait, number))
            put_so_far.append(number)

    with answers_of(read, pool, limit=2) as answers:
        first = pool.submit(next, answers)
        assert full.wait(TIMEOUT_S)
        assert put_so_far == [0, 1]
        go_on.set()
        assert first.result(TIMEOUT_S) is not None
        assert list(answers) == list(range(1, 10))


def test_what_reading_raises_comes_after_the_answers_before_it(pool: ThreadPoolExecutor) -> None:
    def read(put: Put[int]) -> None:
        put(lambda: 1)
        raise ValueError("bad request")

    with answers_of(read, pool) as answers:
        assert next(answers) == 1
        with pytest.raises(ValueError, match="bad request"):
            next(answers)


def test_what_work_raises_ends_the_stream(pool: ThreadPoolExecutor) -> None:
    def fail() -> int:
        raise ValueError("bad work")

    def read(put: Put[int]) -> None:
        put(lambda: 1)
        put(fail)

    with answers_of(read, pool) as answers:
        assert next(answers) == 1
        with pytest.raises(ValueError, match="bad work"):
            next(answers)


def test_draining_answers_what_was_read_and_says_so(pool: ThreadPoolExecutor) -> None:
    shutdown, requests = ShutdownSignal(), Requests()

    def read(put: Put[int]) -> None:
        for request in requests:
            put(partial(int, request))

    with answers_of(read, pool, open_calls(shutdown)) as answers:
        requests.send(1)
        assert next(answers) == 1  # and the client keeps the stream open
        shutdown.set()
        with pytest.raises(Draining):
            next(answers)
    requests.send(None)


def test_a_call_that_is_over_ends_the_stream(pool: ThreadPoolExecutor) -> None:
    call, requests = Call(), Requests()

    def read(put: Put[int]) -> None:
        for request in requests:
            put(partial(int, request))

    with answers_of(read, pool, call=call) as answers:
        requests.send(1)
        assert next(answers) == 1
        call.end()
        assert list(answers) == []
    requests.send(None)


def test_a_group_is_what_came_while_the_last_one_was_worked_on() -> None:
    requests = Requests()
    with groups_of(iter(requests)) as groups:
        requests.send(1)
        assert next(groups) == [1]
        requests.send(2, 3, 4, 5, None)
        rest = list(groups)
    assert [request for group in rest for request in group] == [2, 3, 4, 5]
    assert max(len(group) for group in rest) <= 3


def test_what_reading_fails_with_comes_after_the_groups_before_it() -> None:
    requests = Requests()
    with groups_of(iter(requests)) as groups:
        requests.send(1, ValueError("bad"))
        assert next(groups) == [1]
        with pytest.raises(ValueError, match="bad"):
            next(groups)


def test_draining_ends_groups_too() -> None:
    requests, shutdown = Requests(), ShutdownSignal()
    with groups_of(iter(requests), open_calls(shutdown)) as groups:
        requests.send(1)
        assert next(groups) == [1]
        shutdown.set()
        with pytest.raises(Draining):
            next(groups)
    requests.send(None)


# --- silence, places and memory --------------------------------------------------------------------------------------


def test_a_silent_stream_is_closed_with_a_reason_after_what_was_read_is_answered(pool: ThreadPoolExecutor) -> None:
    """A peer that is stopped or silent held its thread for ever: https://github.com/grpc/grpc/issues/17569."""
    clock, requests, refused = Clock(), Requests(), list[str]()
    calls = open_calls(idle_s=60.0, clock=clock, refused=refused.append)
    call = Call()

    def read(put: Put[int]) -> None:
        for request in calls.of(call).messages(iter(requests)):
            put(partial(int, request))

    with answers_of(read, pool, calls, call) as answers:
        clock.now_s += 59.0
        requests.send(1)
        assert next(answers) == 1
        clock.now_s += 59.0
        calls.look()  # 59 s after its message
        assert refused == []
        clock.now_s += 2.0
        calls.look()
        with pytest.raises(StreamClosed, match="nothing happened on it for 60 s; open another one"):
            next(answers)
    assert refused == ["silent stream"]
    requests.send(None)


def test_a_stream_that_only_sends_may_be_silent() -> None:
    clock, call = Clock(), Call()
    calls = open_calls(clock=clock)
    with calls.stream(call, may_idle=True) as opened:
        clock.now_s += 1e6
        calls.look()
        assert opened.closed is None


def test_a_stream_that_does_not_end_when_it_is_closed_is_cancelled() -> None:
    """Its client does not read what was sent."""
    clock, call = Clock(), Call()
    calls = open_calls(clock=clock)
    with calls.stream(call), calls.notifying(call, lambda _: None):
        clock.now_s += 61.0
        calls.look()
        assert not call.cancelled.is_set()
        clock.now_s += 6.0
        calls.look()
        assert call.cancelled.is_set()


def test_the_longest_silent_stream_gives_way() -> None:
    clock, refused = Clock(), list[str]()
    calls = open_calls(max_streams=2, clock=clock, refused=refused.append)
    first, second, third = Call("a"), Call("b"), Call("c")
    with calls.stream(first) as one, calls.stream(second) as two:
        clock.now_s += 4.0
        one.touch()
        clock.now_s += 2.0
        with calls.stream(third):
            assert one.closed is None
            assert isinstance(two.closed, StreamClosed)
            with pytest.raises(Overloaded, match=r"number of streams is full \(2 at once\)"), calls.stream(Call("d")):
                pass
    assert refused == ["silent stream", "streams"]


def test_a_connection_with_most_of_the_places_gives_way_at_once() -> None:
    clock = Clock()
    calls = open_calls(max_streams=8, clock=clock)
    with ExitStack() as stack:
        greedy = [stack.enter_context(calls.stream(Call("greedy"))) for _ in range(7)]
        modest = stack.enter_context(calls.stream(Call("modest")))
        for number in range(5):
            stack.enter_context(calls.stream(Call(f"new {number}")))
        assert modest.closed is None
        assert [each.closed is None for each in greedy] == [False] * 5 + [True] * 2
        with pytest.raises(Overloaded), calls.stream(Call("one more")):
            pass


def test_reading_waits_while_what_is_worked_on_is_too_large(pool: ThreadPoolExecutor) -> None:
    calls, call, go_on, taken = open_calls(max_bytes=100), Call(), threading.Event(), SimpleQueue[int]()

    def work(size_bytes: int) -> int:
        assert go_on.wait(TIMEOUT_S)
        return size_bytes

    def read(put: Put[int]) -> None:
        stream = calls.of(call)
        for size_bytes in (400, 60, 30, 20):  # one alone may have any size
            stream.wait_for_room(size_bytes)
            stream.take(size_bytes)
            taken.put(size_bytes)
            put(partial(work, size_bytes), size_bytes)

    with answers_of(read, pool, calls, call) as answers:
        first = pool.submit(next, answers)
        assert taken.get(timeout=TIMEOUT_S) == 400
        go_on.set()
        assert [first.result(TIMEOUT_S), *answers] == [400, 60, 30, 20]


def test_what_waits_in_a_stream_of_groups_is_bounded_in_bytes() -> None:
    budget = ByteBudget("the memory", 10_000)
    requests, read = Requests(), list[int]()

    def reading() -> Iterator[int]:
        for request in requests:
            read.append(request)
            yield request

    with groups_of(reading(), open_calls(budget=budget, max_bytes=100)) as groups:
        requests.send(90, 90, 90, None)
        assert next(groups) == [90]
        assert budget.taken_bytes <= 90
        assert list(groups) == [[90], [90]]
    assert budget.taken_bytes == 0


def test_streams_share_one_memory_which_the_end_of_each_gives_back() -> None:
    budget = ByteBudget("the memory for streams", 100)
    calls, one, two = open_calls(budget=budget), Call(), Call()
    with calls.stream(one) as first, calls.stream(two) as second:
        first.take(90)
        with pytest.raises(Overloaded, match=r"the memory for streams \(in bytes\) is full \(100 at once\)"):
            second.take(20)
    assert budget.taken_bytes == 0


def test_a_message_that_is_late_holds_no_place_and_is_given_up_in_the_end() -> None:
    clock, refused = Clock(), list[str]()
    waiting, calls, call = WaitingMessages(clock), open_calls(clock=clock, refused=refused.append), Call()
    calls.waiting.append(waiting)
    arrived, reading = SimpleQueue[int](), threading.Event()

    def message() -> Iterator[int]:
        reading.set()
        yield arrived.get(timeout=TIMEOUT_S)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(waiting.first, message(), call)
        assert reading.wait(TIMEOUT_S)
        assert (waiting.late(), waiting.give_way()) == (0, False)
        clock.now_s += 0.5
        assert (waiting.late(), waiting.give_way()) == (1, False)
        clock.now_s += 1.0
        assert waiting.give_way()
        assert call.cancelled.is_set()
        call.cancelled.clear()
        clock.now_s += 120.0
        calls.look()
        assert call.cancelled.is_set()
        assert refused == ["late message"]
        arrived.put(7)
        assert first.result(TIMEOUT_S) == 7
        assert waiting.late() == 0


def test_the_end_is_told_even_if_it_came_before() -> None:
    shutdown, notified = ShutdownSignal(), []
    shutdown.set()
    with shutdown.notifying(lambda: notified.append("now")):
        assert notified == ["now"]


def test_pcm_becomes_a_wav_of_the_same_samples() -> None:
    pieces = ContentChunks({"audio": StreamedFormat("pcm16", 8000)}, Limits(), 1_000)
    pieces.add("audio", b"\x01\x00\x02")
    pieces.add("audio", b"\x00")
    content = pieces.content()["audio"]
    assert isinstance(content, EncodedContent)
    assert content.kind == "audio"
    with wave.open(io.BytesIO(content.data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert file.readframes(10) == b"\x01\x00\x02\x00"


def test_encoded_pieces_are_put_together_and_silence_is_missing() -> None:
    pieces = ContentChunks({"image": StreamedFormat("image"), "audio": StreamedFormat("audio")}, Limits(), 1_000)
    pieces.add("image", b"ab")
    pieces.add("image", b"cd")
    assert pieces.content() == {"image": EncodedContent("image", b"abcd")}


def test_bad_pieces() -> None:
    pieces = ContentChunks({"audio": StreamedFormat("pcm16", 8000)}, Limits(max_audio_bytes=4), 1_000)
    with pytest.raises(InvalidInput, match="'video' is not among"):
        pieces.add("video", b"")
    pieces.add("audio", b"abc")
    with pytest.raises(InvalidInput, match="not a whole number"):
        pieces.content()
    with pytest.raises(InvalidInput, match=r'content\["audio"\]: is longer than the limit of 4 bytes'):
        pieces.add("audio", b"de")
    with pytest.raises(InvalidInput, match=r"pcm16_sample_rate_hz: 0 is not"):
        ContentChunks({"audio": StreamedFormat("pcm16", 0)}, Limits(), 1_000)


def test_the_pieces_of_all_modalities_together_are_bounded() -> None:
    pieces = ContentChunks({"image": StreamedFormat("image"), "audio": StreamedFormat("audio")}, Limits(), 10)
    pieces.add("image", b"123456")
    with pytest.raises(InvalidInput, match="content: all its chunks are longer than the limit of 10 bytes together"):
        pieces.add("audio", b"12345")
