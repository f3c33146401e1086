"""Options of an import, and inputs of a foreign graph: as it declares them, as they were recorded, or made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from plaudit.adapters.runtime.graph_file import CannotImport
from plaudit.adapters.runtime.graph_surgery import (
    keep_outputs,
    takes_nan,
)
from plaudit.core.limits import MAX_MODALITIES, MAX_TENSOR_RANK
from plaudit_models.errors import InvalidContent
from plaudit_models.preprocess import check_tensor
from plaudit_models.spec import (
    MAX_FREE_LENGTH,
    RESERVED_NAMES,
    TENSOR_DTYPES,
    TensorModality,
)

Arrays = Mapping[str, npt.NDArray[Any]]

GOLDEN_ROWS: Final = 3
"""Rows that are made up."""
_MAX_GOLDEN_ROWS: Final = 16
"""Rows that are recorded of those given: a version is proven on them whenever it is loaded."""
_FREE_LENGTHS: Final = (8, 64, 512, MAX_FREE_LENGTH)
"""Lengths of free axes that made-up inputs are tried with, as some graphs need a least length."""
_MAX_TRIED_LENGTHS: Final = 16
_NUMPY_TYPES: Final = frozenset(helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in TENSOR_DTYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Options of an import.

    Attributes:
        logits: the output that holds an unnormalised log-probability for each action; "" if there is just one that can.
        embedding: the output that holds the embedding; "": the logits are used instead.
        probabilities: the output named by ``logits`` holds probabilities instead; their logarithm is taken.
        actions: their names in the order of the logits; empty numbers them from 0.
        floor: the exploration floor.
        golden: recorded inputs ``[b, …]`` by name; None: random ones.
        max_length: the longest free length that a request may choose; longer recorded inputs raise it.
    """

    logits: str = ""
    embedding: str = ""
    probabilities: bool = False
    actions: Sequence[str] = ()
    floor: float = 0.02
    golden: Arrays | None = None
    max_length: int = MAX_FREE_LENGTH


def leave_out_what_is_no_tensor(graph: onnx.ModelProto, note: Callable[[str], None]) -> None:
    present = []
    for value in graph.graph.output:
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            note(f"output {value.name!r} is left out: it is a {str(kind).removesuffix('_type')}, not a tensor")
        elif value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            note(f"output {value.name!r} is left out: it holds strings")
        elif value.type.tensor_type.elem_type not in _NUMPY_TYPES:
            name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            note(f"output {value.name!r} is left out: it is of {name}, which numpy has not")
        else:
            present.append(value.name)
    if not present:
        raise CannotImport("logits: no output of the graph is a tensor of numbers, so none can score the actions")
    keep_outputs(graph, present)


def inputs_of(graph: onnx.ModelProto, options: ImportOptions) -> dict[str, TensorModality]:
    constants = {each.name for each in graph.graph.initializer}  # old exporters list them as inputs too
    values = [each for each in graph.graph.input if each.name not in constants]
    if not values:
        raise CannotImport("the graph has no inputs")
    if len(values) > MAX_MODALITIES:
        raise CannotImport(
            f"the graph has {len(values)} inputs; requests hold {MAX_MODALITIES} at most; export columns as one input"
        )
    if options.golden is not None and options.golden.keys() != {value.name for value in values}:
        raise CannotImport(
            f"golden: holds {sorted(options.golden)}, the graph takes {sorted(value.name for value in values)}"
        )
    nan = takes_nan(graph)
    inputs = {}
    fixed: dict[str, int] = {}
    for value in values:
        recorded = None if options.golden is None else options.golden[value.name]
        dtype, lengths = _declared(value, recorded)
        if lengths[0] != -1:
            fixed[value.name] = lengths[0]
        if value.name in RESERVED_NAMES:
            raise CannotImport(
                f"input {value.name!r}: has a name that is reserved ({sorted(RESERVED_NAMES)}); export it under "
                "another one"
            )
        free = [length for length, declared in zip(() if recorded is None else recorded.shape, lengths, strict=False)
                if declared == -1]  # fmt: skip
        inputs[value.name] = TensorModality(
            tuple(lengths[1:]),
            dtype=dtype,
            required=True,
            max_length=max([options.max_length, *free[1:]]),
            takes_nan=nan and np.dtype(dtype).kind == "f",
        )
    _check_fixed(fixed, list(inputs))
    return inputs


