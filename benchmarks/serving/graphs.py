"""The two models that are served: tri-modal transformers with seeded random weights, written as ONNX node by node.

Their answers mean nothing; their cost does: a request takes `small` about 1 ms on one core, `base`
a little less than 10 ms.
Knows nothing about plaudit.

Notation:
    b: batch size, n: tokens, w: width of a token
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

ACTIONS: Final = 20
SHAPES: Final = {"image": (3, 64, 64), "audio": (6400,), "text": (16,)}
"""Shapes of the inputs without the batch axis; together 75 kB a request."""
VOCABULARY: Final = 1000
_HEADS: Final = 4
_PATCH: Final = 8
_FRAME: Final = 400
_OPSET: Final = 18


@dataclass(frozen=True, slots=True)
class Size:
    """Attributes:
    width: of a token.
    layers: of the transformer.
    """

    width: int
    layers: int


SIZES: Final = {"small": Size(width=160, layers=3), "base": Size(width=320, layers=8)}


def transformer(size: Size, seed: int) -> onnx.ModelProto:
    """image ``[b, 3, 64, 64]``, audio ``[b, 6400]``, text ``[b, 16]`` → logits ``[b, 20]``, hidden ``[b, w]``."""
    return _Transformer(size, seed).model()


def request_arrays(rng: np.random.Generator, rows: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Inputs by name, with ``rows`` rows."""
    return {
        "image": rng.random((rows, *SHAPES["image"]), np.float32),
        "audio": rng.standard_normal((rows, *SHAPES["audio"]), np.float32),
        "text": rng.integers(1, VOCABULARY, (rows, *SHAPES["text"])),
    }


class _Transformer:
    def __init__(self, size: Size, seed: int) -> None:
        self._size = size
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        w = self._size.width
        patches = self._add("Conv", "image", self._weights(w, 3, _PATCH, _PATCH), strides=[_PATCH, _PATCH])
        patches = self._add("Reshape", patches, self._shape(0, w, -1))
        frames = self._add("Unsqueeze", "audio", self._shape(1))
        frames = self._add("Conv", frames, self._weights(w, 1, _FRAME), strides=[_FRAME])
        words = self._add("Gather", self._weights(VOCABULARY, w), "text")
        x = self._add(
            "Concat", *(self._add("Transpose", each, perm=[0, 2, 1]) for each in (patches, frames)), words, axis=1
        )
        for _ in range(self._size.layers):
            x = self._layer(x)
        self._add("ReduceMean", self._norm(x), self._shape(1), keepdims=0, output="hidden")
        self._add("MatMul", "hidden", self._weights(w, ACTIONS), output="logits")
        inputs = [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name == "text" else TensorProto.FLOAT, ["b", *shape]
            )
            for name, shape in SHAPES.items()
        ]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", length])
            for name, length in (("logits", ACTIONS), ("hidden", w))
        ]
        graph = helper.make_graph(self._nodes, "transformer", inputs, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _layer(self, x: str) -> str:
        """One pre-norm layer, ``[b, n, w] → [b, n, w]``."""
        w = self._size.width
        mixed = self._add("MatMul", self._norm(x), self._weights(w, 3 * w))
        parts = self._add("Reshape", mixed, self._shape(0, 0, 3, _HEADS, w // _HEADS))  # [b, n, 3, heads, size]
        q, k, v = (self._add("Gather", parts, self._scalar(part), axis=2) for part in range(3))
        q, v = (self._add("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
        k = self._add("Transpose", k, perm=[0, 2, 3, 1])
        scale = self._constant(np.float32((w / _HEADS) ** -0.5))
        attention = self._add("Softmax", self._add("Mul", self._add("MatMul", q, k), scale), axis=-1)
        heads = self._add("Transpose", self._add("MatMul", attention, v), perm=[0, 2, 1, 3])
        heads = self._add("Reshape", heads, self._shape(0, 0, w))
        x = self._add("Add", x, self._add("MatMul", heads, self._weights(w, w)))
        wide = self._add("Relu", self._add("MatMul", self._norm(x), self._weights(w, 4 * w)))
        return self._add("Add", x, self._add("MatMul", wide, self._weights(4 * w, w)))

    def _norm(self, x: str) -> str:
        return self._add("LayerNormalization", x, self._constant(np.ones(self._size.width, np.float32)), axis=-1)

    def _add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def _weights(self, *shape: int) -> str:
        fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        return self._constant(self._rng.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5))

    def _shape(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _scalar(self, value: int) -> str:
        return self._constant(np.array(value, np.int64))

    def _constant(self, array: npt.ArrayLike) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name
