"""What is known of an encoded picture before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from plaudit_models.errors import UnusableFile
from plaudit_models.limits import MAX_IMAGE_SIDE_PIXELS
from plaudit_models.media.metadata import UPRIGHT


@dataclass(frozen=True, slots=True)
class Picture:
    """Bytes for the decoder: what makes pixels, without metadata.

    Attributes:
        orientation: EXIF orientation, 1…8.
        transparent: sample values of the colour that is transparent, one for each channel, in the values that the
            decoder gives; None if there is none, or the decoder knows it.
        scalable: the decoder can decode it at a fraction of its size.
    """

    data: bytes
    width: int
    height: int
    orientation: int = UPRIGHT
    transparent: tuple[int, ...] | None = None
    scalable: bool = False

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.height > 0):
            raise UnusableFile(f"the image has {self.width}×{self.height} pixels; send one that has some")
        if max(self.width, self.height) > MAX_IMAGE_SIDE_PIXELS:
            raise UnusableFile(
                f"{self.width}×{self.height} pixels have a side that is longer than the limit of "
                f"{MAX_IMAGE_SIDE_PIXELS}; shrink the image"
            )


class Damaged(Exception):
    """What is broken in a file, in words that fit into parentheses."""
