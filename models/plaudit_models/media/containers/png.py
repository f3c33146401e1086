"""PNG: its chunks, bounded, and a copy of those that make pixels.

Text, profiles and times are left out, so that none of them can keep the picture from being decoded: a wrong checksum,
a text that unpacks to more than Pillow takes, a profile of an unknown compression.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import MAX_METADATA_BYTES, max_chunks
from plaudit_models.media.metadata import inflate, orientation
from plaudit_models.media.picture import Damaged, Picture

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GREY: Final = 0
_RGB: Final = 2
_PALETTE: Final = 3
_HEADER_BYTES: Final = 13
_XMP_KEYWORD: Final = b"XML:com.adobe.xmp"
_EXIF_KEYWORDS: Final = (b"Raw profile type exif", b"Raw profile type APP1")
"""Under which ImageMagick writes EXIF, in hexadecimal digits."""


def read_png(data: bytes) -> Picture:
    """Raises Damaged: there is no picture in it; UnusableFile: too many chunks, or a kind that is not taken."""
    header = palette = transparency = exif = xmp = b""
    pixels: list[bytes] = []
    for kind, body, is_whole in _chunks(data):
        match kind:
            case b"CgBI":
                raise UnusableFile(
                    "the PNG is in the form of Apple's Xcode (CgBI), which is not taken; save it as a plain PNG"
                )
            case b"IHDR" if not header:
                header = _checked(kind, body, is_whole)
            case b"PLTE" if not palette:
                palette = _checked(kind, body, is_whole)
            case b"IDAT":
                pixels.append(body)
            case b"tRNS" if is_whole and not transparency:
                transparency = body
            case b"eXIf" if not exif:
                exif = body
            case b"iTXt" if body.startswith(_XMP_KEYWORD + b"\x00"):
                xmp = xmp or _international_text(body)
            case b"zTXt" | b"tEXt" if not exif and body.partition(b"\x00")[0] in _EXIF_KEYWORDS:
                exif = _raw_profile(kind, body)
    if len(header) != _HEADER_BYTES:
        raise Damaged("it has no header")
    width, height, depth, color = struct.unpack_from(">IIBB", header)
    if not pixels:
        raise Damaged("it has no pixel data")
    key = _transparent(transparency, color, depth)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    if palette:
        parts.append(_chunk(b"PLTE", palette))
    if color == _PALETTE and transparency:
        parts.append(_chunk(b"tRNS", transparency))
    parts += [_chunk(b"IDAT", b"".join(pixels)), _chunk(b"IEND", b"")]
    return Picture(b"".join(parts), width, height, orientation(exif, xmp), key)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Kind and contents of each chunk up to the end, and whether its checksum is right; the last may be cut short."""
    at = len(SIGNATURE)
    limit = max_chunks(len(data))
    for _ in range(limit):
        if at + 8 > len(data):
            return
        length = struct.unpack_from(">I", data, at)[0]
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        checksum = data[at + 8 + length : at + 12 + length]
        is_small = length <= MAX_METADATA_BYTES
        yield kind, body, is_small and checksum == zlib.crc32(kind + body).to_bytes(4, "big")
        at += 12 + length
    raise UnusableFile(f"the PNG has more chunks than the limit of {limit}; save it again")


def _checked(kind: bytes, body: bytes, is_whole: bool) -> bytes:
    if not is_whole:
        raise Damaged(f"the checksum of its {kind.decode()} is wrong")
    return body


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _transparent(transparency: bytes, color: int, depth: int) -> tuple[int, ...] | None:
    """Colour that is transparent, as Pillow gives its samples: 8 bits, but for grey of 16."""
    samples = {_GREY: 1, _RGB: 3}.get(color, 0)
    if not samples or len(transparency) < 2 * samples:
        return None
    values = struct.unpack_from(f">{samples}H", transparency)
    if depth == 16:
        return values if color == _GREY else tuple(value >> 8 for value in values)
    full = 2**depth - 1
    return tuple((value & full) * 255 // full for value in values)


def _international_text(body: bytes) -> bytes:
    """Text of an iTXt chunk: keyword, is compressed, method, language, translated keyword, text."""
    rest = body.partition(b"\x00")[2]
    is_compressed, text = rest[:1] == b"\x01", rest[2:].partition(b"\x00")[2].partition(b"\x00")[2]
    return inflate(text) if is_compressed else text


def _raw_profile(kind: bytes, body: bytes) -> bytes:
    """EXIF out of lines: a blank one, a name, a length, then hexadecimal digits."""
    text = body.partition(b"\x00")[2]
    if kind == b"zTXt":
        text = inflate(text[1:])
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
