"""AVIF: its boxes, bounded, the size of every picture in it, and metadata made invisible.

An AVIF says its sizes twice: in its boxes, and in the header of each AV1 stream, which is what the decoder allocates
for. Both are read here. EXIF and XMP are hidden from the decoder by another name of their items, which moves no byte;
the picture is turned by its own boxes (irot, imir), as the format wants it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import MAX_CHUNKS
from plaudit_models.media.picture import Damaged, Picture

_HEADER_BYTES: Final = 8
_FULL: Final = 4
"""Version and flags at the beginning of a full box."""
_CONTAINERS: Final = {
    b"meta": _FULL,
    b"iprp": 0,
    b"ipco": 0,
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"stsd": _FULL + 4,
    b"av01": 78,
}
"""Boxes that hold boxes, and the bytes before these."""
_MAX_DEPTH: Final = 8
_METADATA_ITEMS: Final = (b"Exif", b"mime")
_HIDDEN_ITEM: Final = b"skip"
_SEQUENCE_HEADER: Final = 1
_MAX_OBUS: Final = 8
"""Units looked at for the sequence header of a stream, which comes first or after a temporal delimiter."""


@dataclass(slots=True)
class _FoundBoxes:
    sizes: list[tuple[int, int]] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    boxes: int = 0


def read_avif(data: bytes) -> Picture:
    """The size is that of the largest picture in it.

    Raises Damaged: there is no picture in it; UnusableFile: too many boxes.
    """
    found = _FoundBoxes()
    try:
        _walk(data, 0, len(data), found, 0)
        for start, length in found.extents:
            found.sizes += _sequence_size(data[start : start + min(length, 512)])
    except (struct.error, IndexError) as error:
        raise Damaged("its boxes are cut short") from error
    if not found.sizes:
        raise Damaged("it has no picture")
    hidden = bytearray(data)
    for at in found.hidden:
        hidden[at : at + 4] = _HIDDEN_ITEM
    width, height = max(found.sizes, key=lambda size: size[0] * size[1])
    return Picture(bytes(hidden), width, height)


def _boxes(data: bytes, at: int, end: int, found: _FoundBoxes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the contents and end of each box."""
    while at + _HEADER_BYTES <= end:
        found.boxes += 1
        if found.boxes > MAX_CHUNKS:
            raise UnusableFile(f"the AVIF has more boxes than the limit of {MAX_CHUNKS}; save it again")
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + _HEADER_BYTES
        if length == 1:
            length = struct.unpack_from(">Q", data, start)[0]
            start += 8
        box_end = end if length == 0 else at + length
        if box_end < start or box_end > end:
            raise Damaged("its boxes are cut short")
        yield kind, start, box_end
        at = box_end


def _walk(data: bytes, at: int, end: int, found: _FoundBoxes, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnusableFile("the AVIF has boxes in boxes that are too deep; save it again")
    for kind, start, box_end in _boxes(data, at, end, found):
        match kind:
            case b"ispe":
                found.sizes.append(struct.unpack_from(">II", data, start + _FULL))
            case b"tkhd":
                wide = 8 if data[start] else 0  # 64-bit times
                width, height = struct.unpack_from(">II", data, box_end - 8) if box_end - start >= 84 + wide else (0, 0)
                found.sizes.append((width >> 16, height >> 16))
            case b"iinf":
                large = data[start] != 0
                _walk(data, start + _FULL + (4 if large else 2), box_end, found, depth + 1)
            case b"infe" if data[start] >= 2:
                name_at = start + _FULL + (2 if data[start] == 2 else 4) + 2
                if data[name_at : name_at + 4] in _METADATA_ITEMS:
                    found.hidden.append(name_at)
            case b"iloc":
                found.extents += _extents(data, start, box_end)
            case b"mdat" | b"idat":
                # Also the first stream of a sequence, whose place other boxes say in a roundabout way.
                found.extents.append((start, box_end - start))
            case b"av01" if depth < 3:
                pass
            case _ if kind in _CONTAINERS:
                _walk(data, start + _CONTAINERS[kind], box_end, found, depth + 1)


def _extents(data: bytes, at: int, end: int) -> list[tuple[int, int]]:
    """Offset and length of the parts of all items that lie in the file itself."""
    version = data[at]
    sizes, more = data[at + _FULL], data[at + _FULL + 1]
    offset_bytes, length_bytes, base_bytes = sizes >> 4, sizes & 15, more >> 4
    index_bytes = more & 15 if version in (1, 2) else 0
    at += _FULL + 2

    def number(size: int) -> int:
        nonlocal at
        if at + size > end:
            raise Damaged("its boxes are cut short")
        value = int.from_bytes(data[at : at + size], "big")
        at += size
        return value

    wide = 4 if version == 2 else 2
    found: list[tuple[int, int]] = []
    for _ in range(number(wide)):
        number(wide)
        is_in_file = version not in (1, 2) or number(2) & 15 == 0
        number(2)
        base = number(base_bytes)
        for _ in range(number(2)):
            number(index_bytes)
            start, length = base + number(offset_bytes), number(length_bytes)
            if is_in_file:
                found.append((start, length))
            if len(found) > MAX_CHUNKS:
                raise UnusableFile(f"the AVIF has more parts than the limit of {MAX_CHUNKS}; save it again")
    return found


def _sequence_size(stream: bytes) -> list[tuple[int, int]]:
    """Largest frame of an AV1 stream, as its sequence header says; [] where there is no such header."""
    at = 0
    for _ in range(_MAX_OBUS):
        if at >= len(stream):
            break
        header = stream[at]
        at += 2 if header & 4 else 1
        if header & 0x80 or not header & 2:
            break
        length = shift = 0
        while at < len(stream):
            byte = stream[at]
            length |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not byte & 0x80 or shift > 28:
                break
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            return _frame_size(stream[at : at + length])
        at += length
    return []


def _frame_size(header: bytes) -> list[tuple[int, int]]:
    """Size in a sequence header, where it has no timing: that of pictures has none."""
    bits = int.from_bytes(header, "big")
    left = len(header) * 8

    def take(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise Damaged("its AV1 header is cut short")
        return bits >> left & ((1 << count) - 1)

    take(4)  # profile, still picture
    if take(1):  # reduced header
        take(5)
    else:
        if take(1):  # timing
            return []
        has_display_delay = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if has_display_delay and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return [(take(width_bits) + 1, take(height_bits) + 1)]
