"""Changes to a foreign graph: what nobody needs is left out, and the contract's outputs are added.

The graph computes what it computed. Nodes that are added exist in every operator set from 7 on: constants are nodes,
as initializers must be inputs too before IR 4. Knows nothing about what the graph gives; its callers have run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from plaudit.adapters.runtime.graph_file import CannotImport
from plaudit_models.spec import BASE_LOGITS, EMBEDDING

LEAST_PROBABILITY: Final = 1e-12
"""Probabilities below are raised to it before their logarithm is taken."""

_FLOAT: Final = onnx.TensorProto.FLOAT
_OPSET: Final = 9
"""Of the default domain, for the nodes that are added to a graph that uses none of its operators."""
_BUILT_IN: Final = frozenset(
    ["", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"]
)
"""Operator domains of ONNX; those of ONNX Runtime begin with com.microsoft."""
_TAKE_NAN: Final = frozenset(
    ["TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble", "Imputer", "IsNaN", "LabelEncoder"]
)
"""Operators for which NaN is a value."""


@dataclass(frozen=True, slots=True)
class ValueSource:
    """Where an output of the contract comes from.

    Attributes:
        name: output of the graph.
        is_float32: False: it is to be cast.
        width: values a row.
        column: True: the output holds one value a row, the score of the second of two actions.
        probabilities: its logarithm is to be taken.
    """

    name: str
    is_float32: bool
    width: int
    column: bool = False
    probabilities: bool = False


def check_operators(graph: onnx.ModelProto) -> None:
    """Raises CannotImport: an operator is one that ONNX Runtime does not have built in."""
    functions = {(each.domain, each.name) for each in graph.functions}
    for node in _all_nodes(graph):
        ours = node.domain in _BUILT_IN or node.domain.startswith("com.microsoft")
        if not ours and (node.domain, node.op_type) not in functions:
            raise CannotImport(
                f"operator {node.op_type!r} of domain {node.domain!r}: is not built into ONNX Runtime but comes from a "
                "library that is loaded beside it, which is not done here; export the graph without it "
                "(such as with token ids as inputs, and the tokenizer outside)"
            )


def takes_nan(graph: onnx.ModelProto) -> bool:
    """True if NaN is a value for the graph, such as a missing one for a tree."""
    return any(node.op_type in _TAKE_NAN for node in _all_nodes(graph))


def quantizes_dynamically(graph: onnx.GraphProto) -> bool:
    """True if one scale is computed for all rows of a batch, so that a row's scores depend on the others."""
    return any(node.op_type.startswith("DynamicQuantize") for node in _nodes(graph.node))


def see_through_zipmaps(graph: onnx.ModelProto) -> Mapping[str, Sequence[str]]:
    """Replace maps of class → probability by the tensors that they are made of.

    Returns:
        class labels by output name.
    """
    outputs = {value.name: value for value in graph.graph.output}
    labels: dict[str, Sequence[str]] = {}
    for node in graph.graph.node:
        if node.op_type == "ZipMap" and node.output[0] in outputs:
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            strings = [label.decode("utf-8", "replace") for label in attributes.get("classlabels_strings", ())]
            labels[node.output[0]] = strings or [str(label) for label in attributes.get("classlabels_int64s", ())]
            source, target = node.input[0], node.output[0]
            node.CopyFrom(helper.make_node("Identity", [source], [target], name=node.name))
            outputs[target].CopyFrom(helper.make_tensor_value_info(target, _FLOAT, [None, None]))
    if labels:
        ensure_default_domain(graph)
    return labels


def keep_outputs(graph: onnx.ModelProto, names: Iterable[str]) -> None:
    """Leave all other outputs out, and what only they need."""
    present = {value.name: value for value in graph.graph.output}
    values = [present[name] for name in dict.fromkeys(names)]
    del graph.graph.output[:]
    graph.graph.output.extend(values)


def declare_output(graph: onnx.ModelProto, name: str, shape: Sequence[int]) -> None:
    """Declare what an output was seen to be: ``[batch, *shape]``, -1 for a free length."""
    value = next(each for each in graph.graph.output if each.name == name)
    axes = ["batch", *(None if length == -1 else length for length in shape)]
    value.CopyFrom(helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, axes))


