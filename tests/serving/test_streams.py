"""Answers in order, requests in groups, and content in pieces."""

from __future__ import annotations

import io
import threading
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import pytest

from plaudit.core.errors import Draining, InvalidInput
from plaudit.core.events import EncodedContent
from plaudit.serving.engine.shutdown import ShutdownSignal
from plaudit.serving.grpc.streams import ContentChunks, Put, StreamedFormat, in_groups, in_order
from plaudit_models.limits import Limits

TIMEOUT_S = 30.0


class Call:
    """A gRPC call as far as streams look at it."""

    def __init__(self) -> None:
        self._over: list[Callable[[], None]] = []

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
    assert list(in_order(read, pool, ShutdownSignal(), Call(), limit=8)) == [0, 1, 2]


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

    answers = in_order(read, pool, ShutdownSignal(), Call(), limit=2)
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

    answers = in_order(read, pool, ShutdownSignal(), Call(), limit=8)
    assert next(answers) == 1
    with pytest.raises(ValueError, match="bad request"):
        next(answers)


def test_what_work_raises_ends_the_stream(pool: ThreadPoolExecutor) -> None:
    def fail() -> int:
        raise ValueError("bad work")

    def read(put: Put[int]) -> None:
        put(lambda: 1)
        put(fail)

    answers = in_order(read, pool, ShutdownSignal(), Call(), limit=8)
    assert next(answers) == 1
    with pytest.raises(ValueError, match="bad work"):
        next(answers)


def test_draining_answers_what_was_read_and_says_so(pool: ThreadPoolExecutor) -> None:
    shutdown, requests = ShutdownSignal(), Requests()

    def read(put: Put[int]) -> None:
        for request in requests:
            put(partial(int, request))

    answers = in_order(read, pool, shutdown, Call(), limit=8)
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

    answers = in_order(read, pool, ShutdownSignal(), call, limit=8)
    requests.send(1)
    assert next(answers) == 1
    call.end()
    assert list(answers) == []
    requests.send(None)


def test_a_group_is_what_came_while_the_last_one_was_worked_on() -> None:
    requests, call = Requests(), Call()
    groups = in_groups(iter(requests), ShutdownSignal(), call, limit=3)
    requests.send(1)
    assert next(groups) == [1]
    requests.send(2, 3, 4, 5, None)
    rest = list(groups)
    assert [request for group in rest for request in group] == [2, 3, 4, 5]
    assert max(len(group) for group in rest) <= 3


def test_what_reading_fails_with_comes_after_the_groups_before_it() -> None:
    requests = Requests()
    groups = in_groups(iter(requests), ShutdownSignal(), Call(), limit=3)
    requests.send(1, ValueError("bad"))
    assert next(groups) == [1]
    with pytest.raises(ValueError, match="bad"):
        next(groups)


def test_draining_ends_groups_too() -> None:
    requests, shutdown = Requests(), ShutdownSignal()
    groups = in_groups(iter(requests), shutdown, Call(), limit=3)
    requests.send(1)
    assert next(groups) == [1]
    shutdown.set()
    with pytest.raises(Draining):
        next(groups)
    requests.send(None)


def test_the_end_is_told_even_if_it_came_before() -> None:
    shutdown, notified = ShutdownSignal(), []
    shutdown.set()
    with shutdown.notifying(lambda: notified.append("now")):
        assert notified == ["now"]


def test_pcm_becomes_a_wav_of_the_same_samples() -> None:
    pieces = ContentChunks({"audio": StreamedFormat("pcm16", 8000)}, Limits())
    pieces.add("audio", b"\x01\x00\x02")
    pieces.add("audio", b"\x00")
    content = pieces.content()["audio"]
    assert isinstance(content, EncodedContent)
    assert content.kind == "audio"
    with wave.open(io.BytesIO(content.data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert file.readframes(10) == b"\x01\x00\x02\x00"


def test_encoded_pieces_are_put_together_and_silence_is_missing() -> None:
    pieces = ContentChunks({"image": StreamedFormat("image"), "audio": StreamedFormat("audio")}, Limits())
    pieces.add("image", b"ab")
    pieces.add("image", b"cd")
    assert pieces.content() == {"image": EncodedContent("image", b"abcd")}


def test_bad_pieces() -> None:
    pieces = ContentChunks({"audio": StreamedFormat("pcm16", 8000)}, Limits(max_audio_bytes=4))
    with pytest.raises(InvalidInput, match="'video' is not among"):
        pieces.add("video", b"")
    pieces.add("audio", b"abc")
    with pytest.raises(InvalidInput, match="not a whole number"):
        pieces.content()
    with pytest.raises(InvalidInput, match=r'content\["audio"\]: is longer than the limit of 4 bytes'):
        pieces.add("audio", b"de")
    with pytest.raises(InvalidInput, match=r"pcm16_sample_rate_hz: 0 is not"):
        ContentChunks({"audio": StreamedFormat("pcm16", 0)}, Limits())
