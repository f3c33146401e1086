"""Integer divisions of a foreign graph, made safe: the smallest integer by -1 ends the process on x86.

ONNX Runtime refuses to divide by zero, in an error like any other, but hands -2⁶³ / -1 to the processor, which raises
SIGFPE. Where both come from a request, one request would end the service. With s = sign(d), a/d = (a·s)/(d·s), and d·s
is -1 never; -2⁶³ · -1 wraps to -2⁶³, which is what the quotient wraps to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, shape_inference

from plaudit.adapters.runtime.graph_file import CannotImport

_TRAPPING: Final = frozenset([onnx.TensorProto.INT32, onnx.TensorProto.INT64])
"""Types whose division traps; shorter ones are widened by the processor."""
_SIGN_OPSET: Final = 9
"""Operator set in which Sign came."""
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")


def guard_divisions(graph: onnx.ModelProto) -> None:
    """Change divisions whose divisor may be -1; graphs that have none stay as they are.

    Raises:
        CannotImport: the graph's operator set has no way to say it.
    """
    if any(_divides(node) for function in graph.functions for node in function.node):
        graph.CopyFrom(inliner.inline_local_functions(graph))
    if not any(_divides(node) for each in _graphs(graph.graph) for node in each.node):
        return
    types = _types(graph)
    constants = _constants(graph.graph)
    for each in list(_graphs(graph.graph)):
        _guard(each, graph, types, constants)


def _guard(
    graph: onnx.GraphProto, model: onnx.ModelProto, types: Mapping[str, int], constants: Mapping[str, onnx.TensorProto]
) -> None:
    nodes = list(graph.node)
    guarded = []
    for node in nodes:
        if _divides(node):
            dividend, divisor = node.input
            known = constants.get(divisor)
            is_integer = any(types.get(name) in _TRAPPING for name in (dividend, divisor, node.output[0]))
            if is_integer and (known is None or bool(np.any(numpy_helper.to_array(known) == -1))):
                _check_opset(model, node)
                made = f"{node.output[0]}/guard"
                guarded += [
                    helper.make_node("Sign", [divisor], [f"{made}/sign"]),
                    helper.make_node("Mul", [dividend, f"{made}/sign"], [f"{made}/dividend"]),
                    helper.make_node("Mul", [divisor, f"{made}/sign"], [f"{made}/divisor"]),
                ]
                node.input[:] = [f"{made}/dividend", f"{made}/divisor"]
        guarded.append(node)
    if len(guarded) > len(nodes):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in guarded]
        del graph.node[:]
        graph.node.extend(copies)


def _check_opset(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    version = max((each.version for each in model.opset_import if each.domain in _DEFAULT_DOMAINS), default=0)
    if version < _SIGN_OPSET:
        raise CannotImport(
            f"node {node.name!r}: divides integers, which in operator set {version} cannot be done safely: the "
            f"smallest integer by -1 would end the service; export the graph with operator set {_SIGN_OPSET} or newer"
        )


def _divides(node: onnx.NodeProto) -> bool:
    return node.op_type == "Div" and node.domain in _DEFAULT_DOMAINS and len(node.input) == 2


def _types(graph: onnx.ModelProto) -> Mapping[str, int]:
    """Element types by name of a value, as far as they can be inferred."""
    try:
        inferred = shape_inference.infer_shapes(graph)
    except Exception:  # a graph that ONNX Runtime knows more about, or one of more than 2 GB
        inferred = graph
    types: dict[str, int] = {}
    for each in _graphs(inferred.graph):
        for value in (*each.input, *each.output, *each.value_info):
            if value.type.HasField("tensor_type"):
                types[value.name] = value.type.tensor_type.elem_type
        types |= {constant.name: constant.data_type for constant in each.initializer}
    return types


def _constants(graph: onnx.GraphProto) -> Mapping[str, onnx.TensorProto]:
    """Small constants by name; of an initializer that is an input too a request might give another."""
    found: dict[str, onnx.TensorProto] = {}
    for each in _graphs(graph):
        given = {value.name for value in each.input}
        found |= {
            value.name: value
            for value in each.initializer
            if value.name not in given and value.data_location != onnx.TensorProto.EXTERNAL
        }
        for node in each.node:
            value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
            if node.op_type == "Constant" and value is not None:
                found[node.output[0]] = value
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those of its nodes, such as branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner: Iterable[onnx.GraphProto] = (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
            for each in inner:
                yield from _graphs(each)
