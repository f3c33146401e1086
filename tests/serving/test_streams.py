"""Answers in order, and content in pieces."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator

import pytest

from plaudit.core.errors import Draining, InvalidInput
from plaudit.core.events import EncodedContent
from plaudit.serving.streams import Pieces, StreamedFormat, in_order
from plaudit_models.preprocess import Limits


async def collect(stream: AsyncIterator[int], found: list[int]) -> None:
    async for answer in stream:
        found.append(answer)


async def test_answers_come_in_the_order_of_the_requests_though_the_last_is_ready_first():
    ready = [asyncio.Event() for _ in range(3)]

    async def work(number: int) -> int:
        await ready[number].wait()
        return number

    async def read(put) -> None:
        for number in range(3):
            await put(work(number))

    found: list[int] = []
    collecting = asyncio.create_task(collect(in_order(read, asyncio.Event(), limit=8), found))
    for number in (2, 1):
        ready[number].set()
        await asyncio.sleep(0)
    assert found == []
    ready[0].set()
    await collecting
    assert found == [0, 1, 2]


async def test_reading_waits_while_too_much_is_under_way():
    started = []
    go_on = asyncio.Event()

    async def work(number: int) -> int:
        started.append(number)
        await go_on.wait()
        return number

    async def read(put) -> None:
        for number in range(10):
            await put(work(number))

    found: list[int] = []
    collecting = asyncio.create_task(collect(in_order(read, asyncio.Event(), limit=2), found))
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(started) <= 4  # one awaited, two queued, one at the door
    go_on.set()
    await collecting
    assert found == list(range(10))


async def test_what_reading_raises_comes_after_the_answers_before_it():
    async def work() -> int:
        return 1

    async def read(put) -> None:
        await put(work())
        raise ValueError("bad request")

    found: list[int] = []
    with pytest.raises(ValueError, match="bad request"):
        await collect(in_order(read, asyncio.Event(), limit=8), found)
    assert found == [1]


async def test_draining_answers_what_was_read_and_says_so():
    draining = asyncio.Event()

    async def work() -> int:
        draining.set()
        return 1

    async def read(put) -> None:
        await put(work())
        await asyncio.Event().wait()  # a client that keeps the stream open

    found: list[int] = []
    with pytest.raises(Draining):
        await collect(in_order(read, draining, limit=8), found)
    assert found == [1]


async def test_a_consumer_that_leaves_ends_reading_and_work():
    ended = []

    async def forever(name: str) -> int:
        try:
            return await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def once() -> int:
        return 1

    async def read(put) -> None:
        await put(once())
        await put(forever("work"))
        await forever("reading")

    stream = in_order(read, asyncio.Event(), limit=8)
    assert await anext(stream) == 1
    for _ in range(5):
        await asyncio.sleep(0)
    await stream.aclose()
    for _ in range(5):
        await asyncio.sleep(0)
    assert sorted(ended) == ["reading", "work"]


def test_pcm_becomes_a_wav_of_the_same_samples():
    pieces = Pieces({"audio": StreamedFormat("pcm16", 8000)}, Limits())
    pieces.add("audio", b"\x01\x00\x02")
    pieces.add("audio", b"\x00")
    content = pieces.content()["audio"]
    assert isinstance(content, EncodedContent)
    assert content.kind == "audio"
    with wave.open(io.BytesIO(content.data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert file.readframes(10) == b"\x01\x00\x02\x00"


def test_encoded_pieces_are_put_together_and_silence_is_missing():
    pieces = Pieces({"image": StreamedFormat("image"), "audio": StreamedFormat("audio")}, Limits())
    pieces.add("image", b"ab")
    pieces.add("image", b"cd")
    assert pieces.content() == {"image": EncodedContent("image", b"abcd")}


def test_bad_pieces():
    pieces = Pieces({"audio": StreamedFormat("pcm16", 8000)}, Limits(max_audio_bytes=4))
    with pytest.raises(InvalidInput, match="'video' is not among"):
        pieces.add("video", b"")
    pieces.add("audio", b"abc")
    with pytest.raises(InvalidInput, match="not a whole number"):
        pieces.content()
    with pytest.raises(InvalidInput, match=r'content\["audio"\]: is longer than the limit of 4 bytes'):
        pieces.add("audio", b"de")
    with pytest.raises(InvalidInput, match=r"pcm16_sample_rate_hz: 0 is not"):
        Pieces({"audio": StreamedFormat("pcm16", 0)}, Limits())
