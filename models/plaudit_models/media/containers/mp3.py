"""MP3: its frames one after the other, and a copy of them alone.

An MP3 is frames and anything else: tags before and after, pictures in them, padding, what a download left. libsndfile
takes only part of that, and its decoder writes of the rest to the process's stderr. A frame counts if another one
follows it, or the end of the sound.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.media.sound import Sound

TAG: Final = b"ID3"
_TAG_HEADER_BYTES: Final = 10
_HAS_FOOTER: Final = 0x10
_SYNC: Final = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""Eleven bits of 1, a version that there is, layer III."""
_MAX_SEARCHED_BYTES: Final = 2**18
"""Bytes looked through, in all, for frames where others ended."""
_CONFIRMING_FRAMES: Final = 2
"""Frames that must follow one that was searched for."""
_SPARE_FRAMES: Final = 6
"""Frames decoded past what is wanted: a decoder drops samples at both ends of what an encoder padded."""
_KBITS: Final = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""By whether it is MPEG-1."""
_RATES_HZ: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MPEG_1: Final = 3
_MONO: Final = 3
_COUNTERS: Final = (b"Xing", b"Info")
"""Names of a frame that holds no sound but says how much there is."""
_HAS_FRAMES: Final = 1
_HAS_BYTES: Final = 2
_PADDING_AT: Final = 142
"""Of three bytes after a counter's name: 12 bits of delay, 12 bits of padding at the end."""


@dataclass(frozen=True, slots=True)
class _Frame:
    at: int
    size: int
    samples: int
    rate_hz: int
    is_mono: bool
    counter_at: int

    @property
    def end(self) -> int:
        return self.at + self.size

    def fits(self, other: _Frame) -> bool:
        """True if both can be of one sound."""
        return (self.rate_hz, self.is_mono) == (other.rate_hz, other.is_mono)


def is_mp3(data: bytes) -> bool:
    """True if a tag or a frame is at the beginning, or after zeros that pad it."""
    start = data.lstrip(b"\x00")[:_TAG_HEADER_BYTES]
    return start.startswith(TAG) or _SYNC.match(start) is not None


def after_tags(data: bytes) -> bytes:
    """Contents after the ID3 tags at the beginning, which also come before sounds of other kinds."""
    at = 0
    while data[at : at + 3] == TAG and at + _TAG_HEADER_BYTES <= len(data):
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        end = at + _TAG_HEADER_BYTES + size + (_TAG_HEADER_BYTES if data[at + 5] & _HAS_FOOTER else 0)
        # A tag that is longer than the file says nothing about where the sound begins.
        at = end if end < len(data) else at + _TAG_HEADER_BYTES
    return data[at:]


def read_mp3(data: bytes, *, wanted_s: float, limit_s: float) -> Sound:
    """Frames of the first ``wanted_s`` seconds; the duration is counted up to ``limit_s`` and one frame more.

    Raises UnusableFile: there are no frames.
    """
    kept: list[_Frame] = []
    samples = at = 0
    searched = 0
    counter: _Frame | None = None
    count = 0
    while not kept or samples <= limit_s * kept[0].rate_hz:
        frame = _frame(data, at)
        if frame is None or not (kept[0].fits(frame) if kept else _confirmed(data, frame)):
            frame = _search(data, at, kept[0] if kept else None, _MAX_SEARCHED_BYTES - searched)
            if frame is None:
                break
            searched += frame.at - at
        at = frame.end
        if counter is None and not kept and _is_counter(data, frame):
            counter = frame
            continue
        count += 1
        samples += frame.samples
        if samples <= wanted_s * frame.rate_hz + _SPARE_FRAMES * frame.samples:
            kept.append(frame)
    if not kept:
        raise UnusableFile(f"the MP3 of {len(data)} bytes has no frames of sound; send the whole file")
    parts = [data[frame.at : frame.end] for frame in kept]
    if counter is not None:
        parts.insert(0, _corrected(data, counter, kept, is_whole=len(kept) == count))
    return Sound(b"".join(parts), is_open_ended=True, duration_s=samples / kept[0].rate_hz, is_noisy=True)


def _frame(data: bytes, at: int) -> _Frame | None:
    """Frame whose header is at a position, if all of it is there."""
    header = data[at : at + 4]
    if len(header) < 4 or _SYNC.match(header) is None:
        return None
    version = header[1] >> 3 & 3
    is_first = version == _MPEG_1
    bit_rate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if bit_rate in (0, 15) or rate == 3:
        return None
    rate_hz = _RATES_HZ[version][rate]
    size = (144 if is_first else 72) * _KBITS[is_first][bit_rate] * 1000 // rate_hz + padding
    if at + size > len(data):
        return None
    is_mono = header[3] >> 6 == _MONO
    side_info = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return _Frame(at, size, 1152 if is_first else 576, rate_hz, is_mono, at + 4 + side_info)


def _confirmed(data: bytes, frame: _Frame) -> bool:
    """True if frames of the same sound follow it, or the end of the file."""
    following: _Frame | None = frame
    for _ in range(_CONFIRMING_FRAMES):
        assert following is not None
        at = following.end
        if len(data) - at < _TAG_HEADER_BYTES or data[at : at + 3] == b"TAG":
            return True
        following = _frame(data, at)
        if following is None or not following.fits(frame):
            return False
    return True


def _search(data: bytes, at: int, first: _Frame | None, within_bytes: int) -> _Frame | None:
    """Next frame of the sound that is confirmed by those after it."""
    for found in _SYNC.finditer(data, at + 1, min(at + 1 + max(within_bytes, 0), len(data))):
        frame = _frame(data, found.start())
        if frame is not None and (first is None or frame.fits(first)) and _confirmed(data, frame):
            return frame
    return None


def _is_counter(data: bytes, frame: _Frame) -> bool:
    return data[frame.counter_at : frame.counter_at + 4] in _COUNTERS


def _corrected(data: bytes, counter: _Frame, kept: list[_Frame], *, is_whole: bool) -> bytes:
    """Counter that says what is there. Where that is not the whole sound, none of its end is padding."""
    frame = bytearray(data[counter.at : counter.end])
    name_at = counter.counter_at - counter.at
    flags_at = name_at + 4
    if flags_at + 12 > len(frame):
        return bytes(frame)
    flags = struct.unpack_from(">I", frame, flags_at)[0]
    at = flags_at + 4
    if flags & _HAS_FRAMES:
        is_whole = is_whole and struct.unpack_from(">I", frame, at)[0] == len(kept)
        struct.pack_into(">I", frame, at, len(kept))
        at += 4
    if flags & _HAS_BYTES:
        struct.pack_into(">I", frame, at, counter.size + sum(each.size for each in kept))
    padding_at = name_at + _PADDING_AT
    if not is_whole and padding_at + 2 <= len(frame):
        frame[padding_at] &= 0xF0
        frame[padding_at + 1] = 0
    return bytes(frame)
