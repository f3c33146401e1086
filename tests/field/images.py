"""Pictures in every mode and format that Pillow writes, and those of public reports."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from field.case import Case

MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F")
OPTIONS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "PNG": ({}, {"optimize": True}, {"bits": 4}, {"bits": 2}, {"transparency": 3}, {"icc_profile": b"no profile"}),
    "JPEG": (
        {},
        {"progressive": True},
        {"quality": 30, "subsampling": 2},
        {"subsampling": 0},
        {"optimize": True, "restart_marker_blocks": 4},
        {"comment": b"a comment", "dpi": (300, 300)},
        {"keep_rgb": True},
    ),
    "WEBP": ({}, {"lossless": True}, {"exact": True, "lossless": True}, {"quality": 5, "alpha_quality": 20}),
    "AVIF": ({"speed": 10}, {"speed": 10, "subsampling": "4:4:4"}, {"speed": 10, "range": "limited"}),
    "GIF": ({}, {"transparency": 2}, {"interlace": 0}),
    "BMP": ({}, {"dpi": (72, 72)}),
}
SIZES: Final = ((24, 36), (1, 1), (3, 200), (301, 203))
BLUE: Final = (10, 60, 200)


def picture(height: int, width: int, channels: int = 4) -> npt.NDArray[np.uint8]:
    """Smooth colours with a little noise, ``[h, w, channels]``."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / (7 + i)) + np.cos(y / (5 + 2 * i)) for i in range(channels)]
    noisy = np.stack(planes, axis=-1) * 60 + 128 + rng.normal(0, 6, (height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def on_white(image: Image.Image) -> npt.NDArray[np.uint8]:
    """What a viewer shows, ``[h, w, 3]``; the way of Pillow's own documentation."""
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def shown(data: bytes) -> npt.NDArray[np.uint8]:
    """What Pillow alone makes of a whole file."""
    with Image.open(io.BytesIO(data)) as image:
        return on_white(ImageOps.exif_transpose(image))


def ordinary(sizes: tuple[tuple[int, int], ...] = SIZES[:1]) -> Iterator[Case]:
    """Every mode in every format with every option that can be written; the right answer is Pillow's own."""
    for (height, width), mode, (image_format, options) in itertools.product(sizes, MODES, OPTIONS.items()):
        whole = Image.fromarray(picture(height, width))
        if mode == "I;16":
            image = Image.fromarray(picture(height, width, 1)[..., 0].astype(np.uint16) * 257)
        else:
            try:
                image = whole.convert("RGB").convert(mode)
            except ValueError:
                image = whole.convert("RGBA").convert("RGB").convert("L").convert(mode) if mode == "PA" else whole
        if mode in ("LA", "RGBA"):
            image = whole.convert(mode)
        for option in options:
            try:
                data = encoded(image, image_format, **option)
            except (OSError, ValueError, KeyError, TypeError, SystemError):
                continue
            if mode == "I;16" and "transparency" in option:
                continue  # Pillow alone shows it wrongly
            yield Case(f"{image_format} {mode} {width}x{height} {option}", data, pixels=shown(data))


def oriented() -> Iterator[Case]:
    """Orientations 1…8 in each format's own place."""
    image = Image.fromarray(picture(24, 36, 3))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "A phone"
        for image_format in ("PNG", "JPEG", "WEBP", "AVIF"):
            data = encoded(image, image_format, exif=exif, **OPTIONS[image_format][0])
            yield Case(f"{image_format} exif {orientation}", data, pixels=shown(data))
        xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
        for image_format in ("JPEG", "WEBP"):
            data = encoded(image, image_format, xmp=xmp)
            yield Case(f"{image_format} xmp {orientation}", data, pixels=shown(data))


def animated() -> Iterator[Case]:
    """An animation is its first picture."""
    frames = [Image.fromarray(picture(24, 36, 3)).rotate(angle) for angle in (0, 90, 180)]
    for image_format in ("PNG", "WEBP", "GIF", "AVIF"):
        options = {"save_all": True, "append_images": frames[1:], "duration": 40, **OPTIONS[image_format][0]}
        data = encoded(frames[0], image_format, **options)
        yield Case(f"{image_format} animated", data, pixels=shown(data))


# --- public reports --------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, body: bytes, *, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(image: npt.NDArray[Any], depth: int, color: int, *chunks: bytes, before: bytes = b"") -> bytes:
    """PNG of packed rows, ``[h, bytes]``, with chunks before its pixels; ``before`` its header, too."""
    rows = b"".join(b"\x00" + row.tobytes() for row in image)
    width = image.shape[1] * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color])
    header = struct.pack(">IIBBBBB", width, image.shape[0], depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + before
        + png_chunk(b"IHDR", header)
        + b"".join(chunks)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def _with_chunk(data: bytes, chunk: bytes) -> bytes:
    """A chunk after the header of a PNG."""
    return data[:33] + chunk + data[33:]


def _with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Segments after the first two bytes of a JPEG."""
    parts = [bytes((0xFF, code)) + struct.pack(">H", len(body) + 2) + body for code, body in segments]
    return jpeg[:2] + b"".join(parts) + jpeg[2:]


def tiff(*entries: tuple[int, int, int, bytes], order: str = "<", extra: bytes = b"") -> bytes:
    """EXIF of entries: tag, type, count, four bytes."""
    head = b"II*\x00" if order == "<" else b"MM\x00*"
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3].ljust(4, b"\x00") for entry in entries)
    return head + struct.pack(order + "IH", 8, len(entries)) + body + bytes(4) + extra


_TURNED: Final = (0x0112, 3, 1, b"\x06")
"""Orientation 6."""


def _exif_reports() -> Iterator[tuple[str, bytes, str]]:
    """EXIF that turns the picture and holds something that Pillow cannot write back."""
    pillow = "https://github.com/python-pillow/Pillow/issues/"
    yield "undefined of five values", tiff(_TURNED, (0x9000, 7, 5, b"\x22\0\0\0"), extra=b"01234"), pillow + "4346"
    rational = struct.pack("<ii", -1, 0)
    yield "signed rational -1/0", tiff(_TURNED, (0x9201, 10, 1, struct.pack("<I", 38)), extra=rational), pillow + "8965"
    yield (
        "rational where bytes belong",
        tiff(_TURNED, (0xA002, 5, 1, struct.pack("<I", 38)), extra=rational),
        (pillow + "7839"),
    )
    yield "two resolutions", tiff(_TURNED, (0x011A, 5, 2, struct.pack("<I", 38)), extra=rational * 2), pillow + "4665"
    yield "an int without length", tiff(_TURNED, (0x0005, 1, 1, b"\x00")), pillow + "3973"
    yield "an offset past the end", tiff(_TURNED, (0x010F, 2, 200, b"\xff\xff\xff\x7f")), pillow + "4238"
    yield "orientation as a long", tiff((0x0112, 4, 1, b"\x06")), pillow + "4215"
    yield "orientation as a byte", tiff((0x0112, 1, 1, b"\x06")), pillow + "4215"
    yield "twice its prefix", b"Exif\x00\x00" + tiff(_TURNED), pillow + "8348"
    yield "big-endian with a prefix of 255", tiff((0x0112, 3, 1, b"\x00\x06"), order=">"), pillow + "4852"


def reported() -> Iterator[Case]:
    """Cases of public reports; each was refused or wrong before."""
    pillow = "https://github.com/python-pillow/Pillow/issues/"
    rgb = picture(24, 36, 3)
    image = Image.fromarray(rgb)
    whole = encoded(image, "PNG")
    for name, chunk, report in (
        ("iCCP with a wrong checksum", png_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"x"), checksum=7), "5631"),
        ("iCCP of an unknown compression", png_chunk(b"iCCP", b"ICC PROFILE\0\x01" + zlib.compress(b"x")), "7817"),
        ("iCCP without a name", png_chunk(b"iCCP", bytes(200)), "3319"),
        ("zTXt with a wrong checksum", png_chunk(b"zTXt", b"Comment\0\0junk", checksum=1), "4592"),
        ("gAMA of no length", png_chunk(b"gAMA", b""), "4592"),
        ("pHYs cut short", png_chunk(b"pHYs", b"\0"), "4592"),
        ("cHRM cut short", png_chunk(b"cHRM", b"\0" * 3), "4592"),
        ("sRGB of no length", png_chunk(b"sRGB", b""), "4592"),
        ("eXIf that is no TIFF", png_chunk(b"eXIf", b"Exif\0\0MM"), "6123"),
        ("acTL of no frames", png_chunk(b"acTL", bytes(8)), "5631"),
    ):
        yield Case(f"PNG with {name}", _with_chunk(whole, chunk), pixels=rgb, report=pillow + report)
    yield Case(
        "PNG with an iCCP of 2 MB",
        _with_chunk(whole, png_chunk(b"iCCP", b"scanner\0\0" + zlib.compress(bytes(2**21)))),
        pixels=rgb,
        report="https://github.com/KatherLab/STAMP/pull/76",
    )
    yield Case(
        "PNG without its end", whole[:-12], pixels=rgb, report="https://github.com/python-pillow/Pillow/issues/5631"
    )
    yield Case(
        "PNG after a blank line", b"\r\n" + whole, pixels=rgb, report="https://github.com/osTicket/osTicket/issues/2455"
    )
    yield Case(
        "PNG after a byte order mark",
        b"\xef\xbb\xbf" + whole,
        pixels=rgb,
        report="https://github.com/mantisbt-plugins/BBCodePlus/issues/18",
    )
    one_bit = np.packbits(np.tile([[0, 1]], (8, 4)), axis=1)
    expected = np.where(np.tile([[0, 1]], (8, 4))[..., None] == 0, 255, 255).astype(np.uint8).repeat(3, axis=2)
    yield Case(
        "PNG 1-bit grey whose black is transparent",
        png(one_bit, 1, 0, png_chunk(b"tRNS", b"\0\0")),
        pixels=expected,
        report=pillow + "9281",
    )
    four_bit = np.array([[0x05, 0xAF], [0x50, 0xFA]], np.uint8)
    values = np.array([[0, 5, 10, 15], [5, 0, 15, 10]]) * 17
    yield Case(
        "PNG 4-bit grey with a transparent grey",
        png(four_bit, 4, 0, png_chunk(b"tRNS", b"\0\x05")),
        pixels=np.where(values == 85, 255, values).astype(np.uint8)[..., None].repeat(3, axis=2),
        report=pillow + "9281",
    )
    deep = np.array([[0x1234, 0xABCD, 0x0102, 0x1234, 0xABCD, 0x0303]], ">u2")
    yield Case(
        "PNG 16-bit RGB with a transparent colour",
        png(deep.view(np.uint8), 16, 2, png_chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0xABCD, 0x0102))),
        pixels=np.array([[[255, 255, 255], [0x12, 0xAB, 0x03]]], np.uint8),
        report="https://github.com/pytorch/pytorch/issues/20524",
    )
    grey = np.array([[0, 65535, 32896, 514]], ">u2")
    yield Case(
        "PNG 16-bit grey whose black is transparent",
        png(grey.view(np.uint8), 16, 0, png_chunk(b"tRNS", b"\0\0")),
        pixels=np.array([[255, 255, 128, 2]], np.uint8)[..., None].repeat(3, axis=2),
        report="https://github.com/pytorch/pytorch/issues/20524",
    )
    jpeg = encoded(image, "JPEG")
    turned = np.asarray(Image.fromarray(shown(jpeg)).transpose(Image.Transpose.ROTATE_270))
    for name, exif, report in _exif_reports():
        prefix = b"Exif\x00\xff" if "255" in name else b"Exif\x00\x00"
        yield Case(
            f"JPEG with EXIF of {name}", _with_segments(jpeg, (0xE1, prefix + exif)), pixels=turned, report=report
        )
        webp = encoded(image, "WEBP", lossless=True, exif=prefix + exif)
        sideways = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
        yield Case(f"WebP with EXIF of {name}", webp, pixels=sideways, report=report)
    mpf = b"MPF\0II*\0\x08\0\0\0\x03\0" + struct.pack("<HHI4s", 0xB001, 4, 1, b"\x02\0\0\0") + bytes(9)
    for name, segments, report in (
        ("a malformed multi-picture index", [(0xE2, mpf)], "1328"),
        ("Photoshop data that ends early", [(0xED, b"Photoshop 3.0\x008BIM")], "4236"),
        ("an Adobe marker cut short", [(0xEE, b"Adobe\0d")], "5983"),
        ("a profile whose pieces are numbered wrongly", [(0xE2, b"ICC_PROFILE\0\x05\x02abc")], "5983"),
        ("EXIF of no length", [(0xE1, b"Exif\0\0")], "8348"),
    ):
        yield Case(f"JPEG with {name}", _with_segments(jpeg, *segments), pixels=shown(jpeg), report=pillow + report)
    yield Case(
        "JPEG with a video behind it",
        jpeg + b"\0\0\0\x18ftypmp42" + bytes(5000),
        pixels=shown(jpeg),
        report="https://github.com/nothings/stb/issues/1182",
    )
    yield Case(
        "JPEG with junk between segments",
        jpeg[:2] + b"\xff\xe0\x00\x02" + b"\x00junk\xff\x00" + jpeg[2:],
        pixels=shown(jpeg),
        report="https://github.com/jpeg-js/jpeg-js/issues/82",
    )
    header = struct.pack("<IiiHHIIiiII4I", 56, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = bytes((200, 60, 10, 0, 3, 2, 1, 0))
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(header) + 8, 0, 0, 14 + len(header)) + header + pixels
    yield Case(
        "BMP whose alpha is all zero",
        bmp,
        pixels=np.array([[[10, 60, 200], [1, 2, 3]]], np.uint8),
        report="https://github.com/image-rs/image/issues/539",
    )
    sideways_exif = Image.Exif()
    sideways_exif[0x0112] = 6
    avif = encoded(image, "AVIF", speed=10, exif=sideways_exif)
    upright = Image.fromarray(shown(encoded(image, "AVIF", speed=10)))
    avif_turned = np.asarray(upright.transpose(Image.Transpose.ROTATE_270))
    yield Case(
        "AVIF that is turned by its boxes and says so in EXIF",
        avif,
        pixels=avif_turned,
        report="https://github.com/thumbor/thumbor/issues/1716",
    )
    broken = avif.replace(b"\x01\x12\x00\x03\x00\x00\x00\x01", b"\x01\x12\x00\x05\xff\xff\xff\xff")
    broken = broken.replace(b"\x12\x01\x03\x00\x01\x00\x00\x00", b"\x12\x01\x05\x00\xff\xff\xff\xff")
    yield Case(
        "AVIF with broken EXIF",
        broken,
        pixels=avif_turned,
        report="https://github.com/python-pillow/Pillow/issues/8965",
    )


def refused() -> Iterator[Case]:
    """What is not taken, or no longer whole, with what is said."""
    image = Image.fromarray(picture(24, 36, 3))
    for image_format, what in (
        ("TIFF", "a TIFF image.*JPEG or PNG"),
        ("JPEG2000", "a JPEG 2000 image"),
        ("ICO", "a Windows icon"),
        ("PDF", "a PDF document.*page"),
        ("PPM", "a PNM image"),
        ("DDS", "a DDS texture"),
    ):
        yield Case(f"{image_format}", encoded(image, image_format), refused=what)
    whisper = "https://github.com/jhj0517/Whisper-WebUI/issues/492"
    for name, data, what, report in (
        ("HEIC", b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC image.*Most Compatible", ""),
        ("HEIC, general brand", b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic" + bytes(99), "a HEIC image", ""),
        ("MP4", b"\0\0\0\x18ftypisom\0\0\x02\0isom" + bytes(99), "an MP4 video.*one picture", ""),
        ("M4A", b"\0\0\0\x18ftypM4A \0\0\x02\0isom" + bytes(99), "an M4A .AAC. sound", whisper),
        (
            "PNG of Xcode",
            b"\x89PNG\r\n\x1a\n" + png_chunk(b"CgBI", b"\x50\0\x20\2") + bytes(9),
            "Xcode .CgBI.",
            ("https://github.com/treeform/pixie/issues/387"),
        ),
        ("SVG", b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "an SVG drawing.*PNG", ""),
        ("HTML", b"\n <!DOCTYPE html><html>404", "an HTML page.*address", ""),
        ("JSON", b'{"error": "not found"}', "a JSON document", ""),
        ("data URL", b"data:image/png;base64,iVBORw0KGgo", "a data URL; decode it|a data URL.*decode it", ""),
        ("base64", b"iVBORw0KGgoAAAANSUhEUg", "base64.*decode it", ""),
        ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer", ""),
        ("zeros", bytes(5000), "nothing but zeros", ""),
        ("address", b"https://example.org/a.png", "an address", ""),
        ("WAV", b"RIFF\x24\0\0\0WAVEfmt ", "a WAV sound, not an image", ""),
        ("raw video", b"YUV4MPEG2 W640 H480", "is not an image; send a PNG", ""),
        ("DICOM", bytes(127) + b"\1DICM" + bytes(20), "a DICOM image", ""),
    ):
        yield Case(name, data, refused=what, report=report)
    for image_format, options in {
        "PNG": {},
        "JPEG": {},
        "WEBP": {},
        "AVIF": {"speed": 10},
        "GIF": {},
        "BMP": {},
    }.items():
        whole = encoded(Image.fromarray(picture(64, 64, 3)), image_format, **options)
        yield Case(
            f"{image_format} cut in the middle",
            whole[: len(whole) // 2],
            refused=f"the {image_format} image of {len(whole) // 2} bytes is damaged .*; send the whole file",
        )
    twelve_bits = bytearray(encoded(image, "JPEG"))
    twelve_bits[twelve_bits.index(b"\xff\xc0") + 4] = 12
    yield Case(
        "JPEG of 12 bits",
        bytes(twelve_bits),
        refused="12 bits a sample; save it with 8",
        report="https://github.com/pytorch/vision/pull/4101",
    )
