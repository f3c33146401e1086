"""Streams whose requests are worked on at once and answered in order; and content that arrives in pieces.

Knows nothing about what the requests mean.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import threading
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal, Protocol, TypeVar

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Content, EncodedContent
from plaudit.serving.grpc.open_calls import OpenCalls
from plaudit_models.limits import Limits

Response = TypeVar("Response")
Request = TypeVar("Request")

_MAX_SAMPLE_RATE_HZ: Final = 384_000
_READ_AHEAD: Final = 4
"""Groups that may wait while one is worked on."""


class Put(Protocol[Response]):
    """Takes work whose answer comes next, if it has one; waits while there is too much of it.

    The future is the answer's: setting it from outside is an answer too. ``held_bytes`` were taken from the stream's
    memory for the work, and are given back when it is done.
    """

    def __call__(self, work: Callable[[], Response | None], held_bytes: int = 0) -> Future[Response | None]: ...


@dataclass(frozen=True, slots=True)
class _End:
    """End of the answers or requests: because of ``problem``, unless it is None."""

    problem: BaseException | None


def in_order(
    read: Callable[[Put[Response]], None], pool: Executor, open_calls: OpenCalls, context: Any, *, limit: int
) -> Iterator[Response]:
    """The answers of the work that ``read`` puts, in that order.

    Args:
        read: reads the requests, puts the work, returns at their end. Has a thread of its own.
        pool: does the work.
        open_calls: where the call is one of the streams; if it is to end, nothing more is read, what was read is
            answered.
        context: of the call; once it is over, reading and answering end.
        limit: answers under way; reading waits beyond that.

    Raises:
        Draining, StreamClosed: the stream was cut short.
        Exception: what ``read`` or a piece of work raised, after the answers that come before it.
    """
    answers: SimpleQueue[Future[Response | None] | _End] = SimpleQueue()
    free = threading.Semaphore(limit)

    opened = open_calls.of(context)

    def put(work: Callable[[], Response | None], held_bytes: int = 0) -> Future[Response | None]:
        free.acquire()
        future: Future[Response | None] = Future()
        if held_bytes:
            future.add_done_callback(lambda _: opened.give(held_bytes))
        answers.put(future)
        # In the context of the call, so that spans of the work are below the stream's.
        pool.submit(contextvars.copy_context().run, _do, work, future)
        return future

    def read_all() -> None:
        try:
            read(put)
        except BaseException as problem:
            answers.put(_End(problem))
        else:
            answers.put(_End(None))

    def over() -> None:
        free.release()  # so that the reader, if it waits, sees that the call is over
        answers.put(_End(None))

    with open_calls.notifying(context, lambda problem: answers.put(_End(problem))):
        if not context.add_callback(over):
            return
        # In the context of the call, so that what is read belongs to its span, if it has one.
        reading = contextvars.copy_context()
        threading.Thread(target=reading.run, args=(read_all,), name="stream-reader", daemon=True).start()
        while not isinstance(answer := answers.get(), _End):
            response = answer.result()
            if response is not None:
                yield response
            free.release()
        if answer.problem is not None:
            raise answer.problem


def _do(work: Callable[[], Response | None], future: Future[Response | None]) -> None:
    if future.done():  # dropped before its turn
        return
    try:
        answer = work()
    except BaseException as problem:
        with contextlib.suppress(InvalidStateError):
            future.set_exception(problem)
    else:
        with contextlib.suppress(InvalidStateError):
            future.set_result(answer)


def in_groups(
    requests: Iterator[Request],
    size_bytes: Callable[[Request], int],
    open_calls: OpenCalls,
    context: Any,
    *,
    limit: int,
) -> Iterator[Sequence[Request]]:
    """Requests in their order; each group is what arrived while the last one was worked on, up to ``limit``.

    Args:
        size_bytes: size of a request; reading waits while those that wait are too large together.
        open_calls: where the call is one of the streams; if it is to end, nothing more is read, what was read is handed
            out.
        context: of the call; once it is over, reading ends.

    Raises:
        Draining, StreamClosed: the stream was cut short.
        Exception: what reading raised, after what was read before it.
    """
    arrived: SimpleQueue[Request | _End] = SimpleQueue()
    free = threading.Semaphore(_READ_AHEAD * limit)
    opened = open_calls.of(context)

    def read_all() -> None:
        try:
            for request in requests:
                free.acquire()
                opened.wait_for_room(size_bytes(request))
                opened.take(size_bytes(request))
                arrived.put(request)
        except BaseException as problem:
            arrived.put(_End(problem))
        else:
            arrived.put(_End(None))

    def over() -> None:
        free.release()
        arrived.put(_End(None))

    with open_calls.notifying(context, lambda problem: arrived.put(_End(problem))):
        if not context.add_callback(over):
            return
        threading.Thread(target=read_all, name="stream-reader", daemon=True).start()
        while True:
            first = arrived.get()
            group: list[Request] = []
            following: Request | _End = first
            while not isinstance(following, _End):
                group.append(following)
                if len(group) == limit:
                    break
                try:
                    following = arrived.get_nowait()
                except Empty:
                    break
            if group:
                yield group
                opened.give(sum(map(size_bytes, group)))
                free.release(len(group))
            if isinstance(following, _End):
                if following.problem is not None:
                    raise following.problem
                return


@dataclass(frozen=True, slots=True)
class StreamedFormat:
    """Format of a modality's chunks. ``sample_rate_hz`` is of PCM only."""

    kind: Literal["pcm16", "audio", "image"]
    sample_rate_hz: int = 0


