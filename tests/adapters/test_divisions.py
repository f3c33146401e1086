"""Integer divisions of imported graphs end no process, whatever is divided, and give what they gave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from plaudit.adapters.runtime.divisions import guard_divisions
from plaudit.adapters.runtime.graph_file import CannotImport

TYPES = {"int64": TensorProto.INT64, "int32": TensorProto.INT32}


def model(nodes: list[onnx.NodeProto], dtype: str, *, opset: int = 17, **more: Any) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TYPES[dtype], ["n"]) for name in ("a", "b")]
    output = helper.make_tensor_value_info("y", TYPES[dtype], ["n"])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output], more.pop("initializer", [])),
        opset_imports=opsets, ir_version=8, **more,
    )  # fmt: skip


def inner(nodes: list[onnx.NodeProto], dtype: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "inner", [], [helper.make_tensor_value_info("z", TYPES[dtype], ["n"])])


def plain(dtype: str) -> onnx.ModelProto:
    return model([helper.make_node("Div", ["a", "b"], ["y"])], dtype)


def of_inner_values(dtype: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Abs", ["a"], ["p"]),
        helper.make_node("Neg", ["p"], ["q"]),
        helper.make_node("Min", ["a", "q"], ["r"]),
        helper.make_node("Div", ["r", "b"], ["y"]),
    ]
    return model(nodes, dtype)


def in_a_branch(dtype: str) -> onnx.ModelProto:
    divides = inner([helper.make_node("Div", ["a", "b"], ["z"])], dtype)
    adds = inner([helper.make_node("Add", ["a", "b"], ["z"])], dtype)
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    branch = helper.make_node("If", ["yes"], ["y"], then_branch=divides, else_branch=adds)
    return model([branch], dtype, initializer=[yes])


def in_a_function(dtype: str) -> onnx.ModelProto:
    body = [helper.make_node("Div", ["x", "d"], ["q"])]
    function = helper.make_function("local", "Half", ["x", "d"], ["q"], body, [helper.make_opsetid("", 17)])
    return model([helper.make_node("Half", ["a", "b"], ["y"], domain="local")], dtype, functions=[function])


GRAPHS = (plain, of_inner_values, in_a_branch, in_a_function)
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
dtype = numpy.dtype(sys.argv[2])
low = numpy.iinfo(dtype).min
inputs = {"a": numpy.array([low, low, 7], dtype), "b": numpy.array([-1, 2, -2], dtype)}
print(session.run(None, inputs)[0].tolist())
"""


def run(path: Path, dtype: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which ends of it where nothing is mended."""
    return subprocess.run([sys.executable, "-c", RUN, str(path), dtype], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("make", GRAPHS)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_smallest_integer_by_minus_one_wraps(make: Any, dtype: str, tmp_path: Path) -> None:
    """As torch has had it: https://github.com/pytorch/pytorch/issues/184406."""
    graph = make(dtype)
    guard_divisions(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, tmp_path / "guarded.onnx")
    low = int(np.iinfo(dtype).min)
    last = -7 if make is of_inner_values else 7
    done = run(tmp_path / "guarded.onnx", dtype)
    assert done.stdout.strip() == str([low, low // 2, -3 if last == 7 else 3]), done


def test_without_it_the_process_ends(tmp_path: Path) -> None:
    onnx.save(plain("int64"), tmp_path / "plain.onnx")
    done = run(tmp_path / "plain.onnx", "int64")
    if done.returncode == 0:
        pytest.skip("this ONNX Runtime or processor does not trap; the guard is not needed any more")
    assert done.returncode < 0


def test_quotients_stay_as_they_were_and_zero_is_an_error() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-(2**62), 2**62, 500)
    b = rng.integers(-20, 21, 500)
    b[b == 0] = 1
    guarded = plain("int64")
    guard_divisions(guarded)
    one, other = (
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        for each in (plain("int64"), guarded)
    )
    np.testing.assert_array_equal(one.run(None, {"a": a, "b": b})[0], other.run(None, {"a": a, "b": b})[0])
    with pytest.raises(Exception, match="division by zero"):
        other.run(None, {"a": a[:1], "b": np.zeros(1, np.int64)})


@pytest.mark.parametrize("value", [2, -2])
def test_a_constant_divisor_needs_no_guard(value: int) -> None:
    constant = helper.make_tensor("c", TensorProto.INT64, [1], [value])
    graph = model([helper.make_node("Div", ["a", "c"], ["y"])], "int64", initializer=[constant])
    before = graph.SerializeToString()
    guard_divisions(graph)
    assert graph.SerializeToString() == before


def test_divisions_of_numbers_that_are_no_integers_stay() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b", "y")]
    node = helper.make_node("Div", ["a", "b"], ["y"])
    graph = helper.make_model(helper.make_graph([node], "g", values[:2], values[2:]))
    before = graph.SerializeToString()
    guard_divisions(graph)
    assert graph.SerializeToString() == before


def test_an_operator_set_without_sign_is_refused() -> None:
    graph = model([helper.make_node("Div", ["a", "b"], ["y"])], "int64", opset=8)
    with pytest.raises(CannotImport, match="operator set 9 or newer"):
        guard_divisions(graph)
