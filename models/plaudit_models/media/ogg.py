"""OGG: its pages, bounded, and an end that libsndfile accepts.

What phones record ends as the recorder was stopped: with an empty page, or with no page that is marked as the last. The
last page that holds sound is marked so here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import MAX_OGG_PAGES
from plaudit_models.media.sound import Sound

MAGIC: Final = b"OggS"
_HEADER_BYTES: Final = 27
_FLAGS_AT: Final = 5
_POSITION_AT: Final = 6
_SERIAL_AT: Final = 14
_CHECKSUM_AT: Final = 22
_FIRST: Final = 2
_LAST: Final = 4
_TAKEN: Final = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")
_OTHERS: Final = {
    b"Speex   ": "Speex",
    b"\x80theora": "a Theora video",
    b"fishead\x00": "a video, or several streams",
    b"\x80kate": "subtitles",
    b"BBCD": "a Dirac video",
    b"OVP80": "a VP8 video",
}
_REVERSED: Final = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


@dataclass(frozen=True, slots=True)
class _Page:
    start: int
    end: int
    flags: int
    position: int
    serial: bytes
    segments: int


def read_ogg(data: bytes) -> Sound:
    """Raises UnusableFile: no sound in it, too many pages, or a kind that is not taken."""
    pages = list(_pages(data))
    if not pages:
        raise UnusableFile(f"the OGG of {len(data)} bytes is damaged: it has no whole page; send the whole file")
    first = pages[0]
    packet = data[first.start + _HEADER_BYTES + first.segments :][:8]
    if not packet.startswith(_TAKEN):
        other = next((name for magic, name in _OTHERS.items() if packet.startswith(magic)), "something unknown")
        raise UnusableFile(f"the OGG holds {other}; convert it to Vorbis, Opus, FLAC or WAV")
    # Further streams of the file, such as a cover's, are none of this sound's pages.
    own = [page for page in pages if page.serial == first.serial]
    with_sound = [page for page in own if page.segments]
    last = with_sound[-1]
    if last.flags & _LAST and len(with_sound) == len(pages):
        return Sound(data)
    parts = [data[page.start : page.end] for page in with_sound[:-1]]
    parts.append(_marked_as_last(data[last.start : last.end]))
    return Sound(b"".join(parts))


def _pages(data: bytes) -> Iterator[_Page]:
    """Whole pages; what lies between them is skipped."""
    at = 0
    for _ in range(MAX_OGG_PAGES):
        at = data.find(MAGIC, at)
        if at < 0 or at + _HEADER_BYTES > len(data):
            return
        segments = data[at + _HEADER_BYTES - 1]
        table = data[at + _HEADER_BYTES : at + _HEADER_BYTES + segments]
        end = at + _HEADER_BYTES + segments + sum(table)
        if len(table) < segments or end > len(data):
            return
        position = struct.unpack_from("<q", data, at + _POSITION_AT)[0]
        serial = data[at + _SERIAL_AT : at + _SERIAL_AT + 4]
        yield _Page(at, end, data[at + _FLAGS_AT], position, serial, segments)
        at = end
    raise UnusableFile(f"the OGG has more pages than the limit of {MAX_OGG_PAGES}; save it again")


def _marked_as_last(page: bytes) -> bytes:
    mended = bytearray(page)
    mended[_FLAGS_AT] |= _LAST
    mended[_CHECKSUM_AT : _CHECKSUM_AT + 4] = bytes(4)
    struct.pack_into("<I", mended, _CHECKSUM_AT, checksum(bytes(mended)))
    return bytes(mended)


def checksum(page: bytes) -> int:
    """CRC of a page: that of zlib with its bits in the other order, begun and ended with 0."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
