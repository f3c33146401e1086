"""Open Inference Protocol messages ↔ rows of content and predictions; pure, and on the path of every request.

Names, datatypes and the response but for its values are the same for all requests of a version, and worked out once, in
its :class:`Contract`. Tensors are views of the bytes that arrived. A response is put together as bytes: concatenated
messages are read as one message.

Notation:
    n: rows of a request, d: embedding size, a: number of actions
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit.core.errors import InvalidInput
from plaudit.core.events import Content, EncodedContent, TensorContent, TextContent
from plaudit.core.limits import MAX_TENSOR_RANK
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.text.identifiers import check_id
from plaudit.core.text.user_groups import check_group
from plaudit.inference import open_inference_pb2 as pb
from plaudit.serving.engine.pipeline import Outcome, PredictionRequest, Predictions
from plaudit_models.preprocess import input_dtype
from plaudit_models.spec import EMBEDDING, ImageModality, Modality, ModelSpec, TensorModality, TextModality

PROBABILITIES: Final = "probabilities"
ACTION: Final = "action"
PROPENSITY: Final = "propensity"
PREDICTION_ID: Final = "prediction_id"

BYTES: Final = "BYTES"

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Dtypes of numbers; numpy has no BF16."""
_NAMES: Final = {dtype.name: datatype for datatype, dtype in DTYPES.items()}
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Fields of typed contents, by datatype; FP16 and BF16 have none."""

_ENCODED: Final = {"image": "encoded images", "audio": "encoded sounds", "text": "UTF-8 texts"}
_UNSUPPORTED: Final = {
    "shared_memory_region": "shared memory is not served; send the values in the message",
    "classification": "classes are not sorted here; take probabilities, without this parameter",
}
_LENGTH: Final = struct.Struct("<I")
_FP64: Final = struct.Struct("<d")
_REMEMBERED: Final = 1024
"""Prepared responses that are cached for one version and choice of outputs; real clients need far fewer."""


Encoder = Callable[[Sequence[Outcome]], bytes]
"""One output of all rows → its raw contents."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    Attributes:
        shape: without the batch axis; -1 is any length.
        optional: a request may leave it out.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


# --- contract of a version -------------------------------------------------------------------------------------------


