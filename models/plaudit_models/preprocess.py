"""Encoded content → the arrays of the graph contract in :mod:`plaudit_models.spec`; serving and training share it.

Images and sounds are decoded in :mod:`plaudit_models.media`, texts and tensors here. Every function takes bytes from
strangers: size is capped before anything is decoded, and whatever a decoder raises becomes :class:`InvalidContent`.
Knows nothing about transports, batching policy or torch.

Notation:
    b: batch size, m: number of modalities, c, h, w: image channels, height, width, s: samples, t: tokens
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from plaudit_models.errors import InvalidContent
from plaudit_models.limits import DEFAULT_LIMITS, MAX_TEXT_BYTES_PER_TOKEN, Limits
from plaudit_models.media.images import decode_image
from plaudit_models.media.size import check_size
from plaudit_models.media.sounds import decode_audio
from plaudit_models.spec import (
    PRESENT,
    ImageModality,
    Modality,
    ModelSpec,
    TensorModality,
    TextModality,
    TextTokenizer,
)

Ids = npt.NDArray[np.int64]
Content = bytes | str | npt.NDArray[Any]
_Number = TypeVar("_Number", bound=np.number[Any])

PADDING: Final = "<pad>"
"""Token 0. No text encodes to it: it is a vocabulary entry that no merge produces."""

_SEPARATORS: Final = re.compile(r"[_-]+")
"""Between the words of an action's name."""


