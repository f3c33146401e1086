"""Streams whose requests are worked on at once and answered in order; and content that arrives in pieces.

Knows nothing about what the requests mean.
"""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from plaudit.core.errors import Draining, InvalidInput
from plaudit.core.events import Content, EncodedContent
from plaudit_models.preprocess import Limits

Answer = TypeVar("Answer")

_MAX_SAMPLE_RATE_HZ: Final = 384_000


Put = Callable[[Coroutine[Any, Any, Answer]], Awaitable[asyncio.Task[Answer]]]
"""Takes work whose answer comes next; waits while there is too much of it. Returns the task that does it."""


async def in_order(
    read: Callable[[Put[Answer]], Awaitable[None]], draining: asyncio.Event, *, limit: int
) -> AsyncIterator[Answer]:
    """The answers of the work that ``read`` puts, in that order.

    Args:
        read: reads the requests, puts the work, returns at their end.
        draining: once set, nothing more is read; what was read is answered, then the stream ends.
        limit: pieces of work under way; reading waits beyond that.

    Raises:
        Draining: the stream was cut short.
        Exception: what ``read`` or a piece of work raised, after the answers that come before it.
    """
    tasks: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue(limit)
    under_way: set[asyncio.Task[Answer]] = set()

    def forget(task: asyncio.Task[Answer]) -> None:
        under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, though the stream may have ended before its turn came

    async def put(work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        task = asyncio.create_task(work)
        under_way.add(task)
        task.add_done_callback(forget)
        await tasks.put(task)
        return task

    async def read_all() -> None:
        try:
            await read(put)
        finally:
            await tasks.put(None)

    reader = asyncio.create_task(read_all())
    drain = asyncio.create_task(draining.wait())
    drain.add_done_callback(lambda _: reader.cancel())
    try:
        while (task := await tasks.get()) is not None:
            yield await task
        await asyncio.wait([reader])
        if reader.cancelled():
            raise Draining
        reader.result()
    finally:
        for unfinished in (reader, drain, *under_way):
            unfinished.cancel()


@dataclass(frozen=True, slots=True)
class StreamedFormat:
    """What the chunks of a modality are. ``sample_rate_hz`` of PCM only."""

    kind: Literal["pcm16", "audio", "image"]
    sample_rate_hz: int = 0


class Pieces:
    """Content of one prediction that arrives in chunks.

    Args:
        formats: of every streamed modality, by name.

    Raises:
        InvalidInput: a sample rate is out of range.
    """

    def __init__(self, formats: Mapping[str, StreamedFormat], limits: Limits) -> None:
        for name, given in formats.items():
            if given.kind == "pcm16" and not 0 < given.sample_rate_hz <= _MAX_SAMPLE_RATE_HZ:
                raise InvalidInput(
                    f'streamed["{name}"].pcm16_sample_rate_hz',
                    f"{given.sample_rate_hz} is not in 1…{_MAX_SAMPLE_RATE_HZ}",
                )
        self._formats = formats
        self._limits = limits
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
        self._data[modality] += data

    def content(self) -> dict[str, Content]:
        """What has arrived, as if it had been sent in one piece. A modality without a byte is left out, as missing.

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
