"""Any ONNX file → a version folder: checked, completed to the graph contract, and proven on recorded inputs.

The graph stays what it was: it keeps its inputs, as required tensor modalities, and its outputs, as native ones; the
contract's outputs are added beside them. Knows nothing about registries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data
from safetensors.numpy import save_file

from plaudit_models.bandit.head import write_initial_head
from plaudit_models.bundle import CARD, HEAD, HEAD_GOLDEN, TRUNK, TRUNK_GOLDEN, Manifest, seal
from plaudit_models.spec import (
    BASE_LOGITS,
    EMBEDDING,
    RESERVED_NAMES,
    SCORES,
    TENSOR_DTYPES,
    InvalidSpec,
    ModelSpec,
    OutputSpec,
    TensorModality,
)
from plaudit_models.version_card import card

Arrays = Mapping[str, npt.NDArray[Any]]

_GOLDEN_ROWS: Final = 3
_FREE_LENGTH: Final = 8
"""Length of a free axis in recorded inputs."""
_MAX_BYTES: Final = 2_000_000_000
"""Largest size of one ONNX file."""
_TOLERANCE: Final = 1e-3
_LEAST_PROBABILITY: Final = 1e-12


class CannotImport(Exception):
    """The file cannot become a version; the message names the input or output and the way out."""


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
    """

    logits: str = ""
    embedding: str = ""
    probabilities: bool = False
    actions: Sequence[str] = ()
    floor: float = 0.02
    golden: Arrays | None = None


def import_onnx(file: Path, name: str, folder: Path, options: ImportOptions) -> Manifest:
    """Make the version folder of an ONNX file, with data files beside it if it has any.

    Args:
        name: name of the model.
        folder: empty; gets the version.

    Raises:
        CannotImport: the file is no ONNX graph that can be served, or the options do not fit it.
    """
    graph = _read(file)
    inputs = {each.name: _input(each) for each in _inputs(graph)}
    if not inputs:
        raise CannotImport(f"{file}: the graph has no inputs")
    outputs = {each.name: OutputSpec(*_type(each, "output")) for each in graph.graph.output}
    native = {name: output for name, output in outputs.items() if output.dtype in TENSOR_DTYPES}  # not strings
    logits = _logits(native, options)
    actions = tuple(options.actions) or tuple(str(index) for index in range(native[logits].shape[0]))
    if native[logits].shape != (len(actions),):
        raise CannotImport(
            f"actions: {len(actions)} are named, but output {logits!r} has {native[logits].shape[0]} values a row"
        )
    embedding = _embedding(native, options, logits)
    try:
        spec = ModelSpec(name, inputs, actions, native[embedding].shape[0], native)
    except InvalidSpec as error:
        raise CannotImport(f"{file}: {error}") from error
    _complete(graph, logits, embedding, options.probabilities)
    (folder / TRUNK).write_bytes(graph.SerializeToString())
    write_initial_head(folder / HEAD, spec.embedding_size, len(actions))
    _record(folder, spec, options.golden)
    reason = f"{file.name} was imported"
    manifest = Manifest(
        spec=spec, kind="imported", created_at_s=time.time(), files={}, floor=options.floor, reason=reason
    )
    manifest = seal(folder, manifest)
    (folder / CARD).write_text(card(json.loads(manifest.to_json())), encoding="utf-8")
    return manifest


def _read(file: Path) -> onnx.ModelProto:
    try:
        graph = onnx.load(file, load_external_data=False)
        size_bytes = sum(path.stat().st_size for path in (file, *_data_files(graph, file)))
        if size_bytes > _MAX_BYTES:
            raise CannotImport(
                f"{file}: holds {size_bytes} bytes with its data; up to {_MAX_BYTES} can be imported; export smaller "
                "weights (float16, or quantized)"
            )
        load_external_data_for_model(graph, str(file.parent))
    except FileNotFoundError as error:
        raise CannotImport(f"{file}: {error.strerror or error}: {error.filename}") from error
    except CannotImport:
        raise
    except Exception as error:  # onnx and protobuf raise all kinds of exceptions on damaged files
        raise CannotImport(f"{file}: is not a readable ONNX file ({type(error).__name__}: {error})") from error
    if not all(each.type.tensor_type.HasField("shape") for each in graph.graph.output):
        graph = onnx.shape_inference.infer_shapes(graph)
    return graph


