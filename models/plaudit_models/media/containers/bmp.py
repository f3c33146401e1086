"""BMP: its header, and a bound on what Pillow decodes in Python."""

from __future__ import annotations

import struct
from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import MAX_RLE_BYTES
from plaudit_models.media.picture import Damaged, Picture

SIGNATURE: Final = b"BM"
_CORE_HEADER_BYTES: Final = 12
_HEADER_AT: Final = 14
_RLE: Final = (1, 2)
_MAX_RLE_PIXELS: Final = 2**20
_HEADERS_BYTES: Final = (12, 16, 40, 52, 56, 64, 108, 124)


def is_bmp(data: bytes) -> bool:
    """True if the size of the second header is one that there is: two letters are too few to know a file by."""
    return data[:2] == SIGNATURE and len(data) >= 26 and struct.unpack_from("<I", data, 14)[0] in _HEADERS_BYTES


def read_bmp(data: bytes) -> Picture:
    """Raises Damaged: its header is cut short; UnusableFile: run-length encoded and large."""
    size = struct.unpack_from("<I", data, _HEADER_AT)[0]
    if len(data) < _HEADER_AT + size:
        raise Damaged("its header is cut short")
    if size == _CORE_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", data, _HEADER_AT + 4)
        return Picture(data, width, height)
    width, height = struct.unpack_from("<ii", data, _HEADER_AT + 4)
    height = abs(height)  # negative: the first row is the upper one
    compression = struct.unpack_from("<I", data, _HEADER_AT + 16)[0] if size > 16 else 0
    if compression in _RLE and (len(data) > MAX_RLE_BYTES or width * height > _MAX_RLE_PIXELS):
        raise UnusableFile(
            f"the run-length encoded BMP of {width}×{height} pixels in {len(data)} bytes is more than the limit of "
            f"{_MAX_RLE_PIXELS} pixels and {MAX_RLE_BYTES} bytes; save it as PNG"
        )
    return Picture(data, width, height)