def _check_fixed(fixed: Mapping[str, int], names: Sequence[str]) -> None:
    """Raises CannotImport: the inputs do not agree on how many rows they hold."""
    if fixed and (len(set(fixed.values())) > 1 or len(fixed) < len(names)):
        name, length = next((each for each in fixed.items() if each[1] != 1), next(iter(fixed.items())))
        others = {each: fixed.get(each, "free") for each in names if each != name}
        raise CannotImport(
            f"input {name!r}: its first axis has the fixed length {length}, others have {others}; the first axis of "
            f"every input must be the batch; export it so (torch.onnx.export: dynamic_axes={{{name!r}: {{0: 'batch'}}}}"
            ", or dynamic_shapes)"
        )


def _declared(value: onnx.ValueInfoProto, recorded: npt.NDArray[Any] | None) -> tuple[str, list[int]]:
    """Dtype and lengths of an input as declared, batch axis included; -1 is a free length. Free lengths are written
    into the declaration as such.
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise CannotImport(
            f"input {value.name!r}: is of kind {str(kind).removesuffix('_type')}; only tensors are served; export it "
            "as one"
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        raise CannotImport(
            f"input {value.name!r}: holds strings; only numbers and truth values are served; export the graph from "
            "behind its encoder of strings, and encode them where requests are made"
        )
    try:
        dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    except (KeyError, TypeError) as error:
        raise CannotImport(f"input {value.name!r}: its element type {tensor.elem_type} is unknown") from error
    if dtype not in TENSOR_DTYPES:
        raise CannotImport(f"input {value.name!r}: is of {dtype}; served are {sorted(TENSOR_DTYPES)}")
    if not tensor.HasField("shape"):
        if recorded is None or recorded.ndim == 0:
            raise CannotImport(
                f"input {value.name!r}: is not a tensor of a known number of axes; record inputs that have them: "
                "--golden FILE.npz"
            )
        for _ in range(recorded.ndim):
            tensor.shape.dim.add()
        return dtype, [-1] * recorded.ndim
    lengths = []
    for axis in tensor.shape.dim:
        lengths.append(axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else -1)
        if axis.HasField("dim_value") and axis.dim_value <= 0:
            axis.ClearField("dim_value")  # how old exporters write what is free
    if len(lengths) > 1 + MAX_TENSOR_RANK:
        raise CannotImport(
            f"input {value.name!r}: has {len(lengths)} axes; requests have {MAX_TENSOR_RANK} beside the batch"
        )
    if not lengths:
        raise CannotImport(f"input {value.name!r}: is a scalar; its first axis must be the batch")
    return dtype, lengths


def lengths_to_try(graph: onnx.GraphProto) -> Sequence[int]:
    """Lengths of free axes: the usual one, those of the graph's constants, as an axis that is declared free may in
    fact be as long as the rows of a weight, and longer ones.
    """
    of_constants = {
        length for constant in graph.initializer for length in constant.dims if 1 < length <= MAX_FREE_LENGTH
    }
    return list(dict.fromkeys((_FREE_LENGTHS[0], *sorted(of_constants)[:_MAX_TRIED_LENGTHS], *_FREE_LENGTHS[1:])))


def made_up_inputs(
    inputs: Mapping[str, TensorModality], lengths: Sequence[int]
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Inputs to try, the same each time: floats in [0, 1), then ones; integers 0 and 1, which every vocabulary has."""
    has_free = any(-1 in modality.shape for modality in inputs.values())
    for length in lengths if has_free else lengths[:1]:
        for ones in (False, True):
            rng = np.random.default_rng(0)
            made = {}
            for name, modality in inputs.items():
                dtype = np.dtype(modality.dtype)
                free = min(length, modality.max_length)
                shape = (GOLDEN_ROWS, *(free if each == -1 else each for each in modality.shape))
                values = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
                made[name] = np.ones(shape, dtype) if ones else values.astype(dtype)
            yield made


def recorded_inputs(golden: Arrays, inputs: Mapping[str, TensorModality]) -> dict[str, npt.NDArray[Any]]:
    """The recorded inputs, checked and cast as those of requests are."""
    golden = {name: array[:_MAX_GOLDEN_ROWS] if array.ndim else array for name, array in golden.items()}
    rows = {len(array) if array.ndim else 0 for array in golden.values()}
    if len(rows) != 1 or 0 in rows:
        raise CannotImport(f"golden: the arrays have {sorted(rows)} rows; all must have the same number, 1 at least")
    try:
        return {
            name: np.stack([check_tensor(row, modality, name=name) for row in np.asarray(golden[name])])
            for name, modality in inputs.items()
        }
    except InvalidContent as error:
        raise CannotImport(f"golden: {error}") from error