def _data_files(graph: onnx.ModelProto, file: Path) -> set[Path]:
    """Files that hold the graph's large constants, if they are not in the file itself."""
    external = [constant for constant in graph.graph.initializer if uses_external_data(constant)]
    return {file.parent / ExternalDataInfo(constant).location for constant in external}


def _inputs(graph: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs without initializers, which old exporters list as inputs too."""
    constants = {each.name for each in graph.graph.initializer}
    return [each for each in graph.graph.input if each.name not in constants]


def _input(value: onnx.ValueInfoProto) -> TensorModality:
    dtype, shape = _type(value, "input")
    if dtype not in TENSOR_DTYPES:
        raise CannotImport(f"input {value.name!r}: is of {dtype}; served are {sorted(TENSOR_DTYPES)}")
    if value.name in RESERVED_NAMES:
        raise CannotImport(
            f"input {value.name!r}: has a name that is reserved ({sorted(RESERVED_NAMES)}); export it under another one"
        )
    return TensorModality(shape, dtype=dtype, required=True)


def _type(value: onnx.ValueInfoProto, what: str) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape without the batch axis; -1 is a free length."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise CannotImport(f"{what} {value.name!r}: is not a tensor of a known number of axes")
    try:
        dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    except (KeyError, TypeError) as error:
        raise CannotImport(f"{what} {value.name!r}: its element type {kind.elem_type} is unknown") from error
    lengths = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim]
    if not lengths:
        raise CannotImport(f"{what} {value.name!r}: is a scalar; its first axis must be the batch")
    if lengths[0] != -1:
        raise CannotImport(
            f"{what} {value.name!r}: its first axis has the fixed length {lengths[0]}, so requests cannot share a "
            "batch; export it with a dynamic first axis "
            f"(torch.onnx.export: dynamic_axes={{{value.name!r}: {{0: 'batch'}}}}, or dynamic_shapes)"
        )
    return dtype, tuple(lengths[1:])


def _can_be_logits(output: OutputSpec) -> bool:
    return output.dtype == "float32" and len(output.shape) == 1 and output.shape[0] >= 2


def _logits(native: Mapping[str, OutputSpec], options: ImportOptions) -> str:
    fitting = [name for name, output in native.items() if _can_be_logits(output)]
    if not options.logits:
        others = [name for name in fitting if name != options.embedding]
        if len(others) == 1:
            return others[0]
        found = f"{len(others)} outputs could be: {others}" if others else f"none of the outputs {list(native)} can be"
        raise CannotImport(
            f"logits: which output scores the actions? {found}; it is float32 [batch, actions]; name it with --logits"
        )
    if options.logits not in native:
        raise CannotImport(f"logits: {options.logits!r} is not an output; there are {list(native)}")
    if options.logits not in fitting:
        output = native[options.logits]
        raise CannotImport(
            f"logits: {options.logits!r} is {output.dtype} [batch, {', '.join(map(str, output.shape))}]; "
            "float32 [batch, actions] with 2 actions at least is needed"
        )
    return options.logits


def _embedding(native: Mapping[str, OutputSpec], options: ImportOptions, logits: str) -> str:
    if not options.embedding:
        return logits
    output = native.get(options.embedding)
    if output is None:
        raise CannotImport(f"embedding: {options.embedding!r} is not an output; there are {list(native)}")
    if output.dtype != "float32" or len(output.shape) != 1 or output.shape[0] < 1:
        raise CannotImport(
            f"embedding: {options.embedding!r} is {output.dtype} [batch, {', '.join(map(str, output.shape))}]; "
            "float32 [batch, size] is needed"
        )
    return options.embedding


def _complete(graph: onnx.ModelProto, logits: str, embedding: str, probabilities: bool) -> None:
    """Add the contract's outputs. An inner value that has one of their names is renamed."""
    native = {each.name for each in graph.graph.output}
    clashes = [name for name in (BASE_LOGITS, EMBEDDING) if name in native and name not in (logits, embedding)]
    if clashes:
        raise CannotImport(
            f"output {clashes[0]!r}: has a reserved name and another meaning; export it under another name"
        )
    for name in (BASE_LOGITS, EMBEDDING):
        if name not in native:
            _rename(graph.graph, name, f"{name}/inner")
    source = logits
    if probabilities:
        least = helper.make_tensor(f"{BASE_LOGITS}/least", onnx.TensorProto.FLOAT, [], [_LEAST_PROBABILITY])
        graph.graph.initializer.append(least)
        graph.graph.node.append(helper.make_node("Max", [logits, least.name], [f"{BASE_LOGITS}/positive"]))
        graph.graph.node.append(helper.make_node("Log", [f"{BASE_LOGITS}/positive"], [f"{BASE_LOGITS}/log"]))
        source = f"{BASE_LOGITS}/log"
    sizes = {
        each.name: each.type.tensor_type.shape.dim[1].dim_value
        for each in graph.graph.output
        if each.name in (logits, embedding)
    }
    for name, of, size in ((BASE_LOGITS, source, sizes[logits]), (EMBEDDING, embedding, sizes[embedding])):
        if name == of:
            continue
        if name in native:  # the output called base_logits is the embedding, or holds probabilities
            raise CannotImport(
                f"output {name!r}: has a reserved name and another meaning; export it under another name"
            )
        graph.graph.node.append(helper.make_node("Identity", [of], [name]))
        graph.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size]))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _rename(inner, old, new)
    for initializer in graph.initializer:
        if initializer.name == old:
            initializer.name = new
    for value in graph.value_info:
        if value.name == old:
            value.name = new


