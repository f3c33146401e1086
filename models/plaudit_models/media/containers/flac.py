"""FLAC: its first block and its frames; tags, pictures and seek tables are left out."""

from __future__ import annotations

from typing import Final

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import max_chunks
from plaudit_models.media.sound import Sound

MAGIC: Final = b"fLaC"
_BLOCK_HEADER_BYTES: Final = 4
_STREAM_INFO: Final = 0
_STREAM_INFO_BYTES: Final = 34
_LAST: Final = 0x80
_COUNT_MASK: Final = (1 << 36) - 1


def read_flac(data: bytes) -> Sound:
    """Raises UnusableFile: no sound in it, or too many blocks before it."""
    info, at, limit = b"", len(MAGIC), max_chunks(len(data))
    for _ in range(limit):
        header = data[at : at + _BLOCK_HEADER_BYTES]
        if len(header) < _BLOCK_HEADER_BYTES:
            raise UnusableFile(f"the FLAC of {len(data)} bytes is cut short: it has no samples; send the whole file")
        size = int.from_bytes(header[1:], "big")
        start = at + _BLOCK_HEADER_BYTES
        if header[0] & ~_LAST == _STREAM_INFO and not info:
            info = data[start : start + size]
        at = start + size
        if header[0] & _LAST:
            break
    else:
        raise UnusableFile(f"the FLAC has more blocks than the limit of {limit} before its samples; save it again")
    if len(info) != _STREAM_INFO_BYTES:
        raise UnusableFile(f"the FLAC of {len(data)} bytes does not say what it holds; save it again")
    count = int.from_bytes(info[10:18], "big") & _COUNT_MASK
    first = bytes((_LAST | _STREAM_INFO,)) + len(info).to_bytes(3, "big") + info
    return Sound(MAGIC + first + data[at:], is_open_ended=count == 0)
