"""Description of a pretrained encoder: all that is needed to build its module again. Imports neither torch nor
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from plaudit_models.spec import ModalityKind

ENCODER_KINDS: Final[Mapping[str, ModalityKind]] = {
    "bert": "text",
    "distilbert": "text",
    "mpnet": "text",
    "roberta": "text",
    "xlm-roberta": "text",
    "clip_vision_model": "image",
    "dinov2": "image",
    "siglip_vision_model": "image",
    "vit": "image",
    "hubert": "audio",
    "wav2vec2": "audio",
    "whisper": "audio",
}
"""Kinds of encoder that are known, `model_type` in their config.json, and the kind of modality that each reads."""
PARTS: Final[Mapping[str, tuple[str, str]]] = {
    "clip": ("vision_config", "clip_vision_model"),
    "siglip": ("vision_config", "siglip_vision_model"),
}
"""Models of two towers: the entry of config.json that describes the tower which is used, and the kind of that tower."""


class UnusableEncoder(ValueError):
    """Folder that holds no encoder for its modality; the message names folder, field, value and the way out."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """One pretrained encoder.

    Attributes:
        kind: one of :data:`ENCODER_KINDS`.
        network: entries of the encoder's config.json.
        inputs: numbers of its preprocessing: ``mean`` and ``std`` per channel of images; ``bos``, ``eos`` and
            ``padding`` token of texts; ``normalized`` and ``masked`` of waveforms.
        tuned: its weights are trained; else they stand still, and its output is computed once for each item.
    """

    kind: str
    network: Mapping[str, Any]
    inputs: Mapping[str, Any]
    tuned: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``EncoderConfig(**raw)`` is its inverse."""
        return asdict(self)
