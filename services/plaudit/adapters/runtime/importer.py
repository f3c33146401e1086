"""Any ONNX file → a version folder: read, run, completed to the graph contract, and recorded.

What the file declares is a hint; what the graph gives when it is run decides. The graph keeps its inputs, as required
tensor modalities, and its outputs, as native ones; the contract's outputs are added beside them. Runs a foreign graph
without bounds of its own: callers give it a process that has some. Knows nothing about registries.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from safetensors.numpy import save_file

from plaudit.adapters.runtime.divisions import guard_divisions
from plaudit.adapters.runtime.graph_file import CannotImport, read_graph
from plaudit.adapters.runtime.graph_surgery import (
    Source,
    add_contract,
    check_operators,
    declare_output,
    fix_batch,
    keep_outputs,
    quantizes_dynamically,
    see_through_zipmaps,
    takes_nan,
)
from plaudit.adapters.runtime.session import CPU, Graph
from plaudit.core.errors import InvalidInput
from plaudit.core.limits import MAX_MODALITIES, MAX_TENSOR_RANK
from plaudit.core.text.identifiers import check_id
from plaudit.core.text.reasons import told_reason
from plaudit_models.bandit.head import write_initial_head
from plaudit_models.bundle import CARD, HEAD, HEAD_GOLDEN, TRUNK, TRUNK_GOLDEN, CorruptBundle, Manifest, seal
from plaudit_models.errors import InvalidContent
from plaudit_models.preprocess import check_tensor
from plaudit_models.spec import (
    BASE_LOGITS,
    EMBEDDING,
    MAX_FREE_LENGTH,
    RESERVED_NAMES,
    SCORES,
    TENSOR_DTYPES,
    InvalidSpec,
    ModelSpec,
    OutputSpec,
    TensorModality,
)
from plaudit_models.version_card import card

__all__ = ["CannotImport", "ImportOptions", "import_onnx"]

Arrays = Mapping[str, npt.NDArray[Any]]

_GOLDEN_ROWS: Final = 3
"""Rows that are made up."""
_MAX_GOLDEN_ROWS: Final = 16
"""Rows that are recorded of those given: a version is proven on them whenever it is loaded."""
_FREE_LENGTHS: Final = (8, 64, 512, MAX_FREE_LENGTH)
"""Lengths of free axes that made-up inputs are tried with, as some graphs need a least length."""
_MAX_TRIED_LENGTHS: Final = 16
_TOLERANCE: Final = 5e-4
"""Largest relative difference of a row alone and in a batch: half of what a version's proof allows."""
_NUMPY_TYPES: Final = frozenset(helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in TENSOR_DTYPES)
_NEWEST_IR: Final = re.compile(r"max supported IR version: (\d+)")


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


def _silent(_: str) -> None:
    pass


def import_onnx(
    file: Path, name: str, folder: Path, options: ImportOptions, note: Callable[[str], None] = _silent
) -> Manifest:
    """Make the version folder of an ONNX file, with data files beside it if it has any.

    Args:
        name: name of the model.
        folder: empty; gets the version.
        note: told what was assumed or left out, a sentence each.

    Raises:
        CannotImport: the file is no ONNX graph that can be served, or the options do not fit it.
    """
    graph = read_graph(file)
    check_operators(graph)
    guard_divisions(graph)
    labels = see_through_zipmaps(graph)
    _leave_out_what_is_no_tensor(graph, note)
    inputs = _inputs(graph, options)
    session = _opened_in_some_ir(folder / TRUNK, graph, note)
    runs = _Runs(session, inputs, options, graph.graph)
    _say_how_batches_are_served(runs, graph, note)
    logits = _logits(runs, options, note)
    embedding = _embedding(runs, logits, options)
    if runs.one_by_one and not runs.fixed_rows:
        fix_batch(graph, inputs)
    outputs = _native(runs, graph, {BASE_LOGITS: logits, EMBEDDING: embedding}, note)
    actions = _actions(logits, labels, options)
    try:
        spec = ModelSpec(name, inputs, actions, 2 if embedding.column else embedding.width, outputs)
    except InvalidSpec as error:
        raise CannotImport(f"{file}: {error}") from error
    keep_outputs(graph, outputs)
    for each, output in outputs.items():
        declare_output(graph, each, output.shape)
    add_contract(graph, logits, embedding)
    (folder / TRUNK).write_bytes(graph.SerializeToString())
    write_initial_head(folder / HEAD, spec.embedding_size, len(actions))
    _record(folder, spec, runs.given)
    reason = f"{file.name} was imported"
    manifest = Manifest(
        spec=spec, kind="imported", created_at_s=time.time(), files={}, floor=options.floor, reason=reason
    )
    manifest = seal(folder, manifest)
    (folder / CARD).write_text(card(json.loads(manifest.to_json())), encoding="utf-8")
    return manifest


