"""Bounds of encoded content that are checked in the bytes, before a library decodes them. Knows no settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of content that operators set; those of all operators are constants of this module.

    Attributes:
        max_image_pixels: pixels that are decoded; a larger JPEG is decoded at a fraction of its size.
        max_audio_duration_s: duration of a sound; nothing past what the model takes is decoded.
    """

    max_image_bytes: int = 16 * 2**20
    max_image_pixels: int = 4 * 2**20
    max_audio_bytes: int = 16 * 2**20
    max_audio_duration_s: float = 60.0
    max_text_bytes: int = 64 * 2**10


DEFAULT_LIMITS: Final = Limits()
OWN_FILES_LIMITS: Final = Limits(max_image_pixels=32_000_000)
"""Of what an operator trains on, which no stranger sent."""

# --- files ------------------------------------------------------------------------------------------------------------

MAX_CHUNKS: Final = 1_000
"""Chunks, segments, pages or boxes of one file; one more for each `BYTES_PER_CHUNK` of it."""
BYTES_PER_CHUNK: Final = 4_096
"""Size of the smallest chunks that a large file of an ordinary program is made of; libpng writes 8,192."""
MAX_METADATA_BYTES: Final = 2**20
"""Compressed metadata that is unpacked to find an orientation."""
MAX_TIFF_ENTRIES: Final = 1_000
"""Entries of the EXIF directory that are looked at."""
# --- images -----------------------------------------------------------------------------------------------------------

MAX_IMAGE_SIDE_PIXELS: Final = 65_500
"""Longest side of an image: that of libjpeg."""

MAX_JPEG_SCANS: Final = 100
"""Scans of a progressive JPEG. Each costs a pass over all pixels, however few bytes it has."""
MAX_JPEG_SCAN_PIXELS: Final = 450_000_000
"""Pixels of a JPEG, before it is scaled, times its scans and `JPEG_SAMPLE_SCANS`: 108 million in one scan."""
JPEG_SAMPLE_SCANS: Final = 3
"""Empty scans that take as long as making samples of the pixels."""
MAX_JPEG_COEFFICIENT_BYTES: Final = 96 * 2**20
"""Memory for the coefficients of a JPEG of several scans, which are kept whole whatever it is scaled to."""
MAX_RLE_BYTES: Final = 128 * 2**10
"""Size of a run-length encoded BMP, which Pillow decodes in Python."""

# --- sounds -----------------------------------------------------------------------------------------------------------

MIN_SAMPLE_RATE_HZ: Final = 1_000
"""Lowest sample rate of a sound."""
MAX_SAMPLE_RATE_HZ: Final = 384_000
"""Highest sample rate of a sound."""
MAX_CHANNELS: Final = 8
"""Channels of a sound."""
MAX_OGG_PAGES: Final = 50_000
"""Pages of an OGG. A minute in the shortest packets, each on a page of its own, has 24,000."""
MAX_SOUND_VALUES: Final = 2**24
"""Samples of all channels that are decoded of one sound: 64 MiB."""
MIN_UNKNOWN_LENGTH_BYTES: Final = 2**30
"""Declared length from which on it is a placeholder: no file of that size fits into a message."""


# --- texts ------------------------------------------------------------------------------------------------------------

MAX_TEXT_BYTES_PER_TOKEN: Final = 32
"""UTF-8 bytes of a text for each token that the model reads. What is beyond them is cut off before the tokenizer, as
its tokens would be after it: a character such as U+FDFA becomes eighteen, and the tokenizer works on all of them."""


def max_chunks(size_bytes: int) -> int:
    """Number of chunks that a file of ``size_bytes`` may have."""
    return MAX_CHUNKS + size_bytes // BYTES_PER_CHUNK
