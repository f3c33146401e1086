"""The content of one request → the arrays of a version's graph inputs, or an error that names the modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Content, EncodedContent, TensorContent, TextContent
from plaudit.core.ports.runtime import ServableModel
from plaudit_models.preprocess import InvalidContent, Limits, decode
from plaudit_models.spec import Modality, ModelSpec

Arrays = Mapping[str, npt.NDArray[Any]]


def is_encoded(content: Mapping[str, Content]) -> bool:
    """True if there is an image or a sound to decode."""
    return any(isinstance(part, EncodedContent) for part in content.values())


def check_modalities(content: Mapping[str, Content], spec: ModelSpec) -> None:
    """Whether these are modalities of the model, each of a fitting kind; looks at no bytes.

    Raises:
        InvalidInput: naming the modality, and what there is instead.
    """
    if not content:
        raise InvalidInput("content", f"is empty; give at least one of {list(spec.modalities)}")
    for name, part in content.items():
        modality = spec.modalities.get(name)
        if modality is None:
            raise InvalidInput(
                f'content["{name[:80]}"]', f"is not a modality of {spec.name!r}; there are {list(spec.modalities)}"
            )
        given = _kind(part)
        # A tensor may stand for any modality: it is what decoding would have made of it.
        if given not in ("tensor", modality.kind):
            raise InvalidInput(f'content["{name}"]', f"is {given}, but this modality takes {modality.kind}")
    if len(content) < len(spec.modalities):
        missing = [name for name, modality in spec.modalities.items() if modality.required and name not in content]
        if missing:
            raise InvalidInput(f'content["{missing[0]}"]', f"is missing; {spec.name!r} cannot answer without {missing}")


def decode_content(content: Mapping[str, Content], model: ServableModel, limits: Limits) -> Arrays:
    """Graph inputs by modality name, without the batch axis. ``content`` has passed :func:`check_modalities`.

    Raises:
        InvalidInput: a part is too large, damaged or of the wrong shape.
    """
    spec = model.manifest.spec
    return {name: _decode(name, part, spec.modalities[name], model, limits) for name, part in content.items()}


def _decode(name: str, part: Content, modality: Modality, model: ServableModel, limits: Limits) -> npt.NDArray[Any]:
    raw = part.data if isinstance(part, EncodedContent) else part.text if isinstance(part, TextContent) else part.array
    try:
        return decode(raw, modality, name=name, tokenizer=model.tokenizer, limits=limits)
    except InvalidContent as error:
        raise InvalidInput(f'content["{name}"]', error.problem) from error


def _kind(part: Content) -> str:
    match part:
        case EncodedContent(kind):
            return kind
        case TextContent():
            return "text"
        case TensorContent():
            return "tensor"
