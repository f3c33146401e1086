"""WAV: its chunks, bounded, and a copy of format and samples alone with the length that is there.

A program that writes into a pipe cannot go back to fill in the length, and leaves a placeholder: 0, or some number near
2³¹ or 2³². Such a sound ends where the file ends. A length that is meant and not there is a file that was cut short,
which libsndfile would take for a shorter sound.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import MIN_UNKNOWN_LENGTH_BYTES, max_chunks
from plaudit_models.media.sound import Sound

MAGICS: Final = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_FORMAT: Final = b"fmt "
_COUNT: Final = b"fact"
_SAMPLES: Final = b"data"
_LONG_SIZES: Final = b"ds64"
_LONG: Final = 0xFFFFFFFF
"""Length in 32 bits where 64 bits elsewhere have the true one."""
_HEADER_BYTES: Final = 64
"""Length that some programs count with the samples, so that it seems to be missing."""
_PLAIN_FORMAT_BYTES: Final = 16
_EXTENSIBLE: Final = 0xFFFE
_EXTENSIBLE_BYTES: Final = 40
_PCM: Final = 1
_FLOAT: Final = 3
_MP3: Final = 0x55
_FIXED_SIZES: Final = (_PCM, _FLOAT, 6, 7, _EXTENSIBLE)
"""Formats, A-law and µ-law among them, whose samples are all of one size."""
_GUID_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")


def is_wav(data: bytes) -> bool:
    return data[:4] in MAGICS and data[8:12] == b"WAVE"


@dataclass(slots=True)
class _FoundChunks:
    form: bytes = b""
    count: bytes = b""
    samples: bytes | None = None
    long_length: int | None = None


def read_wav(data: bytes) -> Sound:
    """Raises UnusableFile: cut short, too many chunks, or a kind that is not taken."""
    order = ">" if data[:4] == b"RIFX" else "<"
    found = _walk(data, order)
    if found.samples is None or not found.form:
        missing = "no samples" if found.samples is None else "no format"
        raise UnusableFile(f"the WAV of {len(data)} bytes is cut short: it has {missing}; send the whole file")
    form = _mended(found.form, order)
    chunks = [(_FORMAT, form)]
    if found.count:
        chunks.append((_COUNT, found.count))
    chunks.append((_SAMPLES, found.samples[: len(found.samples) - _rest(form, len(found.samples), order)]))
    body = b"WAVE" + b"".join(
        kind + struct.pack(order + "I", len(each)) + each + bytes(len(each) % 2) for kind, each in chunks
    )
    magic = b"RIFX" if order == ">" else b"RIFF"
    is_mp3 = struct.unpack_from(order + "H", form)[0] == _MP3
    return Sound(magic + struct.pack(order + "I", len(body)) + body, is_noisy=is_mp3)


def _rest(form: bytes, size: int, order: str) -> int:
    """Bytes of a sample that is not all there, where each has a fixed size."""
    tag, _, _, _, block = struct.unpack_from(order + "HHIIH", form)
    return size % block if tag in _FIXED_SIZES and block else 0


def _walk(data: bytes, order: str) -> _FoundChunks:
    found, at, limit = _FoundChunks(), 12, max_chunks(len(data))
    for _ in range(limit):
        if at + 8 > len(data) or (found.samples is not None and found.form):
            return found
        kind, (size,) = data[at : at + 4], struct.unpack_from(order + "I", data, at + 4)
        start = at + 8
        if kind == _SAMPLES and found.samples is None:
            size = _take_samples(data, start, size, found)
        elif kind == _FORMAT and not found.form:
            found.form = data[start : start + size]
        elif kind == _COUNT:
            found.count = data[start : start + size][:4]
        elif kind == _LONG_SIZES and size >= 16:
            found.long_length = struct.unpack_from("<Q", data.ljust(start + 16, b"\x00"), start + 8)[0]
        at = _next(data, start + size, size)
    raise UnusableFile(f"the WAV has more chunks than the limit of {limit}; save it again")


def _take_samples(data: bytes, start: int, size: int, found: _FoundChunks) -> int:
    """Note the samples. Returns their number of bytes."""
    there = len(data) - start
    if size == _LONG and found.long_length is not None:
        size = found.long_length
    if size >= MIN_UNKNOWN_LENGTH_BYTES or (size == 0 and there > 0 and not _is_chunk(data, start)):
        size = there
    elif size > there:
        if size - there > _HEADER_BYTES:
            raise UnusableFile(
                f"the WAV is cut short: its header says {size} bytes of samples, {there} are there; send the whole file"
            )
        size = there
    found.samples = data[start : start + size]
    return size


def _next(data: bytes, end: int, size: int) -> int:
    """Start of the next chunk. After an odd length there is a byte 0, which some programs leave out."""
    return end + 1 if size % 2 and not _is_chunk(data, end) else end


def _is_chunk(data: bytes, at: int) -> bool:
    """True if a name of four letters is there."""
    name = data[at : at + 4]
    return len(name) == 4 and len(data) >= at + 8 and all(0x20 <= each < 0x7F for each in name) and name[:1] != b" "


def _mended(form: bytes, order: str) -> bytes:
    """Format that libsndfile takes: an extensible one without its extension is what its plain fields say."""
    if len(form) < _PLAIN_FORMAT_BYTES:
        if len(form) < 14:
            raise UnusableFile(f"the WAV's format of {len(form)} bytes is cut short; send the whole file")
        form = form.ljust(_PLAIN_FORMAT_BYTES, b"\x00")
    tag, channels, rate_hz, _, block, bits = struct.unpack_from(order + "HHIIHH", form)
    is_extended = len(form) >= _EXTENSIBLE_BYTES and form[26:40] == _GUID_TAIL
    if tag == _EXTENSIBLE and not is_extended and channels:
        tag = _FLOAT if len(form) >= 26 and struct.unpack_from(order + "H", form, 24)[0] == _FLOAT else _PCM
        form = form[:_PLAIN_FORMAT_BYTES]
    if not bits and block and channels and tag == _PCM:
        bits = min(8 * (block // channels), 0xFFFF)
    return struct.pack(order + "HHIIHH", tag, channels, rate_hz, rate_hz * block & _LONG, block, bits) + form[16:]
