"""Parsers of pictures and sounds as far as they are ours: containers, before a library decodes what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from field import images, sounds
from fuzz.parser import Parser, must
from plaudit_models.errors import UnusableFile
from plaudit_models.media.containers.avif import read_avif
from plaudit_models.media.containers.bmp import read_bmp
from plaudit_models.media.containers.flac import read_flac
from plaudit_models.media.containers.gif import read_gif
from plaudit_models.media.containers.jpeg import read_jpeg
from plaudit_models.media.containers.mp3 import is_mp3, read_mp3
from plaudit_models.media.containers.ogg import read_ogg
from plaudit_models.media.containers.png import read_png
from plaudit_models.media.containers.wav import is_wav, read_wav
from plaudit_models.media.containers.webp import read_webp
from plaudit_models.media.formats import describe, glance, image_format, not_taken
from plaudit_models.media.metadata import orientation
from plaudit_models.media.picture import Damaged

_OVERHEAD_BYTES: Final = 4_096
"""What a container's reader may add to what it read."""
_MAX_BYTES: Final = 8_192


def _files(*magics: bytes) -> list[bytes]:
    """Files of the field corpus with one of these in their first bytes."""
    pictures = [*images.ordinary(), *images.animated(), *images.oriented(), *images.reported()]
    heard = [*sounds.ordinary(), *sounds.reported(), *sounds.refused()]
    found = sorted({case.data for case in (*pictures, *heard) if any(magic in case.data[:16] for magic in magics)})
    return [data[:_MAX_BYTES] for data in found if len(data) < 64 * 1024][:40]


def container(is_one: Callable[[bytes], bool], read: Callable[[bytes], Any], data: bytes) -> bool:
    """What is read is never much longer than what was given: each byte of it came from there."""
    if not is_one(data):
        return False
    try:
        found = read(data)
    except (Damaged, UnusableFile) as error:
        must(0 < len(str(error)) < 600, "no sentence")
        return False
    must(len(found.data) <= 2 * len(data) + _OVERHEAD_BYTES, f"{len(data)} bytes became {len(found.data)}")
    return True


def form(data: bytes) -> bool:
    """What a file is, and the orientation in its metadata."""
    describe(data)
    must(glance(data).isprintable(), "a glance that acts on a terminal")
    must(len(not_taken(data, "an image", "some")) < 600, "no sentence")
    must(1 <= orientation(data, data) <= 8, "an orientation that there is not")
    return bool(image_format(data))


def _picture(name: str, read: Callable[[bytes], Any], *magics: bytes) -> Parser:
    return _sound(name.lower(), lambda data: image_format(data) == name, read, *magics)


def _sound(name: str, is_one: Callable[[bytes], bool], read: Callable[[bytes], Any], *magics: bytes) -> Parser:
    seeds: Callable[[], Sequence[bytes]] = partial(_files, *magics)
    return Parser(name, seeds, partial(container, is_one, read), _MAX_BYTES)


PARSERS: Final = (
    _picture("PNG", read_png, b"\x89PNG"),
    _picture("JPEG", read_jpeg, b"\xff\xd8\xff"),
    _picture("GIF", read_gif, b"GIF8"),
    _picture("WEBP", read_webp, b"WEBP"),
    _picture("AVIF", read_avif, b"ftyp"),
    _picture("BMP", read_bmp, b"BM"),
    _sound("wav", is_wav, read_wav, b"WAVE"),
    _sound("flac", lambda data: data.startswith(b"fLaC"), read_flac, b"fLaC"),
    _sound("mp3", is_mp3, partial(read_mp3, wanted_s=1.0, limit_s=60.0), b"ID3", b"\xff\xfb", b"\xff\xf3"),
    _sound("ogg", lambda data: data.startswith(b"OggS"), read_ogg, b"OggS"),
    Parser("form", partial(_files, b""), form, 1_024),
)
