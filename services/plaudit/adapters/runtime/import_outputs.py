"""Outputs of a foreign graph: which of them is the logits, which the embedding, and how the others are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from plaudit.adapters.runtime.graph_file import CannotImport
from plaudit.adapters.runtime.graph_surgery import (
    ValueSource,
    quantizes_dynamically,
)
from plaudit.adapters.runtime.import_inputs import ImportOptions
from plaudit.adapters.runtime.import_runs import TOLERANCE, ImportRuns, SeenOutput, row_width
from plaudit.core.errors import InvalidInput
from plaudit.core.limits import MAX_ACTIONS
from plaudit.core.text.identifiers import check_id
from plaudit_models.spec import (
    BASE_LOGITS,
    EMBEDDING,
    TENSOR_DTYPES,
    OutputSpec,
)


def logits_of(runs: ImportRuns, options: ImportOptions, note: Callable[[str], None]) -> ValueSource:
    name = options.logits or _only_scores(runs, options)
    output = _named(runs, name, "logits")
    width = row_width(output.together)
    column = width == 1
    if width is None or width < 1 or (column and len(options.actions) != 2):
        raise CannotImport(
            f"logits: {name!r} is {_shown(output)}; floats [batch, actions] with 2 actions at least are needed"
            + (", or one value a row and the names of two actions (--actions)" if column else "")
        )
    probabilities = options.probabilities
    if probabilities and (output.together.min() < -TOLERANCE or output.together.max() > 1 + TOLERANCE):
        raise CannotImport(
            f"probabilities: output {name!r} gives values from {output.together.min():.3g} to "
            f"{output.together.max():.3g}; these are no probabilities; import it without --probabilities"
        )
    if not probabilities and _are_probabilities(output.together):
        probabilities = True
        note(f"output {name!r} is taken for probabilities, as its rows sum to 1: their logarithm scores the actions")
    elif not probabilities and column:
        note(f"output {name!r} scores the second action against the first; say --probabilities if it is a probability")
    return ValueSource(name, output.together.dtype == np.float32, width, column, probabilities)


def _only_scores(runs: ImportRuns, options: ImportOptions) -> str:
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


def _named(runs: ImportRuns, name: str, what: str) -> SeenOutput:
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


def embedding_of(runs: ImportRuns, logits: ValueSource, options: ImportOptions) -> ValueSource:
    name = options.embedding
    if not name and EMBEDDING in runs.outputs and (row_width(runs.outputs[EMBEDDING].together) or 0) > 1:
        name = EMBEDDING
    if not name:
        return (
            ValueSource(BASE_LOGITS, True, 2)
            if logits.column
            else ValueSource(logits.name, logits.is_float32, logits.width)
        )
    output = _named(runs, name, "embedding")
    width = row_width(output.together)
    if width is None or output.together.ndim != 2 or width < 1:
        raise CannotImport(f"embedding: {name!r} is {_shown(output)}; floats [batch, size] are needed")
    return ValueSource(name, output.together.dtype == np.float32, width)


def actions_of(logits: ValueSource, labels: Mapping[str, Sequence[str]], options: ImportOptions) -> tuple[str, ...]:
    n_actions = 2 if logits.column else logits.width
    if n_actions > MAX_ACTIONS:
        raise CannotImport(
            f"logits: output {logits.name!r} scores {n_actions} actions, and a model has at most {MAX_ACTIONS}; name "
            f"another output with --logits, or let the graph score those that matter (a Gather on its last axis)"
        )
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


def native_outputs(
    runs: ImportRuns, graph: onnx.ModelProto, contract: Mapping[str, ValueSource], note: Callable[[str], None]
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


def _shape(
    name: str, value: onnx.ValueInfoProto, output: SeenOutput, contract: Mapping[str, ValueSource]
) -> tuple[int, ...]:
    """Shape of a row: a length is fixed if it was declared so, and seen; that of scores is the one that was seen."""
    seen = output.together.shape[1:]
    if any(source.name == name for source in contract.values()):
        return tuple(seen)
    tensor = value.type.tensor_type
    axes = list(tensor.shape.dim)[1:] if tensor.HasField("shape") else []
    if len(axes) != len(seen):
        return (-1,) * len(seen)
    return tuple(length if axis.dim_value == length else -1 for axis, length in zip(axes, seen, strict=True))


def _shown(output: SeenOutput) -> str:
    return f"{output.together.dtype} [{', '.join(['batch', *map(str, output.together.shape[1:])])}]"


def say_how_batches_are_served(runs: ImportRuns, graph: onnx.ModelProto, note: Callable[[str], None]) -> None:
    if runs.fixed_rows > 1:
        note(f"its batch is fixed to {runs.fixed_rows}: fewer rows are filled up; export it with a free first axis")
    elif runs.one_by_one:
        reason = (
            f"{runs.why_one_by_one}{' (it is quantized dynamically)' if quantizes_dynamically(graph.graph) else ''}"
        )
        note(f"rows are served one by one, as {reason}; export it with a free first axis to be faster")