def fix_batch(graph: onnx.ModelProto, names: Iterable[str]) -> None:
    """Declare that the inputs hold one row, so that rows are run one by one."""
    wanted = set(names)
    for value in graph.graph.input:
        if value.name in wanted:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.graph.value_info[:]  # inner shapes that were inferred with another batch


def ensure_default_domain(graph: onnx.ModelProto) -> None:
    """A graph of ai.onnx.ml alone may name no version of the operators that are added."""
    if not any(each.domain in ("", "ai.onnx") for each in graph.opset_import):
        graph.opset_import.append(helper.make_opsetid("", _OPSET))


def add_contract(graph: onnx.ModelProto, logits: ValueSource, embedding: ValueSource) -> None:
    """Add the contract's outputs. An inner value that has one of their names is renamed; an output that has one is
    replaced, so it is to be the same, or left out before.
    """
    ensure_default_domain(graph)
    sources = {BASE_LOGITS: logits.name, EMBEDDING: embedding.name}
    for name in (BASE_LOGITS, EMBEDDING):
        if _is_value(graph.graph, name):
            inner = f"{name}/inner"
            _rename(graph.graph, name, inner)
            sources = {output: inner if value == name else value for output, value in sources.items()}
            keep_outputs(graph, [value.name for value in graph.graph.output if value.name != name])
    for name, source in ((BASE_LOGITS, logits), (EMBEDDING, embedding)):
        last = _contract_nodes(graph, name, sources[name], source)
        graph.graph.node.append(helper.make_node("Identity", [last], [name]))
        width = 2 if source.column else source.width
        graph.graph.output.append(helper.make_tensor_value_info(name, _FLOAT, ["batch", width]))


def _contract_nodes(graph: onnx.ModelProto, name: str, value: str, source: ValueSource) -> str:
    """Name of the last value on the way from the output to float32 ``[batch, width]``."""
    nodes = graph.graph.node

    def add(kind: str, inputs: Sequence[str], what: str, **attributes: int | onnx.TensorProto) -> str:
        made = f"{name}/{what}"
        added = helper.make_node(kind, inputs, [made])
        added.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        nodes.append(added)
        return made

    def constant(array: Any, what: str) -> str:
        return add("Constant", [], what, value=numpy_helper.from_array(np.asarray(array)))

    if not source.is_float32:
        value = add("Cast", [value], "cast", to=_FLOAT)
    if source.column:
        value = add("Reshape", [value, constant(np.array([-1, 1], np.int64), "shape")], "column")
        one = constant(np.array([[1.0]], np.float32), "one")
        zero = constant(np.array([[0.0]], np.float32), "zero")
        first = add("Sub", [one, value], "first") if source.probabilities else add("Mul", [value, zero], "first")
        value = add("Concat", [first, value], "both", axis=1)
    if source.probabilities:
        # Clip has attributes before operator set 11, and cannot be told a dtype it does not take; Max does not
        # broadcast before 8. |p| + least is the same within float32 for all but the least.
        value = add("Abs", [value], "absolute")
        value = add("Add", [value, constant(np.array([[LEAST_PROBABILITY]], np.float32), "least")], "positive")
        value = add("Log", [value], "log")
    return value


def _is_value(graph: onnx.GraphProto, name: str) -> bool:
    """True if a value inside, not an input, has the name."""
    made = {each for node in graph.node for each in node.output}
    return name in made or any(each.name == name for each in graph.initializer)


def _all_nodes(graph: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _nodes(graph.graph.node)
    for function in graph.functions:
        yield from _nodes(function.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner.node)


def _rename(graph: onnx.GraphProto, old: str, new: str, *, inner: bool = False) -> None:
    """Args:
    inner: it is the graph of a node, whose outputs are values like any other.
    """
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:
            for each in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(each, old, new, inner=True)
    for value in (*graph.initializer, *graph.value_info, *(graph.output if inner else ())):
        if value.name == old:
            value.name = new
