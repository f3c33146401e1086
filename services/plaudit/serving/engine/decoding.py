"""Content of one request → arrays of a version's graph inputs, or an error that names the modality."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy.typing as npt

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Content, EncodedContent, TensorContent, TextContent
from plaudit.core.ports.runtime import ServableModel
from plaudit.serving.engine.call_context import CallContext
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.errors import InvalidContent
from plaudit_models.limits import Limits
from plaudit_models.preprocess import decode
from plaudit_models.spec import Modality, ModelSpec

Arrays = Mapping[str, npt.NDArray[Any]]

_CLIENT_CHECK_INTERVAL_S: Final = 0.05
"""Interval at which a request that waits for a decoder looks whether its client has left."""


class Decoder:
    """Decodes requests; safe to use from several threads.

    Args:
        limits: sizes beyond which content is refused.
        max_concurrent: images and sounds that are decoded at once. Decoders release the interpreter's lock in the
            middle, and many threads that want it back spend their time on switching.
    """

    def __init__(self, limits: Limits, metrics: ServingMetrics, *, max_concurrent: int) -> None:
        self._limits = limits
        self._metrics = metrics
        self._slots = threading.Semaphore(max_concurrent)

    def decode(self, content: Mapping[str, Content], model: ServableModel, call: CallContext) -> Arrays:
        """Graph inputs by modality name, without the batch axis.

        Raises:
            InvalidInput: naming the modality.
            Expired, ClientGone: no part was decoded after that.
        """
        spec = model.manifest.spec
        check_modalities(content, spec)
        started_s = time.perf_counter()
        try:
            # Each part may take long: none is begun for a client that no longer waits for it.
            return {name: self._part(name, part, spec.modalities[name], model, call) for name, part in content.items()}
        finally:
            self._metrics.versions.of(model).decode_seconds.observe(time.perf_counter() - started_s)

    def _part(
        self, name: str, part: Content, modality: Modality, model: ServableModel, call: CallContext
    ) -> npt.NDArray[Any]:
        call.check_wanted()
        if not isinstance(part, EncodedContent):
            return _decode(name, part, modality, model, self._limits)
        self._wait_for_slot(call)
        try:
            return _decode(name, part, modality, model, self._limits)
        finally:
            self._slots.release()

    def _wait_for_slot(self, call: CallContext) -> None:
        while not self._slots.acquire(timeout=min(_CLIENT_CHECK_INTERVAL_S, max(call.remaining_s(), 0.0))):
            call.check_wanted()
        try:
            call.check_wanted()
        except BaseException:
            self._slots.release()
            raise


def check_modalities(content: Mapping[str, Content], spec: ModelSpec) -> None:
    """Check that these are modalities of the model, each of a fitting kind; looks at no bytes.

    Raises:
        InvalidInput: naming the modality, and which ones there are.
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
