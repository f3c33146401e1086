"""Encoded image → float32 pixels. Knows no transport and no model but the size that it wants.

The container is read first (:mod:`png`, :mod:`jpeg`, …): what is too large is refused before Pillow sees it, and Pillow
sees only what makes pixels. Formats are chosen here, by name, so that none of Pillow's others is ever tried.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from plaudit_models.errors import InvalidContent, UnusableFile
from plaudit_models.limits import DEFAULT_LIMITS, Limits
from plaudit_models.media.containers.avif import read_avif
from plaudit_models.media.containers.bmp import read_bmp
from plaudit_models.media.containers.gif import read_gif
from plaudit_models.media.containers.jpeg import read_jpeg
from plaudit_models.media.containers.png import read_png
from plaudit_models.media.containers.webp import read_webp
from plaudit_models.media.formats import IMAGE_FORMATS, image_format, not_taken
from plaudit_models.media.metadata import UPRIGHT, orientation
from plaudit_models.media.picture import Damaged, Picture
from plaudit_models.media.size import check_size
from plaudit_models.spec import ImageModality

Float = npt.NDArray[np.float32]

_READERS: Final[dict[str, tuple[Callable[[bytes], Picture], Callable[[io.BytesIO], ImageFile]]]] = {
    "PNG": (read_png, PngImageFile),
    "JPEG": (read_jpeg, JpegImageFile),
    "WEBP": (read_webp, WebPImageFile),
    "AVIF": (read_avif, AvifImageFile),
    "GIF": (read_gif, GifImageFile),
    "BMP": (read_bmp, BmpImageFile),
}
_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
_JPEG_SCALES: Final = (1, 2, 4, 8)
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of an EXIF orientation upright."""

# As many images are decoded at once as there are cores: a decoder with threads of its own only disturbs the others.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def decode_image(data: bytes, modality: ImageModality, *, name: str, limits: Limits = DEFAULT_LIMITS) -> Float:
    """Decode an encoded image to float32 ``[c, h, w]`` in [0, 1].

    The image is turned upright (EXIF), laid on white where it is transparent, and resized (its aspect ratio is not
    kept) to the modality's height and width. A JPEG is decoded at a fraction of its size where that is enough.

    Raises:
        InvalidContent: empty, too large, not an image, or damaged.
    """
    check_size(data, limits.max_image_bytes, "bytes of image", name)
    try:
        return _decode(data, modality, limits.max_image_pixels)
    except UnusableFile as error:
        raise InvalidContent(name, str(error)) from error


def _decode(data: bytes, modality: ImageModality, max_pixels: int) -> Float:
    form = image_format(data)
    if not form:
        # Web servers put a blank line or a byte order mark before a picture.
        data = data.lstrip(_BLANK)
        form = image_format(data)
    if not form:
        raise UnusableFile(not_taken(data, "an image", IMAGE_FORMATS))
    read, opener = _READERS[form]
    try:
        picture = read(data)
        _check_pixels(picture, max_pixels)
        image = opener(io.BytesIO(picture.data))
        _check_decoded(image, picture, modality, max_pixels)
        image.load()
        return _pixels(image, picture, modality)
    except UnusableFile:
        raise
    except Damaged as error:
        raise _damaged(form, data, str(error)) from error
    except Exception as error:  # whatever a decoder raises
        raise _damaged(form, data, f"{error}" or type(error).__name__) from error


def _damaged(form: str, data: bytes, reason: str) -> UnusableFile:
    return UnusableFile(f"the {form} image of {len(data)} bytes is damaged ({reason[:200]}); send the whole file")


def _check_pixels(picture: Picture, max_pixels: int) -> None:
    least = _JPEG_SCALES[-1] if picture.scalable else 1
    if -(-picture.width // least) * -(-picture.height // least) > max_pixels:
        raise UnusableFile(
            f"{picture.width}×{picture.height} pixels are more than the limit of {max_pixels}; shrink the image"
        )


def _check_decoded(image: ImageFile, picture: Picture, modality: ImageModality, max_pixels: int) -> None:
    """Set the fraction at which a JPEG is decoded; check that the decoder found no other size than was read."""
    if picture.scalable:
        # Twice the target keeps the detail.
        wanted = min(image.width // (2 * modality.width), image.height // (2 * modality.height))
        scale = max(each for each in _JPEG_SCALES if each <= max(wanted, 1))
        while -(-image.width // scale) * -(-image.height // scale) > max_pixels and scale < _JPEG_SCALES[-1]:
            scale *= 2
        image.draft(None, (max(image.width // scale, 1), max(image.height // scale, 1)))
    if image.width * image.height > max_pixels:
        raise UnusableFile(
            f"{image.width}×{image.height} pixels are more than the limit of {max_pixels}; shrink the image"
        )


def _pixels(decoded: Image.Image, picture: Picture, modality: ImageModality) -> Float:
    """``[c, h, w]`` in [0, 1]."""
    image = decoded
    if picture.transparent is not None:
        image = _on_white(image, picture.transparent)
    if image.mode.startswith(("I", "F")):
        # 16-bit grey (X-rays): Pillow would clip it to 255 instead of scaling it.
        grey = np.clip(np.asarray(image, np.float32) / 65_535.0, 0.0, 1.0)
        image = Image.fromarray((grey * 255.0).round().astype(np.uint8))
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # programs that write four bytes a pixel and mean three
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Pillow gives the turning boxes of an AVIF as EXIF; all other EXIF was read before and left out.
    turned = orientation(decoded.info.get("exif", b"")) if picture.orientation == UPRIGHT else picture.orientation
    if turned in _TURNS:
        image = image.transpose(_TURNS[turned])
    image = image.convert("L" if modality.channels == 1 else "RGB")
    size = (modality.width, modality.height)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / np.float32(255.0)
    return np.ascontiguousarray(pixels.reshape(modality.height, modality.width, modality.channels).transpose(2, 0, 1))


def _on_white(image: Image.Image, transparent: tuple[int, ...]) -> Image.Image:
    """Copy of a grey or RGB image with white in place of one colour."""
    samples = np.array(image.convert("L") if image.mode == "1" else image)
    white = np.iinfo(samples.dtype).max
    channels = samples if samples.ndim == 3 else samples[..., np.newaxis]
    is_transparent = channels[..., 0] == transparent[0]
    for number, value in enumerate(transparent[1:], 1):
        is_transparent &= channels[..., number] == value
    samples[is_transparent] = white
    return Image.fromarray(samples)
