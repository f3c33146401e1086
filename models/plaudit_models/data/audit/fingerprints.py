"""Fingerprints of items, for what is the same and nearly the same, and cheap features of them.

    content   SHA-256 of the bytes
    picture   perceptual hash: signs of the low frequencies of a grey picture (imagehash), 64 bits
    sound     signs of differences between neighbouring bands and moments of log energy, over the sound as a whole
              (after Haitsma and Kalker 2002, "A Highly Robust Audio Fingerprinting System"), 512 bits
    text      MinHash of its shingles (:mod:`.neighbours`)

Notation:
    h, w: height and width, s: samples, f: features
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from plaudit_models.data.errors import UnusableItem
from plaudit_models.data.items import ItemReader, encoded
from plaudit_models.data.rows import Rows
from plaudit_models.spec import AudioModality, ImageModality, TensorModality, TextModality

Float = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint64]

THUMBNAIL_PIXELS: Final = 96
_FEATURE_PIXELS: Final = 16
_HASH_PIXELS: Final = 32
_MOMENTS: Final = 33
_BANDS: Final = 17
_WINDOW: Final = 512
_LOWEST_HZ: Final = 60.0
_MAX_TENSOR_FEATURES: Final = 512
_SILENCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is remembered of one item.

    Attributes:
        content: SHA-256.
        facts: properties that could give a label away: bytes, width, height, format, sample rate, duration.
        bits: perceptual hash; None where it would say nothing (text, tensors, one colour, silence).
        features: float32 ``[f]``, cheap features; None for text.
        sketch: small grey picture, uint8 ``[32, 32]``, which makes sure of what the hash found; None for others.
        text: text of a text item.
    """

    content: bytes
    facts: dict[str, float | str]
    bits: Bits | None = None
    features: Float | None = None
    sketch: npt.NDArray[np.uint8] | None = None
    text: str = ""


def fingerprint(rows: Rows, reader: ItemReader, row: int, name: str) -> Fingerprint:
    """Fingerprint of an item, which is decoded as training would.

    Raises:
        UnusableItem: it cannot be read or decoded.
    """
    modality = rows.spec.modalities[name]
    content = reader.content(rows.items[name][row], name)
    array = reader.decode(content, name)
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else _bytes(content)
    digest = hashlib.sha256(raw).digest()
    if isinstance(modality, TextModality):
        text = content if isinstance(content, str) else raw.decode("utf-8", "replace")
        return Fingerprint(digest, {"characters": float(len(text))}, text=text)
    facts: dict[str, float | str] = {"bytes": float(len(raw))}
    if isinstance(modality, TensorModality):
        return Fingerprint(digest, {**facts, "size": float(array.size)}, features=tensor_features(array))
    data = content if isinstance(content, bytes) else encoded(np.asarray(content), modality)
    if isinstance(modality, ImageModality):
        return _picture(digest, facts, data)
    assert isinstance(modality, AudioModality)
    return _sound(digest, facts, data, array, modality.sample_rate_hz)


def _bytes(content: Any) -> bytes:
    return content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()


def _picture(digest: bytes, facts: dict[str, float | str], data: bytes) -> Fingerprint:
    picture = opened(data)
    grey = picture.convert("L")
    small = np.asarray(grey.resize((_HASH_PIXELS, _HASH_PIXELS), Image.Resampling.BILINEAR))
    colour = np.asarray(picture.resize((_FEATURE_PIXELS, _FEATURE_PIXELS), Image.Resampling.BILINEAR), np.float32)
    features = np.concatenate([colour.ravel() / 255.0, [picture.width / max(picture.height, 1)]]).astype(np.float32)
    bits = None
    if small.std() > 2.0:
        packed = np.packbits(imagehash.phash(grey).hash.ravel())
        bits = np.frombuffer(packed.tobytes(), np.uint64)
    own: dict[str, float | str] = {
        "width": float(picture.width),
        "height": float(picture.height),
        "format": picture.format_name,
    }
    return Fingerprint(digest, {**facts, **own}, bits=bits, features=features, sketch=small)


