"""Small files that cost much: which are refused before a decoder sees them, and which are decoded within bounds."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from PIL import Image

from field import sounds
from field.images import encoded, png_chunk
from plaudit_models.media.containers.ogg import checksum

MEGABYTES: Final = 8_000_000


def _flat(mode: str, side: int, image_format: str, **options: Any) -> bytes:
    return encoded(Image.new(mode, (side, side)), image_format, **options)


def _png() -> bytes:
    return _flat("L", 8, "PNG")


def _jpeg_of_scans(side: int, scans: int) -> bytes:
    """Progressive JPEG whose last scan, which changes nothing, comes again and again: 31 bytes each."""
    whole = _flat("L", side, "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + b"\xff\xd9"


def _jpeg_declared(width: int, height: int, **options: Any) -> bytes:
    whole = bytearray(_flat("L", 64, "JPEG", **options))
    at = next(whole.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in whole)
    struct.pack_into(">HH", whole, at + 5, height, width)
    return bytes(whole)


def _bmp_rle(size: int, side: int) -> bytes:
    header = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54 + 1024)
    header += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 0, 0)
    return header + bytes(1024) + b"\x00\x00" * ((size - 1078) // 2)


def _webp_canvas(side: int) -> bytes:
    whole = bytearray(_flat("RGBA", 8, "WEBP", exif=b"Exif\0\0"))
    at = whole.index(b"VP8X") + 12
    whole[at : at + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(whole)


def _avif_size(side: int, *, in_stream: bool) -> bytes:
    """AVIF whose boxes, or whose AV1 stream, say another size than it has."""
    whole = bytearray(_flat("RGB", 64, "AVIF", speed=10))
    if not in_stream:
        struct.pack_into(">II", whole, whole.index(b"ispe") + 8, side, side)
        return bytes(whole)
    other = bytearray(_flat("RGB", side, "AVIF", speed=10, quality=1))
    struct.pack_into(">II", other, other.index(b"ispe") + 8, 64, 64)
    return bytes(other)


def _gif_frame(side: int) -> bytes:
    whole = bytearray(_flat("P", 8, "GIF"))
    at = whole.rindex(b",\x00\x00\x00\x00\x08\x00")
    struct.pack_into("<HH", whole, at + 5, side, side)
    return bytes(whole)


def _ogg_pages(count: int) -> bytes:
    page = bytearray(struct.pack("<4sBBqIIIBB", b"OggS", 0, 2, 0, 7, 0, 0, 1, 7) + b"\x01vorbis")
    struct.pack_into("<I", page, 22, checksum(bytes(page)))
    return bytes(page) + struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 0, 7, 1, 0, 0) * count


def _flac_silence(rate_hz: int, channels: int, *, says_length: bool) -> bytes:
    whole = bytearray(sounds.encoded(np.zeros((rate_hz * 40, channels), np.int16), rate_hz, "FLAC"))
    if not says_length:
        whole[18:26] = (int.from_bytes(whole[18:26], "big") >> 36 << 36).to_bytes(8, "big")
    return bytes(whole)


REFUSED: Final[dict[str, tuple[Callable[[], bytes], str]]] = {
    "JPEG of 101 scans": (lambda: _jpeg_of_scans(64, 101), "more than 100 scans"),
    "JPEG of 16 Mpx in 60 scans": (lambda: _jpeg_of_scans(4_000, 60), "in 60 scans takes too long"),
    "JPEG that declares 65500×65500": (lambda: _jpeg_declared(65_500, 65_500), "takes too long to decode"),
    "JPEG that declares 16000×10000": (lambda: _jpeg_declared(16_000, 10_000), "takes too long to decode"),
    "progressive JPEG that declares 10000×9000": (
        lambda: _jpeg_declared(10_000, 9_000, progressive=True),
        "takes too long|takes .* bytes to decode",
    ),
    "JPEG of empty segments": (lambda: b"\xff\xd8" + b"\xff\xe5\x00\x02" * (MEGABYTES // 4), "more segments"),
    "JPEG of fill bytes": (lambda: b"\xff\xd8\xff" + b"\xff" * MEGABYTES, "has no frame"),
    "PNG of 690,000 empty chunks": (
        lambda: _png()[:33] + png_chunk(b"aaAa", b"") * 690_000 + _png()[33:],
        "more chunks than the limit",
    ),
    "PNG of 690,000 empty pieces of pixels": (
        lambda: _png()[:33] + png_chunk(b"IDAT", b"") * 690_000 + _png()[33:],
        "more chunks than the limit",
    ),
    "PNG that declares 40000×40000": (
        lambda: _png()[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)) + _png()[33:],
        "40000×40000 pixels are more than the limit",
    ),
    "PNG of 4000×4000": (lambda: _flat("L", 4_000, "PNG"), "4000×4000 pixels are more than the limit"),
    "WebP of 2500×2500": (lambda: _flat("RGB", 2_500, "WEBP", method=0), "2500×2500 pixels are more than the limit"),
    "WebP whose canvas is 16000×16000": (lambda: _webp_canvas(16_000), "16000×16000 pixels are more"),
    "AVIF whose boxes say 16000×16000": (
        lambda: _avif_size(16_000, in_stream=False),
        "16000×16000 pixels are more than the limit",
    ),
    "AVIF whose stream is larger than its boxes say": (
        lambda: _avif_size(2_400, in_stream=True),
        "2400×2400 pixels are more than the limit",
    ),
    "AVIF of a million boxes": (
        lambda: _flat("RGB", 64, "AVIF", speed=10)[:32] + b"\0\0\0\x08free" * 1_000_000,
        "more boxes than the limit",
    ),
    "GIF whose picture is larger than its screen": (lambda: _gif_frame(60_000), "60000×60000 pixels are more"),
    "GIF of a comment in pieces of one byte": (
        lambda: _flat("P", 8, "GIF")[:13] + b"!\xfe" + b"\x01a" * (MEGABYTES // 2),
        "more blocks than the limit",
    ),
    "run-length encoded BMP of 1 MB": (lambda: _bmp_rle(2**20, 1_000), "run-length encoded BMP"),
    "run-length encoded BMP of 2000×2000": (lambda: _bmp_rle(5_000, 2_000), "run-length encoded BMP"),
    "TIFF": (lambda: _flat("RGB", 64, "TIFF"), "a TIFF image"),
    "WAV of a million empty chunks": (
        lambda: sounds.wav(sounds.pcm_format(), b"LIST\0\0\0\0" * 1_000_000, sounds.chunk(b"data", bytes(8))),
        "more chunks than the limit",
    ),
    "OGG of 300,000 empty pages": (lambda: _ogg_pages(280_000), "more pages than the limit"),
    "FLAC of a million empty blocks": (lambda: b"fLaC" + b"\x01\0\0\0" * 1_000_000, "more blocks than the limit"),
    "MP3 of sync words": (lambda: b"\xff\xfb\x90\x00" + b"\xff\xfb" * (MEGABYTES // 2), "no frames of sound"),
}
"""By name: the file, and what is said of it. No decoder sees it."""

DECODED: Final[dict[str, Callable[[], bytes]]] = {
    "JPEG of 4 Mpx in 90 scans": lambda: _jpeg_of_scans(2_000, 90),
    "JPEG of 16 Mpx in 20 scans": lambda: _jpeg_of_scans(4_000, 20),
    "JPEG of 100 Mpx": lambda: _jpeg_declared(10_000, 10_000),
    "PNG of 4 Mpx, RGBA": lambda: _flat("RGBA", 2_048, "PNG"),
    "PNG of 4 Mpx, 16-bit grey": lambda: encoded(Image.fromarray(np.zeros((2_048, 2_048), np.uint16)), "PNG"),
    "PNG of 4 Mpx, one colour transparent": lambda: _flat("RGB", 2_048, "PNG", transparency=(0, 0, 0)),
    "PNG whose text unpacks to 1 GB": lambda: (
        _png()[:33] + png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**24)) * 60) + _png()[33:]
    ),
    "WebP of 4 Mpx, RGBA": lambda: _flat("RGBA", 2_048, "WEBP", lossless=True),
    "AVIF of 4 Mpx, RGBA": lambda: _flat("RGBA", 2_048, "AVIF", speed=10),
    "GIF of 4 Mpx": lambda: _flat("P", 2_048, "GIF"),
    "run-length encoded BMP of 120 kB": lambda: _bmp_rle(120_000, 1_000),
    "FLAC of 8 channels": lambda: _flac_silence(48_000, 8, says_length=True),
    "FLAC of 8 channels that does not say its length": lambda: _flac_silence(48_000, 8, says_length=False),
}
"""By name: the file. It is decoded, or found to be damaged, within the bounds of one decoding."""
