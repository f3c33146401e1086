"""Contract of a model: its modalities, its actions and the names, shapes and dtypes of its graphs.

Knows nothing about files, transports or torch. A spec is written by an ML engineer as the ``[model]`` table of
``plaudit.toml`` and travels inside every version's manifest.

Notation:
    b: batch size, m: number of modalities, a: number of actions, d: embedding size, k: number of dynamic actions

Trunk graph (``trunk.onnx``), content → embedding and base logits:
    inputs, one per modality under the modality's name, in spec order:
        image   float32 ``[b, channels, height, width]`` in [0, 1]
        audio   float32 ``[b, max_samples]`` waveform in [-1, 1], zero-padded at the end
        text    int64 ``[b, max_tokens]`` token ids, 0 is padding
        tensor  ``[b, *shape]`` of its dtype, float32 unless the spec says otherwise
    and ``present`` float32 ``[b, m]``: 1 where the modality was given, 0 where it is missing (its input is ignored);
    a graph whose modalities are all required has no such input.
    outputs: ``embedding`` float32 ``[b, d]``, ``base_logits`` float32 ``[b, a]``.
Head graph (``head.onnx``), embedding and base logits → action scores:
    inputs ``embedding`` and ``base_logits`` as above;
    output ``scores`` float32 ``[b, a]``, unnormalised log-probabilities.
Text scorer (``text_scorer.onnx``), only of a model that scores text; texts of dynamic actions → what scores
    them: input ``tokens`` int64 ``[k, max_tokens]``, as those of the text modality;
    output ``vectors`` float32 ``[k, d]``: the base logits of the dynamic actions are ``embedding · vectorsᵀ``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Protocol

PRESENT: Final = "present"
EMBEDDING: Final = "embedding"
BASE_LOGITS: Final = "base_logits"
SCORES: Final = "scores"
TOKENS: Final = "tokens"
VECTORS: Final = "vectors"
RESERVED_NAMES: Final = frozenset({PRESENT, EMBEDDING, BASE_LOGITS, SCORES})

NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
"""What models, and the modalities of models made here, may be called: such a name is safe as that of a folder."""
_FOREIGN_NAME = re.compile(
    r"(?!\s)[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\"]{1,128}(?<!\s)"
)
"""What the inputs of an imported graph may be called, such as a column `sepal length (cm)`: clients know them by these
names."""

MAX_FREE_LENGTH: Final = 4_096
"""Longest free length of a tensor unless the spec says otherwise. What a graph does with a length is its choice, and
attention takes its square."""

TENSOR_DTYPES: Final = frozenset(
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
)

ModalityKind = Literal["image", "audio", "text", "tensor"]


class Encoded(Protocol):
    """Token ids of one text."""

    @property
    def ids(self) -> Sequence[int]: ...


class TextTokenizer(Protocol):
    """Text → token ids: what is used of :class:`tokenizers.Tokenizer`."""

    def encode(self, text: str, /, *, add_special_tokens: bool) -> Encoded: ...

    def encode_batch(self, texts: Sequence[str], /, *, add_special_tokens: bool) -> Sequence[Encoded]: ...

    def get_vocab_size(self) -> int: ...


class InvalidSpec(ValueError):
    """Wrong description of a model; the message lists every problem with its field and value."""


@dataclass(frozen=True, slots=True)
class ImageModality:
    """Encoded image, decoded and resized to ``[channels, height, width]``; ``channels`` is 1 (grey) or 3 (RGB)."""

    height: int
    width: int
    channels: int = 3
    required: bool = False
    kind: Literal["image"] = "image"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)


@dataclass(frozen=True, slots=True)
class AudioModality:
    """Encoded sound, decoded to mono at ``sample_rate_hz`` and cut or padded to ``max_duration_s``."""

    sample_rate_hz: int = 16_000
    max_duration_s: float = 2.0
    required: bool = False
    kind: Literal["audio"] = "audio"

    @property
    def max_samples(self) -> int:
        return round(self.sample_rate_hz * self.max_duration_s)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.max_samples,)


@dataclass(frozen=True, slots=True)
class TextModality:
    """UTF-8 text, tokenized and cut to ``max_tokens``."""

    max_tokens: int = 64
    required: bool = False
    kind: Literal["text"] = "text"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.max_tokens,)


@dataclass(frozen=True, slots=True)
class TensorModality:
    """Ready tensor of the given shape, without the batch axis; -1 is a length that each request chooses.

    Attributes:
        max_length: the longest length that a request may choose.
        takes_nan: NaN is a value, such as "missing" in a tree model.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    required: bool = False
    max_length: int = MAX_FREE_LENGTH
    takes_nan: bool = False
    kind: Literal["tensor"] = "tensor"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Native output of an imported graph: numpy dtype and shape without the batch axis, -1 for a free length."""

    dtype: str
    shape: tuple[int, ...]


Modality = ImageModality | AudioModality | TextModality | TensorModality

_KINDS: Final[dict[str, type[Modality]]] = {
    "image": ImageModality,
    "audio": AudioModality,
    "text": TextModality,
    "tensor": TensorModality,
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: ``name``, ``modalities`` by name (their order is the order of ``present``) and ``actions``.

    ``actions`` is the action set in index order: action i of every ``[.., a]`` array is ``actions[i]``. ``outputs`` are
    the native ones of a graph that was imported; a graph of our own has none but the contract's. ``scores_text`` adds
    the text scorer, so that a request may list dynamic actions of its own; it takes exactly one text modality.
    """

    name: str
    modalities: Mapping[str, Modality]
    actions: tuple[str, ...]
    embedding_size: int = 192
    outputs: Mapping[str, OutputSpec] = field(default_factory=dict)
    scores_text: bool = False
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise InvalidSpec("; ".join(problems))
        object.__setattr__(self, "_index", {action: i for i, action in enumerate(self.actions)})

    @property
    def all_required(self) -> bool:
        """True if no modality may be missing; the trunk then has no input ``present``."""
        return all(modality.required for modality in self.modalities.values())

    @property
    def has_free_lengths(self) -> bool:
        """True if rows may differ in shape, so that not any two fit into one batch."""
        return any(-1 in modality.shape for modality in self.modalities.values())

    @property
    def dynamic_action_modality(self) -> tuple[str, TextModality]:
        """Name and kind of the one text modality, whose texts dynamic actions are like. Raises LookupError."""
        texts = [(name, each) for name, each in self.modalities.items() if isinstance(each, TextModality)]
        if len(texts) != 1:
            raise LookupError(f"{self.name!r} has {len(texts)} text modalities, not one")
        return texts[0]

    def action_index(self, action: str) -> int:
        """Index of ``action``. Raises KeyError if it is not in the action set."""
        return self._index[action]

    def has_action(self, action: str) -> bool:
        return action in self._index

    def difference(self, other: ModelSpec) -> str:
        """Reason why requests for this model cannot be given to the other, in one sentence; "" where they can."""
        ours, theirs = self.modalities, other.modalities
        if ours.keys() != theirs.keys():
            return f"it takes {list(theirs)} and not {list(ours)}"
        for name, modality in ours.items():
            its = theirs[name]
            if its.kind != modality.kind:
                return f"modality {name!r} is of kind {its.kind} and not {modality.kind}"
            if isinstance(modality, TensorModality) and its.shape != modality.shape:
                return f"modality {name!r} is of shape {list(its.shape)} and not {list(modality.shape)}"
            if its.required and not modality.required:
                return f"modality {name!r} may not be left out"
        if self.scores_text and not other.scores_text:
            return "it scores no dynamic actions by their text"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; :func:`spec_from_dict` is its inverse."""
        return {
            "name": self.name,
            "modalities": {name: _modality_to_dict(modality) for name, modality in self.modalities.items()},
            "actions": list(self.actions),
            "embedding_size": self.embedding_size,
            **({"scores_text": True} if self.scores_text else {}),
            **({"outputs": {name: asdict(output) for name, output in self.outputs.items()}} if self.outputs else {}),
        }


def check_model_name(name: str) -> None:
    """Raises InvalidSpec: no model can be called that. To be asked before a name becomes part of a path."""
    if not NAME.fullmatch(name):
        raise InvalidSpec(f"model.name: {name[:80]!r} must match {NAME.pattern}")


def spec_from_dict(raw: Mapping[str, Any]) -> ModelSpec:
    """Spec of parsed TOML or JSON.

    Raises:
        InvalidSpec: with every problem found, each naming the field and the value.
    """
    try:
        return _spec_from_dict(raw)
    except InvalidSpec:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a list where a table is wanted, and the like
        problem = f"{type(error).__name__}: {error}"
        raise InvalidSpec(f"model: a value is missing or of the wrong kind ({problem})") from error


def _spec_from_dict(raw: Mapping[str, Any]) -> ModelSpec:
    known = {"name", "modalities", "actions", "embedding_size", "outputs", "scores_text"}
    problems = [f"model.{key}: unknown key; known keys are {sorted(known)}" for key in raw if key not in known]
    problems += [f"model.{key}: missing" for key in ("name", "modalities", "actions") if key not in raw]
    if not isinstance(raw.get("scores_text", False), bool):
        problems.append(f"model.scores_text: {raw['scores_text']!r} is neither true nor false")
    modalities: dict[str, Modality] = {}
    for name, fields in dict(raw.get("modalities", {})).items():
        try:
            modalities[name] = _modality_from_dict(fields)
        except (InvalidSpec, TypeError) as error:
            problems.append(f"model.modalities.{name}: {error}")
    if problems:
        raise InvalidSpec("; ".join(problems))
    outputs = {
        name: OutputSpec(output["dtype"], tuple(output["shape"])) for name, output in raw.get("outputs", {}).items()
    }
    return ModelSpec(**{**raw, "modalities": modalities, "actions": tuple(raw["actions"]), "outputs": outputs})


def _modality_to_dict(modality: Modality) -> dict[str, Any]:
    """Fields without those at their default, so that the digests of versions stay when a field is added."""
    raw = asdict(modality)
    if not modality.required:
        del raw["required"]
    for name, default in (("dtype", "float32"), ("max_length", MAX_FREE_LENGTH), ("takes_nan", False)):
        if raw.get(name) == default:
            del raw[name]
    return raw


def _modality_from_dict(raw: Mapping[str, Any]) -> Modality:
    fields = dict(raw)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise InvalidSpec(f"kind: {kind!r} is not one of {sorted(_KINDS)}")
    cls = _KINDS[kind]
    known = [name for name in cls.__dataclass_fields__ if name != "kind"]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InvalidSpec(f"unknown keys {unknown}; kind {kind!r} knows {known}")
    if "shape" in fields:
        fields["shape"] = tuple(fields["shape"])
    return cls(**fields)


def _problems(spec: ModelSpec) -> list[str]:
    problems = []
    if not NAME.fullmatch(str(spec.name)):
        problems.append(f"model.name: {spec.name!r} must match {NAME.pattern}")
    if not spec.modalities:
        problems.append("model.modalities: at least one is needed")
    for name, modality in spec.modalities.items():
        free = isinstance(modality, TensorModality) and modality.required
        pattern = _FOREIGN_NAME if free else NAME
        if not pattern.fullmatch(name) or name in RESERVED_NAMES:
            problems.append(f"model.modalities.{name}: the name must match {pattern.pattern} and not be reserved")
        if isinstance(modality, TensorModality) and modality.dtype not in TENSOR_DTYPES:
            problems.append(f"model.modalities.{name}.dtype: {modality.dtype!r} is not one of {sorted(TENSOR_DTYPES)}")
        if isinstance(modality, TensorModality) and (
            not isinstance(modality.max_length, int) or modality.max_length < 1
        ):
            problems.append(f"model.modalities.{name}.max_length: {modality.max_length!r} must be a positive integer")
        if not all(isinstance(size, int) and (size > 0 or (free and size == -1)) for size in modality.shape):
            problems.append(
                f"model.modalities.{name}: shape {modality.shape} must be positive integers "
                "(or -1, in a tensor that is required)"
            )
        if isinstance(modality, ImageModality) and modality.channels not in (1, 3):
            problems.append(f"model.modalities.{name}.channels: {modality.channels} is neither 1 (grey) nor 3 (RGB)")
    if len(spec.actions) < 2:
        problems.append(f"model.actions: {len(spec.actions)} given, a policy needs at least 2")
    if len(set(spec.actions)) != len(spec.actions):
        problems.append("model.actions: an action appears twice")
    if any(not isinstance(action, str) or not action for action in spec.actions):
        problems.append("model.actions: every action is a non-empty string")
    if spec.embedding_size <= 0:
        problems.append(f"model.embedding_size: {spec.embedding_size} must be positive")
    texts = [name for name, modality in spec.modalities.items() if isinstance(modality, TextModality)]
    if spec.scores_text and len(texts) != 1:
        problems.append(
            f"model.scores_text: true needs exactly one text modality, whose encoder reads the dynamic actions; "
            f"there are {texts}"
        )
    if spec.scores_text and spec.outputs:
        problems.append("model.scores_text: true, but a graph that was imported has nothing that scores text")
    return problems