class _Opened:
    """Upright RGB picture of a file that was decoded before without complaint."""

    def __init__(self, image: Image.Image, format_name: str) -> None:
        self._image, self.format_name = image, format_name
        self.width, self.height = image.size

    def convert(self, mode: str) -> Image.Image:
        return self._image.convert(mode)

    def resize(self, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
        return self._image.resize(size, how)


def opened(data: bytes) -> _Opened:
    """Picture of the file's bytes. Raises UnusableItem."""
    from PIL import ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            name = image.format or ""
            image.draft("RGB", (4 * THUMBNAIL_PIXELS, 4 * THUMBNAIL_PIXELS))
            width, height = image.size
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                upright = Image.fromarray((np.asarray(upright, np.float32) / 257.0).clip(0, 255).astype(np.uint8))
            made = _Opened(upright.convert("RGB"), name)
            made.width, made.height = width, height
            return made
    except Exception as error:  # whatever a decoder raises
        raise UnusableItem(f"cannot be opened ({str(error)[:200]})") from error


def thumbnail(data: bytes) -> bytes:
    """Small JPEG of a picture. Raises UnusableItem."""
    picture = opened(data)
    image = picture.convert("RGB")
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return file.getvalue()


def _sound(
    digest: bytes, facts: dict[str, float | str], data: bytes, samples: Float, sample_rate_hz: int
) -> Fingerprint:
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(data))
        facts = facts | {
            "sample_rate": float(info.samplerate),
            "channels": float(info.channels),
            "format": str(info.format),
            "duration_s": round(float(info.duration), 3),
        }
    except soundfile.LibsndfileError:
        pass  # decoded all the same; only its properties are not known
    heard = np.trim_zeros(np.where(np.abs(samples) < _SILENCE, 0.0, samples))
    energy = band_energies(heard, sample_rate_hz)
    features = np.concatenate([energy.mean(axis=0), energy.std(axis=0)]).astype(np.float32)
    bits = None
    if len(heard) > 2 * _WINDOW:
        rising = np.diff(np.diff(energy, axis=1), axis=0) > 0  # [moments − 1, bands − 1]
        padded = np.zeros(-(-rising.size // 64) * 64, np.bool_)
        padded[: rising.size] = rising.ravel()
        bits = np.frombuffer(np.packbits(padded).tobytes(), np.uint64)
    return Fingerprint(digest, facts, bits=bits, features=features)


def band_energies(samples: npt.NDArray[Any], sample_rate_hz: int) -> Float:
    """Log energies at moments that are spread evenly over a sound, in bands that are spread evenly over log frequency,
    ``[33, 17]``."""
    padded = np.zeros(max(len(samples), 4 * _WINDOW), np.float32)
    padded[: len(samples)] = samples
    starts = np.linspace(0, len(padded) - 2 * _WINDOW, 4 * _MOMENTS).astype(int)
    frames = padded[starts[:, None] + np.arange(2 * _WINDOW)] * np.hanning(2 * _WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    power = power.reshape(_MOMENTS, 4, -1).mean(axis=1)
    edges = np.geomspace(_LOWEST_HZ, sample_rate_hz / 2, _BANDS + 1) / (sample_rate_hz / 2) * (power.shape[1] - 1)
    bands = [power[:, int(low) : max(int(high), int(low) + 1)].sum(axis=1) for low, high in pairwise(edges)]
    return np.log(np.stack(bands, axis=1) + 1e-6).astype(np.float32)


def tensor_features(array: npt.NDArray[Any]) -> Float:
    """At most 512 values of a tensor, and where they are missing, float32 ``[f]``."""
    values = np.asarray(array, np.float32).ravel()
    if len(values) > _MAX_TENSOR_FEATURES:
        values = values[np.linspace(0, len(values) - 1, _MAX_TENSOR_FEATURES).astype(int)]
    missing = np.isnan(values)
    return np.concatenate([np.where(missing, 0.0, values), missing]).astype(np.float32)
