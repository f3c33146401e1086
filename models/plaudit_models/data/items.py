"""Cells of one modality → arrays of the graph contract, through the same functions that serving decodes requests with.

An array that stands for a picture or a sound becomes the file that a client would send.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from plaudit_models.data.config import DataConfig
from plaudit_models.data.errors import InvalidData, UnusableItem
from plaudit_models.data.files import DataFiles, array_in
from plaudit_models.data.rows import Rows
from plaudit_models.errors import InvalidContent
from plaudit_models.limits import Limits
from plaudit_models.preprocess import check_tensor, decode
from plaudit_models.spec import AudioModality, ImageModality, Modality, TensorModality, TextModality, TextTokenizer

Array = npt.NDArray[Any]


def limits_of(config: DataConfig) -> Limits:
    """Limits of content for the operator's own files."""
    return Limits(
        max_image_bytes=config.max_item_bytes,
        max_image_pixels=config.max_image_pixels,
        max_audio_bytes=config.max_item_bytes,
        max_audio_duration_s=config.max_audio_duration_s,
    )


class ItemReader:
    """Reads and decodes items of a data set; serves several threads.

    Args:
        tokenizer: for text modalities; None where there are none.
    """

    def __init__(self, rows: Rows, tokenizer: TextTokenizer | None) -> None:
        self._rows, self._tokenizer = rows, tokenizer
        self._files = DataFiles(rows.folder, max_item_bytes=rows.config.max_item_bytes)
        self._limits = limits_of(rows.config)

    def array(self, row: int, name: str) -> Array:
        """Graph input of one item, without the batch axis.

        Raises:
            InvalidData: with the place of the row, the column and the cell.
        """
        try:
            return self.decoded(self._rows.items[name][row], name)
        except UnusableItem as error:
            raise InvalidData(self.message(row, name, str(error))) from error

    def decoded(self, cell: str, name: str) -> Array:
        """Graph input of a cell. Raises UnusableItem."""
        return self.decode(self.content(cell, name), name)

    def content(self, cell: str, name: str) -> bytes | str | Array:
        """Text, bytes of a file, or an array. Raises UnusableItem."""
        modality = self._rows.spec.modalities[name]
        if isinstance(modality, TextModality):
            return cell
        if isinstance(modality, TensorModality) and (values := _numbers(cell, modality)) is not None:
            return values
        return self._files.read(cell)

    def decode(self, content: bytes | str | Array, name: str) -> Array:
        """Graph input of content. Raises UnusableItem."""
        modality = self._rows.spec.modalities[name]
        try:
            if isinstance(modality, TensorModality):
                array = array_in(content) if isinstance(content, bytes) else np.asarray(content)
                return check_tensor(array, modality, name=name)
            if isinstance(content, np.ndarray):
                content = encoded(content, modality)
            return decode(content, modality, name=name, tokenizer=self._tokenizer, limits=self._limits)
        except InvalidContent as error:
            raise UnusableItem(error.problem) from error
        except (OSError, EOFError, MemoryError) as error:  # numpy allocates what a header says
            raise UnusableItem(str(error) or type(error).__name__) from error

    def message(self, row: int, name: str, problem: str) -> str:
        """Problem of an item with its place."""
        column = ", ".join(self._rows.sources[name])
        return f"{self._rows.table.place(row)}, column {column}: {self._rows.items[name][row][:80]!r}: {problem}"


def encoded(array: Array, modality: Modality) -> bytes:
    """Picture as PNG, or sound as WAV, of an array. Raises UnusableItem."""
    if isinstance(modality, ImageModality):
        return _png(array)
    if isinstance(modality, AudioModality):
        return _wav(array, modality.sample_rate_hz)
    raise UnusableItem(f"is an array, and a {modality.kind} is none")


def _png(array: Array) -> bytes:
    """Picture of ``[h, w]``, ``[h, w, 1]``, ``[h, w, 3]`` or ``[h, w, 4]``: uint8, or uint16 where it is grey."""
    pixels = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    is_grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    is_colour = pixels.ndim == 3 and pixels.shape[-1] in (3, 4) and pixels.dtype == np.uint8
    if not (is_grey or is_colour) or not pixels.size:
        raise UnusableItem(
            f"is an array of {array.dtype} {list(array.shape)}; a picture is uint8 [h, w] or [h, w, 3], "
            "or uint16 [h, w]"
        )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _wav(array: Array, sample_rate_hz: int) -> bytes:
    """Sound of ``[s]`` samples at the modality's rate, as float32."""
    import soundfile

    if array.ndim != 1 or not array.size or array.dtype.kind not in "if":
        raise UnusableItem(f"is an array of {array.dtype} {list(array.shape)}; a sound is float32 or int16 [samples]")
    samples = array if array.dtype.kind == "f" else array / -float(np.iinfo(array.dtype).min)
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), sample_rate_hz, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _numbers(cell: str, modality: TensorModality) -> Array | None:
    """Numbers that stand in the cell itself, as a JSON list (null is NaN) or one alone; None for a reference."""
    text = cell.strip()
    if text.startswith("["):
        try:
            values = json.loads(text, parse_constant=float)
        except (ValueError, RecursionError) as error:
            raise UnusableItem(f"is not a JSON list of numbers ({error})") from error
        try:
            array = np.array(_with_nan(values), np.float64)
        except (ValueError, TypeError, RecursionError) as error:
            raise UnusableItem("is a list of unequal lengths, or not of numbers") from error
        return array.astype(np.int64) if modality.dtype.startswith(("int", "uint")) and _whole(array) else array
    if modality.shape in ((), (1,)):
        try:
            return np.array(float(text)).reshape(modality.shape)
        except ValueError:
            return None
    return None


def _with_nan(values: Any) -> Any:
    return [_with_nan(each) for each in values] if isinstance(values, list) else np.nan if values is None else values


def _whole(array: Array) -> bool:
    return bool(np.isfinite(array).all() and (array == np.trunc(array)).all())
