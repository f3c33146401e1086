"""Builds head graphs: embedding and base logits → action scores.

Knows nothing about torch or about where rewards come from. This is the only module outside training that imports onnx.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto, helper

from plaudit_models.spec import BASE_LOGITS, EMBEDDING, SCORES

OPSET: Final = 18
IR_VERSION: Final = 10
"""The newest version that every supported onnxruntime reads."""


def initial_head(embedding_size: int, n_actions: int) -> onnx.ModelProto:
    """The head before any feedback: ``scores`` = ``base_logits``, the policy that pre-training gave."""
    nodes = [helper.make_node("Identity", [BASE_LOGITS], [SCORES])]
    return _model(nodes, [], embedding_size=embedding_size, n_actions=n_actions)


def write_initial_head(path: Path, embedding_size: int, n_actions: int) -> None:
    """Write :func:`initial_head` to ``path``."""
    path.write_bytes(initial_head(embedding_size, n_actions).SerializeToString())


def _model(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], *, embedding_size: int, n_actions: int
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "head",
        inputs=[
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["b", embedding_size]),
            helper.make_tensor_value_info(BASE_LOGITS, TensorProto.FLOAT, ["b", n_actions]),
        ],
        outputs=[helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["b", n_actions])],
        initializer=initializers,
    )
    model = helper.make_model(
        graph, producer_name="plaudit", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model
