"""JPEG: its segments and scans, bounded, and a copy of what makes pixels.

Only what steers the decoder stays: tables, frames, scans, and the two markers that tell the colour space. What decoding
will cost is known from the frame and the number of scans: libjpeg passes over all pixels for each scan, and keeps the
coefficients of all pixels where there are several.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import (
    JPEG_SAMPLE_SCANS,
    MAX_JPEG_COEFFICIENT_BYTES,
    MAX_JPEG_SCAN_PIXELS,
    MAX_JPEG_SCANS,
    max_chunks,
)
from plaudit_models.media.metadata import orientation
from plaudit_models.media.picture import Damaged, Picture

SIGNATURE: Final = b"\xff\xd8\xff"
_SOI: Final = b"\xff\xd8"
_EOI: Final = 0xD9
_SOS: Final = 0xDA
_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS: Final = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_TABLES: Final = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD8), 0xD8})
_APP0: Final = 0xE0
_APP1: Final = 0xE1
_APP14: Final = 0xEE
_MARKER: Final = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_AFTER_SCAN: Final = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""Marker that ends a scan's data: restart markers are part of it."""
_XMP_PREFIX: Final = b"http://ns.adobe.com/xap/1.0/\x00"
_BLOCK_BYTES: Final = 128
"""Memory for the coefficients of 8×8 samples."""


@dataclass(slots=True)
class _FoundSegments:
    parts: list[bytes] = field(default_factory=lambda: [_SOI])
    frame: bytes = b""
    frame_marker: int = 0
    exif: bytes = b""
    xmp: bytes = b""
    scans: int = 0


def read_jpeg(data: bytes) -> Picture:
    """Raises Damaged: there is no picture in it; UnusableFile: it would cost too much, or a kind that is not taken."""
    found = _walk(data)
    if len(found.frame) < 6:
        raise Damaged("it has no frame")
    precision, height, width, components = struct.unpack_from(">BHHB", found.frame)
    if precision != 8:
        raise UnusableFile(f"the JPEG has {precision} bits a sample; save it with 8")
    if found.frame_marker in _LOSSLESS:
        raise UnusableFile("the JPEG is of the lossless kind, which is not taken; save it as PNG")
    if not found.scans:
        raise Damaged("it has no pixel data")
    if height == 0:
        raise UnusableFile("the JPEG does not say its height; save it again")
    _check_cost(found, width, height, components)
    return Picture(b"".join(found.parts), width, height, orientation(found.exif, found.xmp), scalable=True)


def _walk(data: bytes) -> _FoundSegments:
    """Segments up to the end of the image; what follows, such as a video, is left out."""
    found = _FoundSegments()
    at, limit = len(_SOI), max_chunks(len(data))
    for _ in range(limit):
        marker = (_AFTER_SCAN if found.scans else _MARKER).search(data, at)
        if marker is None:
            if found.scans:
                found.parts.append(data[at:])
            return found
        if found.scans:
            found.parts.append(data[at : marker.start()])
        code, at = marker[1][0], marker.end()
        if code == _EOI:
            found.parts.append(b"\xff\xd9")
            return found
        if code in _WITHOUT_LENGTH:
            continue
        if at + 2 > len(data):
            return found
        length = struct.unpack_from(">H", data, at)[0]
        _take(found, code, data[at : at + length])
        at += max(length, 2)
    raise UnusableFile(f"the JPEG has more segments than the limit of {limit}; save it again")


def _take(found: _FoundSegments, code: int, segment: bytes) -> None:
    """Note a segment, which begins with its length, and keep it if it makes pixels."""
    body = segment[2:]
    if code in _FRAMES:
        if not found.frame:
            found.frame, found.frame_marker = body, code
    elif code == _SOS:
        found.scans += 1
        if found.scans > MAX_JPEG_SCANS:
            raise UnusableFile(
                f"the JPEG has more than {MAX_JPEG_SCANS} scans, which are decoded one after the other; save it again"
            )
    elif code == _APP1:
        if body.startswith(b"Exif\x00"):
            found.exif = found.exif or body
        elif body.startswith(_XMP_PREFIX):
            found.xmp = found.xmp or body[len(_XMP_PREFIX) :]
        return
    elif not (
        code in _TABLES
        or (code == _APP0 and body.startswith(b"JFIF"))
        or (code == _APP14 and body.startswith(b"Adobe"))
    ):
        return
    found.parts.append(bytes((0xFF, code)) + segment)


def _check_cost(found: _FoundSegments, width: int, height: int, components: int) -> None:
    shape = f"{width}×{height} pixels"
    if width * height * (found.scans + JPEG_SAMPLE_SCANS) > MAX_JPEG_SCAN_PIXELS:
        raise UnusableFile(
            f"the JPEG of {shape} in {found.scans} scans takes too long to decode; shrink it, or save it as baseline"
        )
    if found.scans > 1 or found.frame_marker in _PROGRESSIVE:
        needed = _coefficient_bytes(found.frame, width, height, components)
        if needed > MAX_JPEG_COEFFICIENT_BYTES:
            raise UnusableFile(
                f"the progressive JPEG of {shape} takes {needed} bytes to decode, the limit is "
                f"{MAX_JPEG_COEFFICIENT_BYTES}; shrink the image, or save it as a baseline JPEG"
            )


def _coefficient_bytes(frame: bytes, width: int, height: int, components: int) -> int:
    sampling = [(each >> 4 or 1, each & 15 or 1) for each in frame[7 : 6 + 3 * components : 3]]
    if not sampling:
        return 0
    widest, tallest = max(h for h, _ in sampling), max(v for _, v in sampling)
    # Whole units of the interleaved components, as libjpeg allocates them.
    columns, rows = -(-width // (8 * widest)), -(-height // (8 * tallest))
    return columns * rows * sum(h * v for h, v in sampling) * _BLOCK_BYTES
