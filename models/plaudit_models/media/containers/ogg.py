"""OGG: its pages, bounded, and an end that libsndfile accepts.

What phones record ends as the recorder was stopped: with an empty page, or with no page that is marked as the last. The
last page that holds sound is marked so here. Positions of pages that contradict their packets are put right.
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
_OPUS: Final = b"OpusHead"
_TAKEN: Final = (b"\x01vorbis", _OPUS, b"\x7fFLAC")
_FAR: Final = 10**15
"""Position past any that is real."""
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
    if not with_sound:
        raise UnusableFile(f"the OGG of {len(data)} bytes has no samples; leave the modality out instead")
    is_opus = packet.startswith(_OPUS)
    positions = _opus_positions(data, with_sound) if is_opus else _other_positions(with_sound)
    is_whole = with_sound[-1].flags & _LAST and len(with_sound) == len(pages)
    if is_whole and positions is None:
        return Sound(data)
    flags = [page.flags for page in with_sound]
    flags[-1] |= _LAST
    given = positions or [page.position for page in with_sound]
    parts = [
        data[page.start : page.end]
        if (flag, position) == (page.flags, page.position)
        else _changed(data[page.start : page.end], flag, position)
        for page, flag, position in zip(with_sound, flags, given, strict=True)
    ]
    return Sound(b"".join(parts), is_open_ended=positions is not None and not is_opus)


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


def _opus_positions(data: bytes, pages: list[_Page]) -> list[int] | None:
    """Positions as the packets make them; None where those of the pages are right.

    Writers count wrongly in many ways: without the first page, without its first packets, not at all. Where a stream
    begins is theirs to say, and the end may cut the last packets.
    """
    counted = sound_begins = pending = 0
    ends: list[int] = []
    is_continued = False
    headers = 2
    for number, page in enumerate(pages):
        table_at = page.start + _HEADER_BYTES
        at = table_at + page.segments
        begins = at
        for size in data[table_at : table_at + page.segments]:
            at += size
            if size == 255:
                continue
            if headers:
                headers -= 1
                sound_begins = number + 1
            elif not is_continued:
                counted += _opus_samples(data[begins : min(at, begins + 2)])
            else:
                counted += 0 if begins == at else pending
            begins, is_continued = at, False
        if begins < at:
            is_continued = True
            pending = _opus_samples(data[begins : begins + 2])
        ends.append(counted)
    own = [page.position for page in pages]
    offsets = {position - end for position, end in zip(own[sound_begins:-1], ends[sound_begins:-1], strict=True)}
    last, before = own[-1], ends[-2] if len(ends) > 1 else 0
    offset = min(offsets, default=0)
    if len(offsets) <= 1 and offset >= 0 and before < last - offset <= ends[-1]:
        return None
    end = last - offset if len(offsets) == 1 else last
    ends[-1] = end if before < end <= ends[-1] else ends[-1]
    return ends


def _opus_samples(packet: bytes) -> int:
    """Samples at 48 kHz of a packet, by its first two bytes."""
    if not packet:
        return 0
    kind = packet[0] >> 3
    if kind < 12:
        size = (480, 960, 1920, 2880)[kind & 3]
    elif kind < 16:
        size = (480, 960)[kind & 1]
    else:
        size = (120, 240, 480, 960)[kind & 3]
    code = packet[0] & 3
    frames = (1, 2, 2)[code] if code < 3 else packet[1] & 63 if len(packet) > 1 else 0
    return size * frames


def _other_positions(pages: list[_Page]) -> list[int] | None:
    """Positions far away, so that no sample is cut, where the last page says that there are none; None otherwise."""
    if pages[-1].position > 0:
        return None
    return [0 if page.flags & _FIRST else _FAR + number for number, page in enumerate(pages)]


def _changed(page: bytes, flags: int, position: int) -> bytes:
    changed = bytearray(page)
    changed[_FLAGS_AT] = flags
    struct.pack_into("<q", changed, _POSITION_AT, position)
    changed[_CHECKSUM_AT : _CHECKSUM_AT + 4] = bytes(4)
    struct.pack_into("<I", changed, _CHECKSUM_AT, checksum(bytes(changed)))
    return bytes(changed)


def checksum(page: bytes) -> int:
    """CRC of a page: that of zlib with its bits in the other order, begun and ended with 0."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
