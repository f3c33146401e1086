"""Decoding of stored content into a trunk's inputs, for the learner and its jobs.

Knows nothing about where content is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy.typing as npt

from plaudit.core.events import Content, EncodedContent, TensorContent, TextContent
from plaudit_models import preprocess
from plaudit_models.errors import InvalidContent
from plaudit_models.limits import Limits
from plaudit_models.preprocess import decode
from plaudit_models.spec import ModelSpec, TextTokenizer

ROWS_PER_RUN: Final = 16
"""Contents that share one run of the trunk."""


def decode_contents(
    spec: ModelSpec, tokenizer: TextTokenizer | None, content: Mapping[str, Content], limits: Limits
) -> dict[str, npt.NDArray[Any]] | None:
    """Graph inputs of one content; None if the model takes none of its parts, or one cannot be decoded.

    Content that was served once is not refused again but for a model that has changed: modalities that it does not have
    are left out.
    """
    row = {}
    for name, part in content.items():
        if name in spec.modalities:
            try:
                row[name] = decode(_raw(part), spec.modalities[name], name=name, tokenizer=tokenizer, limits=limits)
            except InvalidContent:
                return None
    return row or None


def _raw(part: Content) -> preprocess.Content:
    match part:
        case EncodedContent(_, data):
            return data
        case TextContent(text):
            return text
        case TensorContent(array):
            return array
