"""GIF: its blocks up to the first picture, and a copy of that picture alone; an animation is its first picture."""

from __future__ import annotations

import struct
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import MAX_CHUNKS, max_chunks
from plaudit_models.media.picture import Damaged, Picture

SIGNATURES: Final = (b"GIF87a", b"GIF89a")
_SCREEN_BYTES: Final = 13
_GRAPHIC_CONTROL: Final = 0xF9
_TRAILER: Final = b";"
_BYTES_PER_BLOCK: Final = 64
"""Size of the smallest blocks that a large file is made of; programs write 255."""


def read_gif(data: bytes) -> Picture:
    """Raises Damaged: there is no picture in it; UnusableFile: too many blocks before it."""
    if len(data) < _SCREEN_BYTES:
        raise Damaged("its header is cut short")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = _SCREEN_BYTES + _palette_bytes(flags)
    kept, control, limit = data[:at], b"", max_chunks(len(data))
    for _ in range(limit):
        match data[at : at + 1]:
            case b"!":
                end = _end_of_blocks(data, at + 2)
                if data[at + 1 : at + 2] == bytes((_GRAPHIC_CONTROL,)):
                    control = data[at:end]
                at = end
            case b",":
                if at + 10 > len(data):
                    raise Damaged("its picture is cut short")
                left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, at + 1)
                end = _end_of_blocks(data, at + 10 + _palette_bytes(flags) + 1)
                # A picture larger than the screen makes the screen larger.
                return Picture(
                    kept + control + data[at:end] + _TRAILER, max(width, left + columns), max(height, top + rows)
                )
            case b"" | b";":
                raise Damaged("it has no picture")
            case _:
                at += 1
    raise UnusableFile(f"the GIF has more blocks than the limit of {limit} before its picture; save it again")


def _palette_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int) -> int:
    """Position after a chain of blocks that ends with an empty one."""
    limit = MAX_CHUNKS + len(data) // _BYTES_PER_BLOCK
    for _ in range(limit):
        if at >= len(data) or not data[at]:
            return min(at + 1, len(data))
        at += 1 + data[at]
    raise UnusableFile(f"the GIF has more blocks than the limit of {limit} in a row; save it again")
