"""Runs end at the deadline of their callers, whatever loop a graph is in."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plaudit.adapters.runtime.session import CPU, Graph
from plaudit.core.errors import Expired, RunStopped


@pytest.fixture
def loop(tmp_path: Path) -> Graph:
    """x int64 [batch] → y, the same, after as many turns of a loop as the largest x."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Add", ["sum", "one"], ["more"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.INT64, []),
        ],
        [numpy_helper.from_array(np.array(1), "one")],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["turns"], keepdims=0),
        helper.make_node("Loop", ["turns", "yes", "zero"], ["sum"], body=body),
        helper.make_node("Sub", ["sum", "turns"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch"])],
        [numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(0), "zero")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "loop.onnx"
    )
    return Graph(tmp_path / "loop.onnx", [(CPU, {})], threads=1)


def test_a_run_that_would_not_end_is_ended_at_the_deadline(loop: Graph) -> None:
    """https://github.com/yalue/onnxruntime_go/issues/119"""
    with pytest.raises(RunStopped, match=r"the model was still computing after .* s, when it was stopped") as stopped:
        loop.run(["y"], {"x": np.array([2**62])}, time.monotonic() + 0.1)
    assert isinstance(stopped.value, Expired)
    (y,) = loop.run(["y"], {"x": np.array([3, 1])}, time.monotonic() + 60)  # and it goes on
    assert y.tolist() == [3, 1]


def test_a_run_without_a_deadline_ends_too(loop: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.adapters.runtime.watchdog.MAX_RUN_S", 0.1)
    with pytest.raises(RunStopped):
        loop.run(["y"], {"x": np.array([2**62])})


def test_an_error_of_the_graph_stays_what_it_is(loop: Graph) -> None:
    with pytest.raises(Exception, match="Unexpected input data type"):
        loop.run(["y"], {"x": np.zeros(1, np.float32)})
