"""Content messages from paths, bytes, strings and arrays. Knows no model.

A ``str`` is always text, also where it looks like a path. Bytes and paths are told apart by their first bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from plaudit.client.errors import invalid
from plaudit.client.texts import sendable, spelled
from plaudit.v1 import content_pb2

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Part = content_pb2.Content | str | bytes | Path | NDArray[Any]
    """Content of one modality, as :meth:`Client.predict` takes it."""

_Kind = Literal["image", "audio"]

_MAGIC: Final[tuple[tuple[bytes, _Kind], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),  # JPEG
    (b"GIF87a", "image"),
    (b"GIF89a", "image"),
    (b"BM", "image"),
    (b"fLaC", "audio"),
    (b"OggS", "audio"),
    (b"ID3", "audio"),  # MP3 with tags
    # What the server does not take it can name, and say what to do.
    (b"II*\x00", "image"),  # TIFF
    (b"MM\x00*", "image"),
    (b"\x00\x00\x00\x0cjP  ", "image"),  # JPEG 2000
    (b"\x00\x00\x00\x0cJXL ", "image"),
    (b"8BPS", "image"),  # Photoshop
    (b"FORM", "audio"),  # AIFF
    (b".snd", "audio"),  # AU
    (b"caff", "audio"),
    (b"#!AMR", "audio"),
    (b"MThd", "audio"),  # MIDI
    (b"\x30\x26\xb2\x75", "audio"),  # Windows Media
    (b"\x1aE\xdf\xa3", "audio"),  # WebM, which browsers record
)
_DATA_TYPES: Final[Mapping[str, content_pb2.DataType]] = {
    "float32": content_pb2.DATA_TYPE_FP32,
    "float64": content_pb2.DATA_TYPE_FP64,
    "float16": content_pb2.DATA_TYPE_FP16,
    "int8": content_pb2.DATA_TYPE_INT8,
    "int16": content_pb2.DATA_TYPE_INT16,
    "int32": content_pb2.DATA_TYPE_INT32,
    "int64": content_pb2.DATA_TYPE_INT64,
    "uint8": content_pb2.DATA_TYPE_UINT8,
    "uint16": content_pb2.DATA_TYPE_UINT16,
    "uint32": content_pb2.DATA_TYPE_UINT32,
    "uint64": content_pb2.DATA_TYPE_UINT64,
    "bool": content_pb2.DATA_TYPE_BOOL,
}
"""Types of tensor messages by numpy's names."""
_RIFF: Final = (b"RIFF", b"RIFX", b"RF64")
_RIFF_KINDS: Final[Mapping[bytes, _Kind]] = {b"WAVE": "audio", b"WEBP": "image"}
_RIFF_KIND_AT: Final = slice(8, 12)
_BRANDS: Final[Mapping[bytes, _Kind]] = {
    b"avif": "image",
    b"avis": "image",
    b"mif1": "image",
    b"msf1": "image",
    b"heic": "image",
    b"heix": "image",
    b"heim": "image",
    b"hevc": "image",
    b"M4A ": "audio",
    b"M4B ": "audio",
    b"3gp4": "audio",
    b"3gp5": "audio",
}
"""Main brands of ISO base media files."""
_MAX_FILE_BYTES: Final = 64 * 2**20
"""Bytes read of a file. A server takes 16 MiB in a message by default; a device or a pipe may never end."""


def image(source: bytes | Path) -> content_pb2.Content:
    """Encoded image (PNG, JPEG, WebP, AVIF, BMP, GIF): its bytes, or its file."""
    return content_pb2.Content(image=_bytes(source, "image"))


def audio(source: bytes | Path) -> content_pb2.Content:
    """Encoded sound (WAV, FLAC, OGG, MP3): its bytes, or its file."""
    return content_pb2.Content(audio=_bytes(source, "audio"))


def text(value: str) -> content_pb2.Content:
    """Text."""
    return content_pb2.Content(text=sendable("text", value))


def tensor(values: ArrayLike) -> content_pb2.Content:
    """Tensor without the batch axis: numbers or truth values as an array, a scalar or nested lists. Needs numpy.

    It is sent as it is: the server casts it to the dtype of the model's input where that loses no value.
    """
    return _tensor(values, "tensor")


def _tensor(values: Any, field: str) -> content_pb2.Content:
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise invalid(field, "tensors need numpy: pip install numpy") from error

    try:
        array = np.asarray(values)
    except Exception as error:  # of whatever library the values come from, such as a tensor on a GPU
        raise invalid(field, f"{type(values).__name__} is no array of numbers ({error})") from error
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # numpy's longdouble, which differs from machine to machine
    data_type = _DATA_TYPES.get(array.dtype.name)
    if data_type is None:
        raise invalid(field, f"dtype {array.dtype} is none that can be sent; there are {', '.join(_DATA_TYPES)}")
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return content_pb2.Content(tensor=content_pb2.Tensor(data_type=data_type, shape=array.shape, data=data))


def to_content(name: str, part: Part) -> content_pb2.Content:
    """Content of one modality.

    Args:
        name: name of the modality, for errors.

    Raises:
        ClientError: the kind of the value is unknown, or its file cannot be read.
    """
    field = f'content["{spelled(name)}"]'
    match part:
        case content_pb2.Content():
            return part
        case str():
            return content_pb2.Content(text=sendable(field, part))
        case bytes() | Path():
            data = _bytes(part, field)
            kind = sniff(data)
            if kind is None:
                raise invalid(
                    field,
                    f"{_shown(part)} is neither a known image (PNG, JPEG, WebP, AVIF, GIF, BMP) nor a known sound "
                    "(WAV, FLAC, OGG, MP3); state its kind with image(...), audio(...), text(...) or tensor(...)",
                )
            return image(data) if kind == "image" else audio(data)
        case _ if hasattr(part, "__array__"):
            return _tensor(part, field)
        case _:
            raise invalid(
                field,
                f"{type(part).__name__} is not content; give str, bytes, Path, a numpy array or a Content; numbers "
                "and lists of them become one with tensor(...)",
            )


def sniff(data: bytes) -> _Kind | None:
    """Kind of encoded bytes, by their first bytes, also where no server takes them; None if unknown."""
    if data.startswith(_RIFF):
        return _RIFF_KINDS.get(data[_RIFF_KIND_AT])
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    # MP3 without tags: frame sync, layer III; AAC: the same with layer 0.
    if len(data) > 1 and data[0] == 0xFF and (data[1] & 0xE6 == 0xE2 or data[1] & 0xF6 == 0xF0):
        return "audio"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def _bytes(source: bytes | Path, field: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        with source.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise invalid(field, f"{source} cannot be read ({error.strerror})") from error
    if len(data) > _MAX_FILE_BYTES:
        raise invalid(field, f"{source} has more than the limit of {_MAX_FILE_BYTES} bytes; send less")
    return data


def _shown(part: bytes | Path) -> str:
    return str(part) if isinstance(part, Path) else f"{len(part)} bytes beginning {part[:8]!r}"
