"""WebP: its chunks, bounded, and a copy of those that make the first picture.

libwebp allocates the canvas before it looks at the pictures, so the canvas is known here first.
"""

from __future__ import annotations

import struct
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import max_chunks
from plaudit_models.media.metadata import orientation
from plaudit_models.media.picture import Damaged, Picture

_LOSSY: Final = b"VP8 "
_LOSSLESS: Final = b"VP8L"
_METADATA_FLAGS: Final = 0x2C
"""Profile, EXIF and XMP are there."""


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> Picture:
    """Raises Damaged: there is no picture in it; UnusableFile: too many chunks."""
    exif = xmp = b""
    size: tuple[int, int] | None = None
    kept: list[bytes] = []
    has_picture = False
    for kind, body in _chunks(data):
        match kind:
            case b"VP8X" if not kept and len(body) >= 10:
                size = _uint24(body, 4) + 1, _uint24(body, 7) + 1
                body = bytes((body[0] & ~_METADATA_FLAGS,)) + body[1:]
            case b"VP8 " | b"VP8L" if not has_picture:
                size, has_picture = size or _frame_size(kind, body), True
            case b"ANMF" if not has_picture:
                has_picture = True
            case b"ALPH" if not has_picture:
                pass
            case b"ANIM":
                pass
            case b"EXIF":
                exif = exif or body
                continue
            case b"XMP ":
                xmp = xmp or body
                continue
            case _:
                continue
        kept.append(kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2))
    if size is None or not has_picture:
        raise Damaged("it has no picture")
    contents = b"WEBP" + b"".join(kept)
    return Picture(b"RIFF" + struct.pack("<I", len(contents)) + contents, *size, orientation(exif, xmp))


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and contents of each chunk; the last may be cut short, which the decoder then sees."""
    at, limit = 12, max_chunks(len(data))
    found: list[tuple[bytes, bytes]] = []
    while at + 8 <= len(data):
        if len(found) == limit:
            raise UnusableFile(f"the WebP has more chunks than the limit of {limit}; save it again")
        length = struct.unpack_from("<I", data, at + 4)[0]
        found.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def _frame_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    if kind == _LOSSY and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == _LOSSLESS and len(body) >= 5 and body[0] == 0x2F:
        bits = struct.unpack_from("<I", body, 1)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _uint24(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 3], "little")