# --- inputs ----------------------------------------------------------------------------------------------------------


def _leave_out_what_is_no_tensor(graph: onnx.ModelProto, note: Callable[[str], None]) -> None:
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


def _inputs(graph: onnx.ModelProto, options: ImportOptions) -> dict[str, TensorModality]:
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


def _lengths_to_try(graph: onnx.GraphProto) -> Sequence[int]:
    """Lengths of free axes: the usual one, those of the graph's constants, as an axis that is declared free may in
    fact be as long as the rows of a weight, and longer ones.
    """
    of_constants = {
        length for constant in graph.initializer for length in constant.dims if 1 < length <= MAX_FREE_LENGTH
    }
    return list(dict.fromkeys((_FREE_LENGTHS[0], *sorted(of_constants)[:_MAX_TRIED_LENGTHS], *_FREE_LENGTHS[1:])))


def _made_up(inputs: Mapping[str, TensorModality], lengths: Sequence[int]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Inputs to try, the same each time: floats in [0, 1), then ones; integers 0 and 1, which every vocabulary has."""
    has_free = any(-1 in modality.shape for modality in inputs.values())
    for length in lengths if has_free else lengths[:1]:
        for ones in (False, True):
            rng = np.random.default_rng(0)
            made = {}
            for name, modality in inputs.items():
                dtype = np.dtype(modality.dtype)
                free = min(length, modality.max_length)
                shape = (_GOLDEN_ROWS, *(free if each == -1 else each for each in modality.shape))
                values = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
                made[name] = np.ones(shape, dtype) if ones else values.astype(dtype)
            yield made


def _recorded(golden: Arrays, inputs: Mapping[str, TensorModality]) -> dict[str, npt.NDArray[Any]]:
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


# --- runs ------------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> Graph:
    try:
        return Graph(path, [(CPU, {})], threads=1)
    except CorruptBundle as error:
        raise CannotImport(f"ONNX Runtime cannot load the graph: {told_reason(error.__cause__ or error)}") from error


def _opened_in_some_ir(path: Path, graph: onnx.ModelProto, note: Callable[[str], None]) -> Graph:
    """The graph in a session. A version of the format that is newer than ONNX Runtime knows is tried as the newest that
    it knows: most graphs use nothing that is new in it.
    """
    path.write_bytes(graph.SerializeToString())
    try:
        return _opened(path)
    except CannotImport as error:
        newest = _NEWEST_IR.search(str(error))
        if newest is None:
            raise
        given, graph.ir_version = graph.ir_version, int(newest[1])
        path.write_bytes(graph.SerializeToString())
        opened = _opened(path)
        note(f"it is of IR version {given}, and was read as version {newest[1]}, the newest that ONNX Runtime knows")
        return opened


@dataclass(slots=True)
class _Output:
    """An output as it was seen: of all rows at once, and of the first few alone."""

    together: npt.NDArray[Any]
    alone: Sequence[npt.NDArray[Any]] = ()

    def mixes_rows(self, tolerance: float) -> bool:
        return any(not _alike(row, self.together[place : place + 1], tolerance) for place, row in enumerate(self.alone))


class _Runs:
    """What the graph gives for recorded inputs.

    Attributes:
        given: the inputs, ``[b, …]``.
        outputs: those that have a row for each row of the inputs.
        problems: why the others cannot be served.
        fixed_rows: rows that the graph takes at once; 0: any number.
        why_one_by_one: why rows are run one by one; "": they are not.
    """

    def __init__(
        self, graph: Graph, inputs: Mapping[str, TensorModality], options: ImportOptions, declared: onnx.GraphProto
    ) -> None:
        self._graph = graph
        self._names = [value.name for value in declared.output]
        self._lengths = _lengths_to_try(declared)
        # The more rows, the more they differ from what they are alone: a few tell whether they do at all.
        self._tolerance = 1e-6 if quantizes_dynamically(declared) else _TOLERANCE
        self._of_fixed_width = {value.name for value in declared.output if _has_fixed_width(value)}
        self.fixed_rows = graph.fixed_rows
        self.why_one_by_one = "its batch is fixed to 1" if graph.fixed_rows == 1 else ""
        self.problems: dict[str, str] = {}
        self._alone_only: set[str] = set()
        self.given, self.outputs = self._choose(inputs, options.golden)
        wanted = {options.embedding, *([options.logits] if options.logits else self.scores(options))}
        if not self.one_by_one and (wanted & self._alone_only or (self._alone_only and not self.scores(options))):
            self.why_one_by_one = "it gives rows only one by one"
            self.outputs = self._look(self.given)
            wanted |= set(self.scores(options))
        if self._rows_see_each_other(wanted):
            self.why_one_by_one = "a row's scores depend on the other rows of a batch"
            self.outputs = self._look(self.given)

    @property
    def one_by_one(self) -> bool:
        return bool(self.why_one_by_one)

    def _choose(
        self, inputs: Mapping[str, TensorModality], golden: Arrays | None
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, _Output]]:
        if golden is not None:
            given = _recorded(golden, inputs)
            given = {name: np.repeat(array, 2, axis=0) if len(array) == 1 else array for name, array in given.items()}
            try:
                return given, self._look_somehow(given)
            except Exception as error:  # onnxruntime's exceptions have no common base
                raise CannotImport(f"the graph cannot be run on the recorded inputs: {told_reason(error)}") from error
        first: Exception | None = None
        for given in _made_up(inputs, self._lengths):
            try:
                found = self._look_somehow(given)
            except Exception as error:
                first = first or error
                continue
            if all(np.isfinite(each.together).all() for each in found.values() if each.together.dtype.kind == "f"):
                return given, found
            first = first or FloatingPointError("it gives values that are not finite")
        assert first is not None
        raise CannotImport(
            f"the graph cannot be run on made-up inputs: {told_reason(first)}; if it needs inputs of a certain kind, "
            "record some: --golden FILE.npz"
        ) from first

    def _look_somehow(self, given: Arrays) -> dict[str, _Output]:
        """The same; row by row where the graph rejects several, as its batch may be fixed inside."""
        try:
            return self._look(given)
        except Exception:
            if self.one_by_one or self.fixed_rows:
                raise
            self.why_one_by_one = "it rejects more than one row, so its batch is fixed inside"
            try:
                return self._look(given)
            except Exception:
                self.why_one_by_one = ""
            raise

    def scores(self, options: ImportOptions) -> Sequence[str]:
        """Outputs that can score the actions: of those that fit, the ones with as many values a row as there are
        actions, or at least with a width that is declared.
        """
        least = 1 if len(options.actions) == 2 else 2
        widths = {name: _width(output.together) or 0 for name, output in self.outputs.items()}
        fitting = [
            name for name, width in widths.items() if width >= least and name != (options.embedding or EMBEDDING)
        ]
        for better in (
            [name for name in fitting if widths[name] == len(options.actions)],
            [name for name in fitting if name in self._of_fixed_width],
        ):
            if len(fitting) > 1 and len(better) == 1:
                return better
        return fitting

    def _look(self, given: Arrays) -> dict[str, _Output]:
        """The outputs that have a row for each row."""
        self.problems.clear()
        self._alone_only.clear()
        rows = len(next(iter(given.values())))
        alone = range(rows if self.one_by_one else min(rows, _GOLDEN_ROWS))
        parts = [self._run({name: array[row : row + 1] for name, array in given.items()}) for row in alone]
        whole = {} if self.one_by_one else self._run(given)
        found = {}
        for name in self._names:
            pieces = [part[name] for part in parts]
            if self.one_by_one:
                if any(piece.shape[:1] != (1,) for piece in pieces):
                    self.problems[name] = f"one row gave {list(pieces[0].shape)}, so its first axis is not the batch"
                    continue
                if any(piece.shape != pieces[0].shape for piece in pieces):
                    found[name] = _Output(pieces[0])  # each row has lengths of its own
                    continue
                found[name] = _Output(np.concatenate(pieces))
            elif whole[name].shape[:1] != (rows,) or any(piece.shape[:1] != (1,) for piece in pieces):
                if all(piece.shape[:1] == (1,) for piece in pieces):
                    self._alone_only.add(name)
                self.problems[name] = f"{rows} rows gave {list(whole[name].shape)}, so its first axis is not the batch"
            else:
                found[name] = _Output(whole[name], pieces)
        return found

    def _run(self, given: Arrays) -> dict[str, npt.NDArray[Any]]:
        made = self._graph.run(self._names, given)
        return {name: np.asarray(array) for name, array in zip(self._names, made, strict=True)}

    def _rows_see_each_other(self, wanted: set[str]) -> bool:
        """True if rows are to be run one by one: scores of a row depend on the other rows.

        Another output that does is left out, such as token ids that are padded to the longest row of a batch.
        """
        again = self._look(self.given)
        for name, output in list(self.outputs.items()):
            scores = name in wanted
            if not _alike(again[name].together, output.together, self._tolerance):
                self.problems[name] = "it gives something else each time it is run"
                if scores:
                    raise CannotImport(
                        f"output {name!r}: gives something else each time it is run; export the graph in evaluation "
                        "mode, without dropout or random numbers"
                    )
                del self.outputs[name]
            elif output.mixes_rows(self._tolerance):
                if scores:
                    return True
                self.problems[name] = "a row of it depends on the other rows of a batch"
                del self.outputs[name]
        return False


def _alike(one: npt.NDArray[Any], other: npt.NDArray[Any], tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fiub":
        return bool((one == other).all())
    return np.allclose(one, other, rtol=tolerance, atol=tolerance / 10, equal_nan=True)


def _has_fixed_width(value: onnx.ValueInfoProto) -> bool:
    axes = value.type.tensor_type.shape.dim
    return len(axes) == 2 and axes[1].HasField("dim_value")


def _width(array: npt.NDArray[Any]) -> int | None:
    """Values of a row, if the output is a vector of floats for each row; a scalar for each row is 1."""
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        return None
    return 1 if array.ndim == 1 else array.shape[1]


# --- outputs ---------------------------------------------------------------------------------------------------------


def _logits(runs: _Runs, options: ImportOptions, note: Callable[[str], None]) -> Source:
    name = options.logits or _only_scores(runs, options)
    output = _named(runs, name, "logits")
    width = _width(output.together)
    column = width == 1
    if width is None or width < 1 or (column and len(options.actions) != 2):
        raise CannotImport(
            f"logits: {name!r} is {_shown(output)}; floats [batch, actions] with 2 actions at least are needed"
            + (", or one value a row and the names of two actions (--actions)" if column else "")
        )
    probabilities = options.probabilities
    if probabilities and (output.together.min() < -_TOLERANCE or output.together.max() > 1 + _TOLERANCE):
        raise CannotImport(
            f"probabilities: output {name!r} gives values from {output.together.min():.3g} to "
            f"{output.together.max():.3g}; these are no probabilities; import it without --probabilities"
        )
    if not probabilities and _are_probabilities(output.together):
        probabilities = True
        note(f"output {name!r} is taken for probabilities, as its rows sum to 1: their logarithm scores the actions")
    elif not probabilities and column:
        note(f"output {name!r} scores the second action against the first; say --probabilities if it is a probability")
    return Source(name, output.together.dtype == np.float32, width, column, probabilities)


def _only_scores(runs: _Runs, options: ImportOptions) -> str:
    """The one output that can score the actions."""
    fitting = runs.scores(options)
    if len(fitting) == 1:
        return fitting[0]
    seen = {name: _shown(output) for name, output in runs.outputs.items()}
    listed = ", ".join(f"{name!r} {shown}" for name, shown in seen.items()) or "none"
    found = f"{len(fitting)} outputs could be: {fitting}" if fitting else f"none of the outputs can be: {listed}"
    raise CannotImport(
        f"logits: which output scores the actions? {found}; it is floats [batch, actions]; name it with --logits"
    )


def _named(runs: _Runs, name: str, what: str) -> _Output:
    if name in runs.problems and name not in runs.outputs:
        raise CannotImport(f"{what}: {name!r}: {runs.problems[name]}")
    if name not in runs.outputs:
        raise CannotImport(f"{what}: {name!r} is not an output; there are {[*runs.outputs]}")
    output = runs.outputs[name]
    if output.together.dtype.kind == "f" and not np.isfinite(output.together).all():
        raise CannotImport(
            f"{what}: {name!r} gives values that are not finite; record inputs it is meant for: --golden FILE.npz"
        )
    return output


def _embedding(runs: _Runs, logits: Source, options: ImportOptions) -> Source:
    name = options.embedding
    if not name and EMBEDDING in runs.outputs and (_width(runs.outputs[EMBEDDING].together) or 0) > 1:
        name = EMBEDDING
    if not name:
        return Source(BASE_LOGITS, True, 2) if logits.column else Source(logits.name, logits.is_float32, logits.width)
    output = _named(runs, name, "embedding")
    width = _width(output.together)
    if width is None or output.together.ndim != 2 or width < 1:
        raise CannotImport(f"embedding: {name!r} is {_shown(output)}; floats [batch, size] are needed")
    return Source(name, output.together.dtype == np.float32, width)


def _actions(logits: Source, labels: Mapping[str, Sequence[str]], options: ImportOptions) -> tuple[str, ...]:
    n_actions = 2 if logits.column else logits.width
    if options.actions:
        if len(options.actions) != n_actions:
            raise CannotImport(
                f"actions: {len(options.actions)} are named, but output {logits.name!r} has {n_actions} values a row"
            )
        return tuple(options.actions)
    known = tuple(labels.get(logits.name, ()))
    usable = len(set(known)) == n_actions and all(_is_action(label) for label in known)
    return known if usable else tuple(str(index) for index in range(n_actions))


def _is_action(label: str) -> bool:
    """True if requests and feedback can name it."""
    try:
        return bool(check_id("actions", label))
    except InvalidInput:
        return False


def _are_probabilities(array: npt.NDArray[Any]) -> bool:
    """True if every row is a distribution, and not a certain one: whole numbers may be scores."""
    if array.ndim != 2 or array.shape[1] < 2:
        return False
    values = array.astype(np.float64)
    is_distribution = (values >= 0).all() and np.abs(values.sum(axis=1) - 1).max() < 1e-3
    return bool(is_distribution and ((values > 0) & (values < 1)).any(axis=1).all())


def _native(
    runs: _Runs, graph: onnx.ModelProto, contract: Mapping[str, Source], note: Callable[[str], None]
) -> dict[str, OutputSpec]:
    """The outputs that are served under their own names; a note for each that is not."""
    problems = dict(runs.problems)
    native = {}
    for value in graph.graph.output:
        name = value.name
        output = runs.outputs.get(name)
        if output is None:
            continue
        dtype = str(output.together.dtype)
        if dtype not in TENSOR_DTYPES:
            problems[name] = f"it is of {dtype}"
        elif name in contract and contract[name].name != name:
            problems[name] = "its name is reserved and means something else here"
        elif name in contract and (contract[name].probabilities or contract[name].column):
            problems[name] = "its name is reserved for logits"
        else:
            native[name] = OutputSpec("float32" if name in contract else dtype, _shape(name, value, output, contract))
            problems.pop(name, None)
    for name, problem in problems.items():
        if name not in native:
            note(f"output {name!r} is left out: {problem}")
    if not native:
        raise CannotImport("logits: no output is left that can be served under its own name")
    return native


def _shape(name: str, value: onnx.ValueInfoProto, output: _Output, contract: Mapping[str, Source]) -> tuple[int, ...]:
    """Shape of a row: a length is fixed if it was declared so, and seen; that of scores is the one that was seen."""
    seen = output.together.shape[1:]
    if any(source.name == name for source in contract.values()):
        return tuple(seen)
    tensor = value.type.tensor_type
    axes = list(tensor.shape.dim)[1:] if tensor.HasField("shape") else []
    if len(axes) != len(seen):
        return (-1,) * len(seen)
    return tuple(length if axis.dim_value == length else -1 for axis, length in zip(axes, seen, strict=True))


def _shown(output: _Output) -> str:
    return f"{output.together.dtype} [{', '.join(['batch', *map(str, output.together.shape[1:])])}]"


def _say_how_batches_are_served(runs: _Runs, graph: onnx.ModelProto, note: Callable[[str], None]) -> None:
    if runs.fixed_rows > 1:
        note(f"its batch is fixed to {runs.fixed_rows}: fewer rows are filled up; export it with a free first axis")
    elif runs.one_by_one:
        reason = (
            f"{runs.why_one_by_one}{' (it is quantized dynamically)' if quantizes_dynamically(graph.graph) else ''}"
        )
        note(f"rows are served one by one, as {reason}; export it with a free first axis to be faster")


# --- recording -------------------------------------------------------------------------------------------------------


def _record(folder: Path, spec: ModelSpec, given: Arrays) -> None:
    """Record inputs, and the contract's outputs for them."""
    graph = _opened(folder / TRUNK)
    try:
        embedding, base_logits = graph.run([EMBEDDING, BASE_LOGITS], given)
    except Exception as error:
        raise CannotImport(f"the completed graph cannot be run: {told_reason(error)}") from error
    rows = len(next(iter(given.values())))
    for name, made, width in (
        (BASE_LOGITS, base_logits, len(spec.actions)),
        (EMBEDDING, embedding, spec.embedding_size),
    ):
        if made.shape != (rows, width) or not np.isfinite(made).all():
            raise CannotImport(f"{name}: {rows} rows gave {list(made.shape)}, or values that are not finite")
    inputs = {name: np.ascontiguousarray(array) for name, array in given.items()}
    save_file({**inputs, EMBEDDING: embedding, BASE_LOGITS: base_logits}, folder / TRUNK_GOLDEN)
    save_file({SCORES: base_logits}, folder / HEAD_GOLDEN)
