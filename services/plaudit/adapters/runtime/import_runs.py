"""Runs of a foreign graph on recorded or made-up inputs: what its outputs are is seen in what they hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from plaudit.adapters.runtime.graph_file import CannotImport
from plaudit.adapters.runtime.graph_surgery import (
    quantizes_dynamically,
)
from plaudit.adapters.runtime.import_inputs import (
    GOLDEN_ROWS,
    Arrays,
    ImportOptions,
    lengths_to_try,
    made_up_inputs,
    recorded_inputs,
)
from plaudit.adapters.runtime.session import CPU, Graph
from plaudit.core.text.reasons import told_reason
from plaudit_models.bundle import CorruptBundle
from plaudit_models.spec import (
    EMBEDDING,
    TensorModality,
)

TOLERANCE: Final = 5e-4
"""Largest relative difference of a row alone and in a batch: half of what a version's proof allows."""
_NEWEST_IR: Final = re.compile(r"max supported IR version: (\d+)")


def open_graph(path: Path) -> Graph:
    try:
        return Graph(path, [(CPU, {})], threads=1)
    except CorruptBundle as error:
        raise CannotImport(f"ONNX Runtime cannot load the graph: {told_reason(error.__cause__ or error)}") from error


def open_in_some_ir(path: Path, graph: onnx.ModelProto, note: Callable[[str], None]) -> Graph:
    """The graph in a session. A version of the format that is newer than ONNX Runtime knows is tried as the newest that
    it knows: most graphs use nothing that is new in it.
    """
    path.write_bytes(graph.SerializeToString())
    try:
        return open_graph(path)
    except CannotImport as error:
        newest = _NEWEST_IR.search(str(error))
        if newest is None:
            raise
        given, graph.ir_version = graph.ir_version, int(newest[1])
        path.write_bytes(graph.SerializeToString())
        opened = open_graph(path)
        note(f"it is of IR version {given}, and was read as version {newest[1]}, the newest that ONNX Runtime knows")
        return opened


@dataclass(slots=True)
class SeenOutput:
    """An output as it was seen: of all rows at once, and of the first few alone."""

    together: npt.NDArray[Any]
    alone: Sequence[npt.NDArray[Any]] = ()

    def mixes_rows(self, tolerance: float) -> bool:
        return any(not _alike(row, self.together[place : place + 1], tolerance) for place, row in enumerate(self.alone))


class ImportRuns:
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
        self._lengths = lengths_to_try(declared)
        # The more rows, the more they differ from what they are alone: a few tell whether they do at all.
        self._tolerance = 1e-6 if quantizes_dynamically(declared) else TOLERANCE
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
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, SeenOutput]]:
        if golden is not None:
            given = recorded_inputs(golden, inputs)
            given = {name: np.repeat(array, 2, axis=0) if len(array) == 1 else array for name, array in given.items()}
            try:
                return given, self._look_somehow(given)
            except Exception as error:  # onnxruntime's exceptions have no common base
                raise CannotImport(f"the graph cannot be run on the recorded inputs: {told_reason(error)}") from error
        first: Exception | None = None
        for given in made_up_inputs(inputs, self._lengths):
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

    def _look_somehow(self, given: Arrays) -> dict[str, SeenOutput]:
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
        widths = {name: row_width(output.together) or 0 for name, output in self.outputs.items()}
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

    def _look(self, given: Arrays) -> dict[str, SeenOutput]:
        """The outputs that have a row for each row."""
        self.problems.clear()
        self._alone_only.clear()
        rows = len(next(iter(given.values())))
        alone = range(rows if self.one_by_one else min(rows, GOLDEN_ROWS))
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
                    found[name] = SeenOutput(pieces[0])  # each row has lengths of its own
                    continue
                found[name] = SeenOutput(np.concatenate(pieces))
            elif whole[name].shape[:1] != (rows,) or any(piece.shape[:1] != (1,) for piece in pieces):
                if all(piece.shape[:1] == (1,) for piece in pieces):
                    self._alone_only.add(name)
                self.problems[name] = f"{rows} rows gave {list(whole[name].shape)}, so its first axis is not the batch"
            else:
                found[name] = SeenOutput(whole[name], pieces)
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


def row_width(array: npt.NDArray[Any]) -> int | None:
    """Values of a row, if the output is a vector of floats for each row; a scalar for each row is 1."""
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        return None
    return 1 if array.ndim == 1 else array.shape[1]