def _record(folder: Path, spec: ModelSpec, golden: Arrays | None) -> None:
    """Record golden inputs and outputs. Raises CannotImport if a row alone gives other outputs than in a batch."""
    given = _random_inputs(spec) if golden is None else _checked(golden, spec)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(folder / TRUNK), options, providers=["CPUExecutionProvider"])
        names = list(dict.fromkeys((EMBEDDING, BASE_LOGITS, *spec.outputs)))
        made = dict(zip(names, session.run(names, dict(given)), strict=True))
        alone = dict(zip(names, session.run(names, {name: array[:1] for name, array in given.items()}), strict=True))
    except Exception as error:  # onnxruntime's exceptions have no common base
        way_out = "" if golden is not None else "; if it needs inputs of a certain kind, record some: --golden FILE.npz"
        raise CannotImport(f"the graph cannot be run: {error}{way_out}") from error
    embedding, base_logits = made[EMBEDDING], made[BASE_LOGITS]
    rows = len(next(iter(given.values())))
    if base_logits.shape != (rows, len(spec.actions)):
        raise CannotImport(f"logits: {rows} rows gave {list(base_logits.shape)}, not {[rows, len(spec.actions)]}")
    if not (np.isfinite(base_logits).all() and np.isfinite(embedding).all()):
        raise CannotImport(
            "the graph gives values that are not finite; record inputs it is meant for: --golden FILE.npz"
        )
    for name in names:
        if len(made[name]) != rows or len(alone[name]) != 1:
            raise CannotImport(
                f"output {name!r}: {rows} rows gave {list(made[name].shape)}; its first axis is no batch"
            )
        if not np.allclose(alone[name], made[name][:1], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            worst = float(np.abs(np.subtract(alone[name], made[name][:1], dtype=np.float64)).max())
            raise CannotImport(
                f"output {name!r}: a row gives something else in a batch than alone (by {worst:.2g}); "
                "rows must not see each other"
            )
    save_file(
        {
            **{name: np.ascontiguousarray(array) for name, array in given.items()},
            EMBEDDING: embedding,
            BASE_LOGITS: base_logits,
        },
        folder / TRUNK_GOLDEN,
    )
    save_file({SCORES: base_logits}, folder / HEAD_GOLDEN)


def _random_inputs(spec: ModelSpec) -> dict[str, npt.NDArray[Any]]:
    """The same random inputs each time: floats in [0, 1); integers 0 and 1, which every vocabulary has."""
    rng = np.random.default_rng(0)
    made = {}
    for name, modality in spec.modalities.items():
        dtype = np.dtype(modality.dtype if isinstance(modality, TensorModality) else "float32")
        shape = (_GOLDEN_ROWS, *(_FREE_LENGTH if length == -1 else length for length in modality.shape))
        values = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        made[name] = values.astype(dtype)
    return made


def _checked(golden: Arrays, spec: ModelSpec) -> dict[str, npt.NDArray[Any]]:
    if golden.keys() != spec.modalities.keys():
        raise CannotImport(f"golden: holds {sorted(golden)}, the graph takes {sorted(spec.modalities)}")
    rows = {len(array) if array.ndim else 0 for array in golden.values()}
    if len(rows) != 1 or 0 in rows:
        raise CannotImport(f"golden: the arrays have {sorted(rows)} rows; all must have the same number, 1 at least")
    return dict(golden)
