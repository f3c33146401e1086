"""JSON of the page for one modality → a Content message. Knows no model; the server validates it.

{"image": BASE64}   {"audio": BASE64}   {"text": "…"}   {"tensor": [[…], …]}
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from plaudit.client import audio, image, tensor
from plaudit.client.texts import sendable
from plaudit.core.text.printable import printable
from plaudit.v1.content_pb2 import Content

_DTYPES: Final = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


class BadRequest(Exception):
    """The request of the page is malformed; the message names the field."""


def contents(raw: Any) -> dict[str, Content]:
    """Content by modality name. Raises BadRequest."""
    if not isinstance(raw, Mapping):
        raise BadRequest(f"content: {type(raw).__name__} is no object of modalities")
    return {name: _content(name, part) for name, part in raw.items()}


def _content(name: str, part: Any) -> Content:
    field = f'content["{printable(name[:80], one_line=True)}"]'
    match part:
        case {"image": str(encoded)}:
            return image(_bytes(field, encoded))
        case {"audio": str(encoded)}:
            return audio(_bytes(field, encoded))
        case {"text": str(value)}:
            return Content(text=sendable(field, value))
        case {"tensor": list(values), "dtype": str(dtype)}:
            # Whatever else numpy takes for a dtype may be of any size, or not even be one.
            if dtype not in _DTYPES:
                raise BadRequest(f"{field}.dtype: {dtype[:80]!r} is none of {', '.join(_DTYPES)}")
            try:
                return tensor(np.array(values, dtype))
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise BadRequest(f"{field}: not a tensor ({str(error)[:200]})") from error
        case _:
            raise BadRequest(f"{field}: needs one of image, audio (base64), text or tensor (nested lists) with dtype")


def _bytes(field: str, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise BadRequest(f"{field}: not base64 ({error})") from error
