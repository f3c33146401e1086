"""Orientation of a picture, from its EXIF or XMP metadata.

It is the only thing in metadata that matters here, and metadata that cannot be read means an upright picture: it never
decides whether the pixels are taken. A library that reads all of it fails on the tag that nobody wanted.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

from plaudit_models.limits import MAX_METADATA_BYTES, MAX_TIFF_ENTRIES

UPRIGHT: Final = 1

_ORIENTATION_TAG: Final = 0x0112
_FORMATS: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""Integers of TIFF by type number: writers give the orientation in any of them, though it should be 3."""
_ENTRY_BYTES: Final = 12
_EXIF_PREFIX: Final = re.compile(rb"(?:Exif\x00.)*", re.DOTALL)
"""Before the TIFF header; some writers leave it out, repeat it, or end it with another byte than 0."""
_XMP_ORIENTATION: Final = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([1-8])\b""")


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF orientation 1…8; that of XMP where EXIF has none; :data:`UPRIGHT` where neither says one."""
    found = _of_exif(exif)
    if found is None:
        in_xmp = _XMP_ORIENTATION.search(xmp[:MAX_METADATA_BYTES])
        found = int(in_xmp[1]) if in_xmp is not None else UPRIGHT
    return found if 1 <= found <= 8 else UPRIGHT


def inflate(data: bytes) -> bytes:
    """Unpack compressed metadata up to :data:`MAX_METADATA_BYTES`; b"" where it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return b""


def _of_exif(exif: bytes) -> int | None:
    tiff = exif[_EXIF_PREFIX.match(exif).end() :]  # type: ignore[union-attr]  # it matches nothing, too
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return None
    at: int = struct.unpack_from(order + "I", tiff, 4)[0]
    if at + 2 > len(tiff):
        return None
    entries: int = struct.unpack_from(order + "H", tiff, at)[0]
    found = None
    for i in range(min(entries, MAX_TIFF_ENTRIES)):
        entry = tiff[at + 2 + i * _ENTRY_BYTES :][:_ENTRY_BYTES]
        if len(entry) < _ENTRY_BYTES:
            break
        tag, kind, count = struct.unpack_from(order + "HHI", entry)
        if tag == _ORIENTATION_TAG and count >= 1 and kind in _FORMATS:
            found = struct.unpack_from(order + _FORMATS[kind], entry, 8)[0]
    return found
