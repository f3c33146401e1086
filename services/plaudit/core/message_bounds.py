"""Bounds of a serialised message, looked for in its bytes: parsing makes 44 times as much memory of some.

An empty element takes two bytes and becomes an object; 15 MiB of them are 665 MiB and a third of a second without any
other thread. A long text is decoded before its length can be looked at. Both are refused here, in time that does not
grow with the message. Bytes that are no message are left to the parser, which stops at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from plaudit.core.errors import InvalidInput
from plaudit.core.limits import (
    MAX_FIELD_COST,
    MAX_ID_CHARACTERS,
    MAX_PREDICTION_ID_CHARACTERS,
    MAX_REASON_CHARACTERS,
    MAX_SHAPE_BYTES,
    MAX_SMALL_CALL_BYTES,
)

_COST: Final = 5
"""Of a field that is not of the same number as the one before it; of one that is: 1."""
_MAX_CHARACTER_BYTES: Final = 4
_MAX_VARINT_BYTES: Final = 10
_CHARACTERS: Final = {"reason": MAX_REASON_CHARACTERS, "prediction_id": MAX_PREDICTION_ID_CHARACTERS}
_SHAPE: Final = "shape"


@dataclass(frozen=True, slots=True)
class _Field:
    """Field of a message.

    Attributes:
        inner: fields of its value, which is a message; None: it is none.
        max_bytes: longest value; 0: any.
        bound: the bound in words.
        is_shape: its value is a list of axes.
    """

    name: str
    inner: Any
    max_bytes: int = 0
    bound: str = ""
    is_shape: bool = False


_Fields = Mapping[int, _Field]


def check_message(raw: bytes, descriptor: Any, *, ids: bool = True) -> None:
    """Check a message before it is parsed; small ones cost nothing.

    Args:
        descriptor: of the message's type.
        ids: texts of the message itself, which are ids, names and reasons, are checked too. Not where a wrong one is
            answered for itself, as in a stream.

    Raises:
        InvalidInput: naming the field; it has a text, a shape or more fields than are taken.
    """
    if len(raw) <= MAX_SMALL_CALL_BYTES:
        return
    try:
        _walk(raw, _fields(descriptor, ids))
    except IndexError:  # it ends within a field
        return


def _walk(raw: bytes, fields: _Fields) -> None:
    """Raises InvalidInput; IndexError: the message ends within a field."""
    cost, at, end, last, shape_bytes = 0, 0, len(raw), -1, 0
    outer: list[tuple[int, int, _Fields]] = []
    while True:
        if at >= end:
            if not outer:
                return
            at, end, fields = outer.pop()
            continue
        tag, at = _varint(raw, at)
        cost += 1 if tag == last and tag < 0x80 else _COST
        if cost > MAX_FIELD_COST:
            many = fields.get(tag >> 3)
            raise InvalidInput(
                "request" if many is None else many.name,
                f"the {len(raw)} bytes of the message have more elements of it than are taken; send numbers packed, "
                "and less at once",
            )
        last = tag
        match tag & 7:
            case 0:
                at = _varint(raw, at)[1]
            case 1:
                at += 8
            case 2:
                size, at = _varint(raw, at)
                if at + size > end:
                    return
                field = fields.get(tag >> 3)
                if field is not None and field.inner is not None and size:
                    outer.append((at + size, end, fields))
                    end, fields, last = at + size, field.inner, -1
                    continue
                if field is not None and field.max_bytes and size > field.max_bytes:
                    raise InvalidInput(field.name, f"has {size} bytes; at most {field.bound} are taken")
                at += size
                if field is not None and field.is_shape:
                    shape_bytes += size  # it may come in pieces
                    if shape_bytes > MAX_SHAPE_BYTES:
                        raise InvalidInput(field.name, f"has more than {MAX_SHAPE_BYTES} bytes of axes")
                elif tag < 0x80:
                    most_bytes = 0x7F if field is None or field.inner is None else 0
                    at, run = _run(raw, at, end, tag, most_bytes, MAX_FIELD_COST - cost)
                    cost += run
            case 3 | 4:
                pass
            case 5:
                at += 4
            case _:
                return


def _run(raw: bytes, at: int, end: int, tag: int, most_bytes: int, most: int) -> tuple[int, int]:
    """End and number of the fields of one number that follow each other, each with at most ``most_bytes``."""
    empties = _empties(tag).match(raw, at, min(end, at + 2 * most))
    at, run = (at, 0) if empties is None else (empties.end(), (empties.end() - at) // 2)
    last = end - 1
    while run < most and at < last and raw[at] == tag:
        size = raw[at + 1]
        if size > most_bytes or at + 2 + size > end:
            break
        at += 2 + size
        run += 1
    return at, run


@cache
def _empties(tag: int) -> re.Pattern[bytes]:
    """Fields of one number without a value, one after the other: the shortest there are, so the most."""
    return re.compile(b"(?:" + re.escape(bytes([tag])) + b"\\x00)*+")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Number and the place behind it. Raises IndexError: it does not end."""
    number = raw[at]
    if number < 0x80:
        return number, at + 1
    number, shift = number & 0x7F, 7
    for place in range(at + 1, at + _MAX_VARINT_BYTES):
        byte = raw[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place + 1
        shift += 7
    raise IndexError("a number without an end")


@cache
def _fields(descriptor: Any, ids: bool) -> _Fields:
    found: dict[int, _Field] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            # A message that holds itself is looked into once: its fields are the same.
            inner = {} if field.message_type is descriptor else _fields(field.message_type, False)
            found[field.number] = _Field(field.name, inner)
        elif field.name == _SHAPE and field.is_repeated:
            found[field.number] = _Field(field.name, None, is_shape=True)
        elif ids and field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            most = _CHARACTERS.get(field.name, MAX_ID_CHARACTERS)
            found[field.number] = _Field(field.name, None, _MAX_CHARACTER_BYTES * most, f"{most} characters")
        else:
            found[field.number] = _Field(field.name, None)
    return found