class Contract:
    """Inputs and outputs of one version, as the protocol names them.

    Attributes:
        inputs: by modality name, as tensors.
        outputs: by name. A native output replaces ours of the same name.
    """

    def __init__(self, model: ServableModel) -> None:
        spec = model.manifest.spec
        self._readers = {name: _Reader(name, modality) for name, modality in spec.modalities.items()}
        self.inputs: Mapping[str, Tensor] = {name: reader.tensor for name, reader in self._readers.items()}
        ours = _our_outputs(spec)
        native = dict(_native_outputs(spec))
        self._outputs: Mapping[str, tuple[Tensor, Encoder]] = native | {
            name: output for name, output in ours.items() if name not in native
        }
        self._native = frozenset(native)
        self.outputs: Mapping[str, Tensor] = {name: tensor for name, (tensor, _) in self._outputs.items()}
        self._choices: dict[tuple[str, ...], Choice] = {}

    def rows(self, message: pb.ModelInferRequest, *, max_rows: int) -> Sequence[Mapping[str, Content]]:
        """The inputs of a request, row by row. Tensors are views of what was received.

        Raises:
            InvalidInput: naming the input.
        """
        raw = message.raw_input_contents
        inputs = message.inputs
        if len(raw) not in (0, len(inputs)):
            raise InvalidInput(
                "raw_input_contents", f"holds {len(raw)} tensors for {len(inputs)} inputs; send one for each, or none"
            )
        columns: dict[str, Sequence[Content]] = {}
        n = 0
        for place, tensor in enumerate(inputs):
            name = tensor.name
            reader = self._readers.get(name)
            if reader is None:
                raise InvalidInput(
                    f'inputs["{name[:80]}"]', f"is not an input of this model; there are {list(self._readers)}"
                )
            if name in columns:
                raise InvalidInput(f'inputs["{name}"]', "is there twice")
            if len(tensor.shape) > 1 + MAX_TENSOR_RANK:
                raise InvalidInput(
                    f'inputs["{name}"].shape',
                    f"has {len(tensor.shape)} axes; at most {MAX_TENSOR_RANK} and the rows are taken",
                )
            shape = tuple(tensor.shape)
            if n and shape and shape[0] != n:
                first = next(iter(columns))
                raise InvalidInput(
                    f'inputs["{name}"].shape', f'{list(shape)} has {shape[0]} rows, but inputs["{first}"] has {n}'
                )
            if shape and shape[0] > max_rows:
                raise InvalidInput(
                    f'inputs["{name}"].shape', f"{list(shape)} has more than {max_rows} rows; send several requests"
                )
            columns[name] = reader.read(tensor, shape, raw[place] if raw else None)
            n = shape[0]
        if not columns:
            raise InvalidInput("inputs", f"is empty; give at least one of {list(self._readers)}")
        if n == 1:
            return [{name: column[0] for name, column in columns.items()}]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def choice(self, outputs: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor]) -> Choice:
        """The outputs that a request wants; all of them if it names none.

        Raises:
            InvalidInput: naming the output.
        """
        names = []
        for output in outputs:
            names.append(output.name)
            if output.parameters:
                _check_parameters(f'outputs["{output.name[:80]}"]', output.parameters)
        key = tuple(names)
        found = self._choices.get(key)
        if found is None:
            found = self._choose(names)
            if len(self._choices) >= _REMEMBERED:
                self._choices.clear()
            self._choices[key] = found
        return found

    def _choose(self, names: Sequence[str]) -> Choice:
        for place, name in enumerate(names):
            if name not in self._outputs:
                raise InvalidInput(
                    f'outputs["{name[:80]}"]', f"is not an output of this model; there are {list(self._outputs)}"
                )
            if name in names[:place]:
                raise InvalidInput(f'outputs["{name}"]', "is there twice")
        chosen = [self._outputs[name] for name in names or self._outputs]
        return Choice(
            tensors=tuple(tensor for tensor, _ in chosen),
            encoders=tuple(encoder for _, encoder in chosen),
            native=tuple(tensor.name for tensor, _ in chosen if tensor.name in self._native),
            free=tuple(tensor.name for tensor, _ in chosen if -1 in tensor.shape),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The outputs that a request wants.

    Attributes:
        native: names of those that the graph has.
        free: those of them whose shape depends on the input.
    """

    tensors: tuple[Tensor, ...]
    encoders: tuple[Encoder, ...]
    native: tuple[str, ...]
    free: tuple[str, ...]
    _heads: dict[tuple[Any, ...], bytes] = field(default_factory=dict, compare=False, repr=False)

    def response(self, predictions: Predictions, request_id: str) -> bytes:
        """A serialised ModelInferResponse.

        Raises:
            InvalidInput: the rows have outputs of different shapes.
        """
        rows = predictions.outcomes
        shapes = tuple(_shape_of_all(name, rows) for name in self.free)
        key = (predictions.model.digest, predictions.role, len(rows), shapes)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            head = self._heads[key] = self._head(predictions, dict(zip(self.free, shapes, strict=True)))
        parts = [head]
        if request_id:
            parts += _delimited(_ID, request_id.encode())
        for encode in self.encoders:
            parts += _delimited(_RAW_OUTPUT, encode(rows))
        return b"".join(parts)

    def _head(self, predictions: Predictions, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
        """A serialised response without its id and its values."""
        manifest = predictions.model.manifest
        n = len(predictions.outcomes)
        return pb.ModelInferResponse(
            model_name=manifest.spec.name,
            model_version=str(manifest.version),
            parameters={
                "version_digest": pb.InferParameter(string_param=predictions.model.digest),
                "role": pb.InferParameter(string_param=predictions.role.value),
            },
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(
                    name=tensor.name, datatype=tensor.datatype, shape=(n, *shapes.get(tensor.name, tensor.shape))
                )
                for tensor in self.tensors
            ],
        ).SerializeToString()


def _shape_of_all(name: str, rows: Sequence[Outcome]) -> tuple[int, ...]:
    shape = rows[0].evaluation.native[name].shape
    if any(row.evaluation.native[name].shape != shape for row in rows):
        raise InvalidInput(f'outputs["{name}"]', "has another shape for each row; send the rows one by one")
    return shape


def _our_outputs(spec: ModelSpec) -> dict[str, tuple[Tensor, Encoder]]:
    actions = {action: _element(action.encode()) for action in spec.actions}

    def probabilities(rows: Sequence[Outcome]) -> bytes:
        return b"".join([row.evaluation.probabilities.astype("<f4").tobytes() for row in rows])

    def embedding(rows: Sequence[Outcome]) -> bytes:
        return b"".join([row.evaluation.embedding.tobytes() for row in rows])

    def action(rows: Sequence[Outcome]) -> bytes:
        return b"".join([actions[row.action] for row in rows])

    def propensity(rows: Sequence[Outcome]) -> bytes:
        return b"".join([_FP64.pack(row.evaluation.propensity) for row in rows])

    def prediction_id(rows: Sequence[Outcome]) -> bytes:
        return b"".join([_element(row.prediction_id.encode()) for row in rows])

    return {
        PROBABILITIES: (Tensor(PROBABILITIES, "FP32", (len(spec.actions),)), probabilities),
        EMBEDDING: (Tensor(EMBEDDING, "FP32", (spec.embedding_size,)), embedding),
        ACTION: (Tensor(ACTION, BYTES, (1,)), action),
        PROPENSITY: (Tensor(PROPENSITY, "FP64", (1,)), propensity),
        PREDICTION_ID: (Tensor(PREDICTION_ID, BYTES, (1,)), prediction_id),
    }


def _native_outputs(spec: ModelSpec) -> Iterator[tuple[str, tuple[Tensor, Encoder]]]:
    """Native outputs whose datatype the protocol and numpy both know."""
    for name, output in spec.outputs.items():
        if output.dtype == "object":
            yield name, (Tensor(name, BYTES, output.shape), partial(_native_strings, name))
        elif output.dtype in _NAMES:
            yield name, (Tensor(name, _NAMES[output.dtype], output.shape), partial(_native_numbers, name))


def _native_numbers(name: str, rows: Sequence[Outcome]) -> bytes:
    return b"".join([row.evaluation.native[name].tobytes() for row in rows])


def _native_strings(name: str, rows: Sequence[Outcome]) -> bytes:
    return b"".join([_element(text.encode()) for row in rows for text in np.ravel(row.evaluation.native[name])])


# --- reading inputs --------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one input of a version."""

    def __init__(self, name: str, modality: Modality) -> None:
        self._name = name
        self._modality = modality
        self._dtype = input_dtype(modality)
        self._shape = modality.shape
        self.tensor = Tensor(name, _NAMES[self._dtype.name], self._shape, optional=not modality.required)

    def read(
        self, tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], raw: bytes | None
    ) -> Sequence[Content]:
        """The content of each row.

        Args:
            raw: of ``raw_input_contents``; None if the contents are typed.
        """
        if tensor.parameters:
            _check_parameters(f'inputs["{self._name}"]', tensor.parameters)
        if raw is not None and tensor.HasField("contents") and tensor.contents.ByteSize():
            raise self._wrong("contents", "is given beside raw_input_contents; send the values one way")
        datatype = tensor.datatype
        if datatype == BYTES and not isinstance(self._modality, TensorModality):
            return self._encoded(tensor, shape, raw)
        if datatype != self.tensor.datatype:
            raise self._wrong("datatype", f"{datatype[:20]!r} is none that this input takes; send {self._takes()}")
        if not shape or shape[1:] != self._shape or shape[0] < 1:
            self._check_shape(shape)
        array = self._typed(tensor, shape) if raw is None else self._raw(raw, shape)
        if shape[0] == 1:
            return (TensorContent(array.reshape(shape[1:])),)
        rows = array.reshape(shape)
        return [TensorContent(rows[row, ...]) for row in range(shape[0])]  # iteration makes numbers of a vector's rows

    def _raw(self, raw: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        expected_bytes = math.prod(shape) * self._dtype.itemsize
        if len(raw) != expected_bytes:
            raise self._wrong(
                "", f"is {len(raw)} bytes; {self.tensor.datatype} of shape {list(shape)} is {expected_bytes}"
            )
        return np.frombuffer(raw, self._dtype)

    def _typed(self, tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        values = self._contents(tensor, shape)
        try:
            return np.array(values, self._dtype)
        except OverflowError as error:
            raise self._wrong("contents", f"holds values beyond {self.tensor.datatype}: {error}") from error

    def _contents(self, tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> Sequence[Any]:
        field = _CONTENTS.get(tensor.datatype)
        if field is None:
            raise self._wrong("contents", f"cannot hold {tensor.datatype}; send it in raw_input_contents")
        values: Sequence[Any] = getattr(tensor.contents, field)
        expected = math.prod(shape)
        if len(values) != expected:
            raise self._wrong(
                f"contents.{field}", f"holds {len(values)} values; {tensor.datatype} of {list(shape)} is {expected}"
            )
        return values

    def _encoded(
        self, tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], raw: bytes | None
    ) -> Sequence[Content]:
        if len(shape) not in (1, 2) or shape[0] < 1 or shape[1:] not in ((), (1,)):
            raise self._wrong("shape", f"{list(shape)} should be [n, 1]: one of the {self._encodings()} for each row")
        if raw is None:
            elements: Sequence[bytes] = self._contents(tensor, shape)
        else:
            elements = self._elements(raw, shape[0])
        if isinstance(self._modality, TextModality):
            return [TextContent(self._text(element)) for element in elements]
        kind: Literal["image", "audio"] = "image" if isinstance(self._modality, ImageModality) else "audio"
        return [EncodedContent(kind, element) for element in elements]

    def _elements(self, raw: bytes, n: int) -> Sequence[bytes]:
        """The elements of BYTES, each of which follows its length."""
        elements = []
        at = 0
        for row in range(n):
            start = at + _LENGTH.size
            if start > len(raw):
                raise self._wrong("", f"is {len(raw)} bytes, which end before row {row} of {n} begins")
            at = start + _LENGTH.unpack_from(raw, start - _LENGTH.size)[0]
            if at > len(raw):
                raise self._wrong("", f"is {len(raw)} bytes, but row {row} says that it ends at {at}")
            elements.append(raw[start:at])
        if at != len(raw):
            raise self._wrong("", f"is {len(raw)} bytes, but its {n} rows end at {at}")
        return elements

    def _text(self, element: bytes) -> str:
        try:
            return element.decode()
        except UnicodeDecodeError as error:
            raise self._wrong("", f"is not UTF-8 ({error.reason} at byte {error.start})") from error

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        fits = len(shape) == 1 + len(self._shape) and all(
            length >= 1 and wanted in (-1, length) for length, wanted in zip(shape, (-1, *self._shape), strict=True)
        )
        if not fits:
            wanted = ", ".join(map(str, ("n", *self._shape)))
            raise self._wrong("shape", f"{list(shape)} should be [{wanted}], n the number of rows")

    def _takes(self) -> str:
        if isinstance(self._modality, TensorModality):
            return self.tensor.datatype
        return f"{self.tensor.datatype}, or BYTES with {self._encodings()}"

    def _encodings(self) -> str:
        return _ENCODED[self._modality.kind]

    def _wrong(self, part: str, problem: str) -> InvalidInput:
        return InvalidInput(f'inputs["{self._name}"]{"." if part else ""}{part}', problem)


def _check_parameters(where: str, parameters: Mapping[str, pb.InferParameter]) -> None:
    """Raises InvalidInput for a parameter that would change the answer and is not supported; others are ignored."""
    for name, problem in _UNSUPPORTED.items():
        if name in parameters:
            raise InvalidInput(f"{where}.parameters[{name!r}]", problem)


# --- the parameters of a request -------------------------------------------------------------------------------------


def prediction_request(
    message: pb.ModelInferRequest, rows: Sequence[Mapping[str, Content]], choice: Choice, user_id: str
) -> PredictionRequest:
    """Unknown parameters mean nothing.

    Args:
        user_id: of the user that the caller may speak for.

    Raises:
        InvalidInput: naming a parameter.
    """
    parameters = message.parameters
    allowed = _string(parameters, "allowed_actions") if parameters else ""
    return PredictionRequest(
        rows=rows,
        model=message.model_name,  # of a model that was found
        outputs=choice.native,
        user_id=user_id,
        user_group=_group(parameters) if parameters else "",
        allowed_actions=_actions(allowed) if allowed else (),
        greedy=flag(parameters, "greedy") if parameters else False,
        request_id=check_id("id", message.id),
    )


def user_of(message: pb.ModelInferRequest) -> str:
    """The user id among the parameters; "" if it is missing. Raises InvalidInput if it is no id."""
    if not message.parameters:
        return ""
    return check_id("parameters['user_id']", _string(message.parameters, "user_id"))


def _group(parameters: Mapping[str, pb.InferParameter]) -> str:
    return check_group(_string(parameters, "user_group"), "parameters['user_group']")


def version_of(text: str) -> int | None:
    """Version number; None if the text is empty. Raises InvalidInput."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InvalidInput("model_version", f"{text[:20]!r} is not a version; send its number, or nothing")
    return int(text)


def flag(parameters: Mapping[str, pb.InferParameter], name: str) -> bool:
    """Value of a bool parameter; False if it is missing. Raises InvalidInput if it is no bool."""
    if name not in parameters:
        return False
    value = parameters[name]
    if value.WhichOneof("parameter_choice") != "bool_param":
        raise InvalidInput(f"parameters[{name!r}]", f"{_shown(value)} is not a bool; send bool_param")
    return value.bool_param


def _string(parameters: Mapping[str, pb.InferParameter], name: str) -> str:
    if name not in parameters:
        return ""
    value = parameters[name]
    if value.WhichOneof("parameter_choice") != "string_param":
        raise InvalidInput(f"parameters[{name!r}]", f"{_shown(value)} is not a string; send string_param")
    return value.string_param


def _actions(listed: str) -> tuple[str, ...]:
    """Actions of a JSON list, so that they may hold a comma, or of a list that is separated by commas."""
    if not listed.lstrip().startswith("["):
        return tuple(action.strip() for action in listed.split(","))
    try:
        actions = json.loads(listed)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("parameters['allowed_actions']", f"{listed[:80]!r} is not a JSON list ({error})") from error
    if not all(isinstance(action, str) for action in actions):
        raise InvalidInput("parameters['allowed_actions']", f"{listed[:80]!r} is not a list of strings")
    return tuple(actions)


def _shown(value: pb.InferParameter) -> str:
    return str(value).strip()[:80] or "nothing"


# --- bytes -----------------------------------------------------------------------------------------------------------


def _tag(message: Any, field: str) -> bytes:
    """Tag of a length-delimited field whose number is small enough for one byte."""
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | 2])


_ID: Final = _tag(pb.ModelInferResponse, "id")
_RAW_OUTPUT: Final = _tag(pb.ModelInferResponse, "raw_output_contents")
_INFER_RESPONSE: Final = _tag(pb.ModelStreamInferResponse, "infer_response")
_FINAL: Final = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()


def streamed(response: bytes, *, marked_final: bool) -> bytes:
    """A serialised ModelInferResponse → a serialised ModelStreamInferResponse."""
    if marked_final:
        response += _FINAL
    return b"".join(_delimited(_INFER_RESPONSE, response))


def streamed_error(text: str, request_id: str, *, marked_final: bool) -> bytes:
    response = pb.ModelInferResponse(id=request_id).SerializeToString()
    error = pb.ModelStreamInferResponse(error_message=text).SerializeToString()
    return error + streamed(response, marked_final=marked_final)


def _delimited(tag: bytes, value: bytes) -> tuple[bytes, bytes, bytes]:
    return tag, _varint(len(value)), value


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _element(value: bytes) -> bytes:
    """One element of BYTES."""
    return _LENGTH.pack(len(value)) + value