class ContentChunks:
    """Content of one prediction that arrives in chunks.

    Args:
        formats: of every streamed modality, by name.
        max_bytes: size of all chunks together.

    Raises:
        InvalidInput: a sample rate is out of range.
    """

    def __init__(self, formats: Mapping[str, StreamedFormat], limits: Limits, max_bytes: int) -> None:
        for name, given in formats.items():
            if given.kind == "pcm16" and not 0 < given.sample_rate_hz <= _MAX_SAMPLE_RATE_HZ:
                raise InvalidInput(
                    f'streamed["{name}"].pcm16_sample_rate_hz',
                    f"{given.sample_rate_hz} is not in 1…{_MAX_SAMPLE_RATE_HZ}",
                )
        self._formats = formats
        self._limits = limits
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._data = {name: bytearray() for name in formats}

    def add(self, modality: str, data: bytes) -> None:
        """Raises InvalidInput if the modality is not streamed, or there is too much of it."""
        if modality not in self._data:
            raise InvalidInput(
                "chunk.modality", f"{modality[:80]!r} is not among the streamed modalities {sorted(self._data)}"
            )
        is_image = self._formats[modality].kind == "image"
        limit = self._limits.max_image_bytes if is_image else self._limits.max_audio_bytes
        if len(self._data[modality]) + len(data) > limit:
            raise InvalidInput(f'content["{modality}"]', f"is longer than the limit of {limit} bytes; send less")
        self._size_bytes += len(data)
        if self._size_bytes > self._max_bytes:
            raise InvalidInput(
                "content", f"all its chunks are longer than the limit of {self._max_bytes} bytes together; send less"
            )
        self._data[modality] += data

    def so_far(self) -> dict[str, Content]:
        """Content that has arrived; half a PCM sample waits for its other half."""
        whole = {
            name: bytes(data[: len(data) - len(data) % 2] if self._formats[name].kind == "pcm16" else data)
            for name, data in self._data.items()
        }
        return {name: self._content(name, data) for name, data in whole.items() if data}

    def content(self) -> dict[str, Content]:
        """All content, as if it had been sent in one piece. A modality without a byte is left out, as missing.

        Raises:
            InvalidInput: half a PCM sample.
        """
        return {name: self._content(name, bytes(data)) for name, data in self._data.items() if data}

    def _content(self, name: str, data: bytes) -> EncodedContent:
        given = self._formats[name]
        if given.kind != "pcm16":
            return EncodedContent(given.kind, data)
        if len(data) % 2:
            raise InvalidInput(f'content["{name}"]', f"{len(data)} bytes are not a whole number of 16-bit samples")
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(given.sample_rate_hz)
            writer.writeframes(data)
        return EncodedContent("audio", file.getvalue())