def decode(
    content: Content,
    modality: Modality,
    *,
    name: str,
    tokenizer: TextTokenizer | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> npt.NDArray[Any]:
    """Turn the content of one modality into its graph input (without the batch axis).

    Bytes are an encoded image or sound, or UTF-8 text; a str is text; an array is a ready graph input and only checked.

    Args:
        name: the modality's name, for errors.
        tokenizer: needed for text.

    Raises:
        InvalidContent: the content is of the wrong sort, too large, damaged or empty.
    """
    if isinstance(content, np.ndarray):
        vocabulary_size = tokenizer.get_vocab_size() if tokenizer is not None else None
        return check_tensor(content, modality, name=name, vocabulary_size=vocabulary_size)
    if isinstance(modality, TensorModality):
        raise InvalidContent(
            name, f"takes a {modality.dtype} tensor of shape {list(modality.shape)}, got {_sort(content)}"
        )
    if isinstance(modality, TextModality):
        if tokenizer is None:
            raise ValueError(f"modality {name!r} is text, but no tokenizer was given")
        return tokenize(content, modality, tokenizer, name=name, limits=limits)
    if isinstance(content, str):
        raise InvalidContent(name, f"takes an encoded {modality.kind} as bytes, got {_sort(content)}")
    if isinstance(modality, ImageModality):
        return decode_image(content, modality, name=name, limits=limits)
    return decode_audio(content, modality, name=name, limits=limits)


def tokenize(
    text: str | bytes, modality: TextModality, tokenizer: TextTokenizer, *, name: str, limits: Limits = DEFAULT_LIMITS
) -> Ids:
    """Turn UTF-8 text into int64 token ids ``[max_tokens]``, cut at the end, 0 is padding.

    Raises:
        InvalidContent: empty, too long, or not UTF-8.
    """
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    check_size(encoded, limits.max_text_bytes, "bytes of text", name)
    try:
        clean = encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidContent(name, f"the text is not UTF-8 ({error.reason} at byte {error.start})") from error
    ids = tokenizer.encode(_beginning(clean, modality), add_special_tokens=False).ids
    if not ids:
        raise InvalidContent(name, f"the text {clean[:40]!r} is blank; leave the modality out to say it is missing")
    return _fit(np.asarray(ids, np.int64), modality.max_tokens)


def tokenize_all(texts: Sequence[str], modality: TextModality, tokenizer: TextTokenizer) -> Ids:
    """Token ids of texts that were checked before, ``[k, max_tokens]``, cut at the end; 0 is padding."""
    encoded = tokenizer.encode_batch([_beginning(text, modality) for text in texts], add_special_tokens=False)
    return np.stack([_fit(np.asarray(each.ids, np.int64), modality.max_tokens) for each in encoded])


def _beginning(text: str, modality: TextModality) -> str:
    """As much of the text as can matter, see :data:`MAX_TEXT_BYTES_PER_TOKEN`. White space at its start does not."""
    most_bytes = MAX_TEXT_BYTES_PER_TOKEN * modality.max_tokens
    if len(text) <= most_bytes // 4:  # a character has four bytes at most
        return text
    return text.lstrip().encode()[:most_bytes].decode(errors="ignore")


def action_texts(spec: ModelSpec, tokenizer: TextTokenizer) -> Ids:
    """Token ids of the actions' names as a user would write them, ``[a, max_tokens]``.

    Raises:
        LookupError: the spec has no text modality, or several.
    """
    texts = [_SEPARATORS.sub(" ", action).strip() for action in spec.actions]
    return tokenize_all(texts, spec.dynamic_action_modality[1], tokenizer)


def check_tensor(
    array: npt.NDArray[Any], modality: Modality, *, name: str, vocabulary_size: int | None = None
) -> npt.NDArray[Any]:
    """Check a ready graph input (without the batch axis) and return it.

    Args:
        vocabulary_size: for text, the ids allowed are 0 … ``vocabulary_size`` − 1; None checks only for negative ids.

    Raises:
        InvalidContent: wrong dtype or shape, NaN or infinite values, ids outside the vocabulary.
    """
    _check_shape(array.shape, modality, name)
    array = _cast(array, input_dtype(modality), name)
    if isinstance(modality, TextModality):
        lowest, highest = int(array.min()), int(array.max())
        if lowest < 0 or (vocabulary_size is not None and highest >= vocabulary_size):
            last = "" if vocabulary_size is None else vocabulary_size - 1
            raise InvalidContent(name, f"token ids run from {lowest} to {highest}, the vocabulary is 0…{last}")
    elif array.dtype.kind == "f":
        missing_is_fine = isinstance(modality, TensorModality) and modality.takes_nan
        bad = np.isinf(array) if missing_is_fine else ~np.isfinite(array)
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            every = "infinite values are not taken" if missing_is_fine else "every value must be finite"
            raise InvalidContent(name, f"the tensor holds {array[tuple(where)]} at {where}; {every}")
    return array if array.flags.c_contiguous else array.copy()  # np.ascontiguousarray makes a vector of a scalar


def _check_shape(shape: tuple[int, ...], modality: Modality, name: str) -> None:
    if len(shape) != len(modality.shape) or any(
        want not in (-1, length) for length, want in zip(shape, modality.shape, strict=True)
    ):
        raise InvalidContent(name, f"takes the shape {list(modality.shape)}, got a tensor of {list(shape)}")
    if isinstance(modality, TensorModality) and -1 in modality.shape:
        for length, want in zip(shape, modality.shape, strict=True):
            if want == -1 and not 1 <= length <= modality.max_length:
                raise InvalidContent(
                    name, f"takes lengths of 1 to {modality.max_length} where its shape is free, got {list(shape)}"
                )


def _cast(array: npt.NDArray[Any], wanted: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    """The tensor in the dtype of the graph's input. Floating point is rounded to the input's width; nothing else may
    change: a value that does not fit is refused.
    """
    given = array.dtype
    if given == wanted and given.kind != "b":
        return array
    if given.kind not in "fiub":
        raise InvalidContent(name, f"takes {wanted}, got a tensor of {given}")
    if given.kind == "b":
        array = array.view(np.uint8) != 0  # bytes from a message, where a truth value may be any byte
        if wanted.kind == "b":
            return array
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(wanted)
        if given.kind == wanted.kind == "f":
            lost = np.isfinite(array) & ~np.isfinite(cast)
        elif wanted.kind == "b":
            lost = cast != array
        else:
            # -1 comes back from uint64 as it was, and what is beyond an integer may come back as its largest value.
            lost = (cast.astype(array.dtype) != array) | ((cast < 0) != (array < 0))
            for floats, integers in ((array, cast), (cast, array)):
                if floats.dtype.kind == "f" and integers.dtype.kind in "iu":
                    lost |= np.abs(floats) >= 2.0 ** (63 if integers.dtype.kind == "i" else 64)
    if lost.any():
        where = tuple(int(i) for i in np.argwhere(lost)[0])
        raise InvalidContent(
            name, f"takes {wanted}, got a tensor of {given} whose value {array[where]} at {list(where)} is none"
        )
    return cast


def input_dtype(modality: Modality) -> np.dtype[Any]:
    """Dtype of the modality's graph input."""
    if isinstance(modality, TensorModality):
        return np.dtype(modality.dtype)
    return np.dtype(np.int64 if isinstance(modality, TextModality) else np.float32)


def assemble(spec: ModelSpec, rows: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Stack requests into the trunk's inputs; see :meth:`Batch.fill`."""
    return Batch(spec, len(rows)).fill(rows)


class Batch:
    """Arrays for the trunk's inputs that are filled again and again, so that a batch allocates nothing.

    Not for several threads.

    Args:
        capacity: the most rows of one batch.
    """

    def __init__(self, spec: ModelSpec, capacity: int) -> None:
        self._spec = spec
        self._arrays = {
            name: np.zeros((capacity, *modality.shape), input_dtype(modality))
            for name, modality in spec.modalities.items()
            if -1 not in modality.shape
        }
        self._present = np.zeros((capacity, len(spec.modalities)), np.float32)

    def fill(self, rows: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        """Stack requests into the trunk's inputs, which are good until the next call.

        Args:
            rows: one mapping per request, modality name → array as :func:`decode` returns it; a missing modality is
                absent. What has free lengths has the same shape in all rows.

        Returns:
            modality name → ``[b, *shape]``, zeros where missing; and ``present`` float32 ``[b, m]``, 1 where given,
            unless every modality is required.

        Raises:
            ValueError: a row names a modality that the spec does not have.
        """
        b = len(rows)
        known = self._spec.modalities
        for i, row in enumerate(rows):
            for name in row:
                if name not in known:
                    raise ValueError(
                        f"row {i}: {name!r} is not a modality of {self._spec.name!r}, which has {list(known)}"
                    )
        inputs: dict[str, npt.NDArray[Any]] = {}
        for column, name in enumerate(known):
            array = self._arrays.get(name)
            if array is None:
                inputs[name] = np.stack([row[name] for row in rows])
                continue
            for i, row in enumerate(rows):
                given = row.get(name)
                array[i] = 0 if given is None else given
                self._present[i, column] = given is not None
            inputs[name] = array[:b]
        if not self._spec.all_required:
            inputs[PRESENT] = self._present[:b]
        return inputs


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = 2048) -> Tokenizer:
    """Learn a tokenizer from ``texts``; ``vocabulary_size`` is an upper bound (257 at least). Id 0 is padding.

    Byte-level BPE after NFKC and lower-casing. A word that is frequent in training becomes one token, so short
    questions stay short; an unseen word falls apart into known pieces ("addition" → "add", "ition") and, at worst,
    into bytes, so no text in any language or alphabet is unknown. Word-level with an unknown token would make all
    unseen words the same.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    # The prefix space makes a word the same token at the start of a text as inside it.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        show_progress=False,
        special_tokens=[PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    # As a special token "<pad>" typed by a user would become id 0; as a mere vocabulary entry nothing can.
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(raw))


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``; ``tokenizer.save(str(path))`` writes it.

    Raises:
        ValueError: the file is missing or not a tokenizer.
    """
    try:
        return tokenizer_from_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def tokenizer_from_bytes(raw: bytes) -> Tokenizer:
    """Contents of a ``tokenizer.json`` → the tokenizer. Raises ValueError."""
    try:
        return Tokenizer.from_str(raw.decode())
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"not a tokenizer file ({error})") from error


def _fit(values: npt.NDArray[_Number], length: int) -> npt.NDArray[_Number]:
    """Cut or zero-pad at the end."""
    fitted = np.zeros(length, values.dtype)
    kept = values[:length]
    fitted[: len(kept)] = kept
    return fitted


def _sort(content: bytes | str) -> str:
    return f"{len(content)} bytes" if isinstance(content, bytes) else f"the text {content[:40]!r}"
