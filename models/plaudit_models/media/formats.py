"""What a file is, by its first bytes, in words for whoever sent it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from plaudit_models.media.containers.bmp import is_bmp
from plaudit_models.media.containers.gif import SIGNATURES as GIF
from plaudit_models.media.containers.jpeg import SIGNATURE as JPEG
from plaudit_models.media.containers.png import SIGNATURE as PNG
from plaudit_models.media.containers.webp import is_webp

IMAGE_FORMATS: Final = "PNG, JPEG, WEBP, AVIF, GIF or BMP"
SOUND_FORMATS: Final = "WAV, FLAC, OGG or MP3"

_LOOKED_AT_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Format:
    """Format of a file that is not taken, or not by this modality.

    Attributes:
        name: with its article.
        advice: what to do about it; "" if there is nothing special.
    """

    name: str
    advice: str = ""


_AS_JPEG: Final = "save it as JPEG or PNG"
_AS_PNG: Final = "save it as PNG"
_AS_WAV: Final = "convert it to WAV, FLAC, OGG or MP3, for example with ffmpeg"
_FRAME: Final = "send one picture of it, or its sound, as a file of its own"
_FRAME_OR_OGG: Final = "record or convert it to OGG or WAV, or send one picture of it"
_UNPACK: Final = "unpack it and send the file inside"
_DECODE: Final = "decode it and send the bytes themselves"
_DOWNLOAD: Final = "what was downloaded is a page, not the file; look at the address it came from"

_TAKEN: Final[tuple[tuple[bytes, Format], ...]] = (
    (PNG, Format("a PNG image")),
    (JPEG, Format("a JPEG image")),
    *((magic, Format("a GIF image")) for magic in GIF),
    (b"fLaC", Format("a FLAC sound")),
    (b"OggS", Format("an OGG sound")),
    (b"ID3", Format("an MP3 sound")),
)
_BY_MAGIC: Final[tuple[tuple[bytes, Format], ...]] = (
    (b"II*\x00", Format("a TIFF image, or a camera's raw picture", _AS_JPEG)),
    (b"MM\x00*", Format("a TIFF image, or a camera's raw picture", _AS_JPEG)),
    (b"II+\x00", Format("a BigTIFF image", _AS_JPEG)),
    (b"MM\x00+", Format("a BigTIFF image", _AS_JPEG)),
    (b"IIRO", Format("a camera's raw picture", _AS_JPEG)),
    (b"FUJIFILM", Format("a camera's raw picture", _AS_JPEG)),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", Format("a JPEG 2000 image", _AS_JPEG)),
    (b"\xff\x4f\xff\x51", Format("a JPEG 2000 image", _AS_JPEG)),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", Format("a JPEG XL image", _AS_JPEG)),
    (b"\xff\x0a", Format("a JPEG XL image", _AS_JPEG)),
    (b"\x8aMNG", Format("an MNG animation", _FRAME)),
    (b"8BPS", Format("a Photoshop document", _AS_PNG)),
    (b"gimp xcf", Format("a GIMP document", _AS_PNG)),
    (b"\x00\x00\x01\x00", Format("a Windows icon", _AS_PNG)),
    (b"\x00\x00\x02\x00", Format("a Windows cursor", _AS_PNG)),
    (b"icns", Format("an Apple icon", _AS_PNG)),
    (b"qoif", Format("a QOI image", _AS_PNG)),
    (b"DDS ", Format("a DDS texture", _AS_PNG)),
    (b"v/1\x01", Format("an OpenEXR image", _AS_PNG)),
    (b"#?RADIANCE", Format("a Radiance HDR image", _AS_PNG)),
    (b"SIMPLE  =", Format("a FITS image", _AS_PNG)),
    (b"%PDF", Format("a PDF document", "save its page as PNG")),
    (b"%!PS", Format("a PostScript document", "save its page as PNG")),
    (b"\xc5\xd0\xd3\xc6", Format("an EPS document", "save it as PNG")),
    (b"\x93NUMPY", Format("a numpy array", "send it as a tensor")),
    (b"FORM", Format("an AIFF sound", _AS_WAV)),
    (b".snd", Format("an AU sound", _AS_WAV)),
    (b"caff", Format("a Core Audio sound (CAF)", _AS_WAV)),
    (b"riff.\x91\xcf\x11\xa5\xd6\x28\xdb", Format("a Wave64 sound", _AS_WAV)),
    (b"#!AMR", Format("an AMR sound", _AS_WAV)),
    (b"MThd", Format("a MIDI file, which holds notes and no sound", "render it to WAV")),
    (b"wvpk", Format("a WavPack sound", _AS_WAV)),
    (b"MAC ", Format("a Monkey's Audio sound", _AS_WAV)),
    (b"DSD ", Format("a DSD sound", _AS_WAV)),
    (b"ADIF", Format("an AAC sound", _AS_WAV)),
    (b"\x0b\x77", Format("an AC-3 sound", _AS_WAV)),
    (b"NIST_1A", Format("a NIST Sphere sound", _AS_WAV)),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Format("a Windows Media file (WMA or WMV)", _AS_WAV)),
    (
        b"\x1aE\xdf\xa3",
        Format("a WebM or Matroska file", _FRAME_OR_OGG),
    ),
    (b"FLV\x01", Format("a Flash video", _FRAME)),
    (b"\x00\x00\x01\xba", Format("an MPEG video", _FRAME)),
    (b"\x00\x00\x01\xb3", Format("an MPEG video", _FRAME)),
    (b"PK\x03\x04", Format("a ZIP archive", _UNPACK)),
    (b"\x1f\x8b", Format("a gzip archive", _UNPACK)),
    (b"BZh", Format("a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ", Format("an xz archive", _UNPACK)),
    (b"(\xb5/\xfd", Format("a Zstandard archive", _UNPACK)),
    (b"7z\xbc\xaf", Format("a 7-Zip archive", _UNPACK)),
    (b"Rar!", Format("a RAR archive", _UNPACK)),
    (b"version https://git-lfs", Format("a Git LFS pointer", "fetch the file itself with `git lfs pull`")),
    (b"data:", Format("a data URL", _DECODE)),
    (b"iVBORw0KGgo", Format("a PNG image in base64", _DECODE)),
    (b"/9j/", Format("a JPEG image in base64", _DECODE)),
    (b"R0lGOD", Format("a GIF image in base64", _DECODE)),
    (b"UklGR", Format("a WAV or WebP file in base64", _DECODE)),
    (b"SUQz", Format("an MP3 sound in base64", _DECODE)),
    (b"T2dnUw", Format("an OGG sound in base64", _DECODE)),
    (b"ZkxhQ", Format("a FLAC sound in base64", _DECODE)),
    (b"http://", Format("an address", "fetch it and send the bytes")),
    (b"https://", Format("an address", "fetch it and send the bytes")),
    (b"file://", Format("an address", "send the bytes of the file")),
)
_BRANDS: Final[tuple[tuple[bytes, Format], ...]] = (
    (
        rb"hei[cxms]|hev[cxms]|mif1|msf1",
        Format("a HEIC image", "save it as JPEG (an iPhone does so at Settings > Camera > Formats > Most Compatible)"),
    ),
    (rb"jxl ", Format("a JPEG XL image", _AS_JPEG)),
    (rb"jp[2xm] |mjp2", Format("a JPEG 2000 image", _AS_JPEG)),
    (rb"crx ", Format("a camera's raw picture", _AS_JPEG)),
    (rb"M4[ABP] ", Format("an M4A (AAC) sound", _AS_WAV)),
    (rb"3g[p2]|3gr", Format("a 3GP recording", _AS_WAV)),
    (rb"qt  ", Format("a QuickTime video", _FRAME)),
    (rb"....", Format("an MP4 video or sound", _FRAME)),
)
"""Of ISO base media files, by their main brand."""
_RIFF: Final = {
    b"WEBP": Format("a WebP image"),
    b"WAVE": Format("a WAV sound"),
    b"AVI ": Format("an AVI video", _FRAME),
    b"RMID": Format("a MIDI file, which holds notes and no sound", "render it to WAV"),
    b"ACON": Format("an animated Windows cursor", _AS_PNG),
    b"CDXA": Format("a Video CD file", _FRAME),
}
_AVIF_BRANDS: Final = re.compile(rb"avi[fs]")
_MP3: Final = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_ADTS: Final = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
_MPEG_AUDIO: Final = re.compile(rb"\xff[\xe4-\xe7\xf4-\xf7\xfc-\xff]")
_PNM: Final = re.compile(rb"P[1-7f F][\s#]")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/\r\n]{64,}={0,2}\s*\Z")
_BLANK: Final = b" \t\r\n\xef\xbb\xbf"


def image_format(data: bytes) -> str:
    """Name of a format of images that is taken, in capitals; "" if it is none of them."""
    if data.startswith(PNG):
        return "PNG"
    if data.startswith(JPEG):
        return "JPEG"
    if data.startswith(GIF):
        return "GIF"
    if is_webp(data):
        return "WEBP"
    if is_avif(data):
        return "AVIF"
    return "BMP" if is_bmp(data) else ""


def is_avif(data: bytes) -> bool:
    """True if AVIF is the main brand, or a compatible one of a general image file."""
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4], "big"), _LOOKED_AT_BYTES)]
    names = [brands[at : at + 4] for at in range(0, len(brands), 4) if at != 4]  # the second is a version
    return _AVIF_BRANDS.match(data, 8) is not None or (
        names[:1] in ([b"mif1"], [b"msf1"]) and any(_AVIF_BRANDS.fullmatch(name) for name in names)
    )


def describe(data: bytes) -> Format | None:
    """What a file is that a modality cannot take; None if nothing is known about it."""
    if not any(data[:_LOOKED_AT_BYTES]):
        return Format("nothing but zeros", "the file may not be downloaded or written yet; send it whole")
    for magic, found in (*_TAKEN, *_BY_MAGIC):
        if data.startswith(magic):
            return found
    for known, found in _BY_STRUCTURE:
        if known(data):
            return found
    if data[4:8] == b"ftyp":
        return next(found for brand, found in _BRANDS if re.match(brand, data[8:12].ljust(4), re.DOTALL))
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _RIFF.get(data[8:12], Format("a RIFF file of an unknown kind"))
    return _text(data)


def not_taken(data: bytes, kind: str, taken: str) -> str:
    """Sentence about a file that is no image or sound that is taken.

    Args:
        kind: "an image" or "a sound".
        taken: formats that are.
    """
    found = describe(data)
    if found is None:
        return f"{glance(data)} is not {kind}; send a {taken} file"
    advice = found.advice or f"send a {taken} file"
    return f"{glance(data)} is {found.name}, not {kind} that is taken ({taken}); {advice}"


def glance(data: bytes) -> str:
    """First bytes, for an error message."""
    return f"{data[:12]!r}… ({len(data)} bytes)"


def _text(data: bytes) -> Format | None:
    head = data[:_LOOKED_AT_BYTES].lstrip(_BLANK)
    lower = head.lower()
    if lower.startswith((b"<svg",)) or (lower.startswith(b"<?xml") and b"<svg" in lower):
        return Format("an SVG drawing", "render it to PNG")
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Format("an HTML page", _DOWNLOAD)
    if lower.startswith((b"<?xml", b"<error")):
        return Format("an XML document", _DOWNLOAD)
    if head.startswith((b'{"', b"[{", b"{\n", b"{\r", b'{ "')):
        return Format("a JSON document", _DOWNLOAD)
    if _BASE64.match(
        data[:_LOOKED_AT_BYTES] if len(data) <= _LOOKED_AT_BYTES else data[:_LOOKED_AT_BYTES].rstrip(b"=")
    ):
        return Format("text in base64", _DECODE)
    return None


_BY_STRUCTURE: Final[tuple[tuple[Callable[[bytes], object], Format], ...]] = (
    (is_avif, Format("an AVIF image")),
    (is_bmp, Format("a BMP image")),
    (_MP3.match, Format("an MP3 sound")),
    (_ADTS.match, Format("an AAC sound", _AS_WAV)),
    (_MPEG_AUDIO.match, Format("an MPEG sound of another layer than MP3", _AS_WAV)),
    (_PNM.match, Format("a PNM image (PBM, PGM or PPM)", _AS_PNG)),
    (lambda data: data[128:132] == b"DICM", Format("a DICOM image", _AS_PNG)),
    (lambda data: data[:1] == b"G" and data[188:189] == b"G" and len(data) > 188, Format("an MPEG video", _FRAME)),
)
