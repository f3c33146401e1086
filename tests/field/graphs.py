"""Small graphs as public reports describe them, each with what is to become of it.

``address`` is a report in which people met the like; a case without one is of our own making. Everything here is made
with the package onnx alone, in milliseconds; graphs by exporters and converters are in ``exporters.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, npt.NDArray[Any]]
Axes = Sequence[int | str | None]

WEIGHTS = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [0.5, 0.5, 0.0], [-1.0, 0.0, 1.0]], np.float32)  # [4, 3]
X = np.array([[1.0, 2.0, 0.5, 0.0], [0.0, 1.0, -1.0, 2.0], [3.0, 0.25, 1.0, 1.0]], np.float32)  # [3, 4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file, and what is to become of it.

    Attributes:
        make: writes it into a folder.
        options: of the import.
        rows: inputs to ask with, ``[b, …]`` by name.
        scores: the graph's output that the scores of the actions come from.
        notes: patterns of what is to be said at the import; everything that is said must be expected.
        refused: pattern of the reason, where it cannot be served.
        own_answer: what the file gives for one row, where ONNX Runtime itself cannot load it as it is.
    """

    name: str
    make: Callable[[Path], Path]
    address: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: Arrays = field(default_factory=lambda: {"x": X})
    scores: str = "logits"
    notes: Sequence[str] = ()
    refused: str = ""
    own_answer: Callable[[Arrays], dict[str, npt.NDArray[Any]]] | None = None


def value(name: str, kind: int, axes: Axes | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, axes)


def saved(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    constants: Arrays | None = None,
    opset: int = 17,
    ml: int = 0,
    ir: int = 9,
    constants_are_inputs: bool = False,
) -> Path:
    """A file of these nodes; x [batch, 4] → logits [batch, 3] unless told otherwise."""
    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {"W": WEIGHTS}).items()]
    graph_inputs = list(inputs or [value("x", TensorProto.FLOAT, ["batch", 4])])
    if constants_are_inputs:
        graph_inputs += [value(each.name, each.data_type, list(each.dims)) for each in initializers]
    graph = helper.make_graph(
        nodes, "g", graph_inputs, outputs or [value("logits", TensorProto.FLOAT, ["batch", 3])], initializers
    )
    domains = [("", opset)] * bool(opset) + [("ai.onnx.ml", ml)] * bool(ml)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*each) for each in domains], ir_version=ir)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


LINEAR = node("MatMul", "x W", "logits")


def of_dtype(dtype: str) -> Callable[[Path], Path]:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def make(folder: Path) -> Path:
        return saved(
            folder,
            [node("Cast", "x", "f", to=TensorProto.FLOAT), node("MatMul", "f W", "logits")],
            inputs=[value("x", kind, ["batch", 4])],
        )

    return make


def in_dtype(dtype: str) -> Callable[[Path], Path]:
    """All of the graph computes in one dtype of floating point."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def make(folder: Path) -> Path:
        return saved(
            folder,
            [LINEAR],
            inputs=[value("x", kind, ["batch", 4])],
            outputs=[value("logits", kind, ["batch", 3])],
            constants={"W": WEIGHTS.astype(dtype)},
        )

    return make


def declared(inputs: Axes | None = ("batch", 4), outputs: Axes | None = ("batch", 3)) -> Callable[[Path], Path]:
    """A linear graph whose declared axes are these."""

    def make(folder: Path) -> Path:
        return saved(
            folder,
            [LINEAR],
            inputs=[value("x", TensorProto.FLOAT, inputs)],
            outputs=[value("logits", TensorProto.FLOAT, outputs)],
        )

    return make


def two_columns(folder: Path) -> Path:
    nodes = [
        node("Unsqueeze", "age axis", "a"),
        node("Unsqueeze", "fare axis", "b"),
        node("Concat", "a b", "x", axis=1),
        node("MatMul", "x W", "logits"),
    ]
    columns = [value("age", TensorProto.FLOAT, ["N"]), value("fare", TensorProto.FLOAT, ["N"])]
    return saved(folder, nodes, inputs=columns, constants={"W": WEIGHTS[:2], "axis": np.array([1])})


def column_names(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        columns = [value(name, TensorProto.FLOAT, [None, 1]) for name in names]
        nodes = [helper.make_node("Concat", list(names), ["x"], axis=1), LINEAR]
        return saved(folder, nodes, inputs=columns, constants={"W": WEIGHTS[: len(names)]})

    return make


def with_scalar_output(folder: Path) -> Path:
    outputs = [value("logits", TensorProto.FLOAT, ["batch", 3]), value("logit_scale", TensorProto.FLOAT, [])]
    nodes = [LINEAR, node("Exp", "s", "logit_scale")]
    return saved(folder, nodes, outputs=outputs, constants={"W": WEIGHTS, "s": np.array(1.0, np.float32)})


def padded(folder: Path) -> Path:
    nodes = [
        LINEAR,
        node("ReduceMax", "lens", "most", keepdims=1),
        node("Shape", "lens", "b"),
        node("Concat", "b most", "shape", axis=0),
        node("ConstantOfShape", "shape", "tokens"),
    ]
    inputs = [value("x", TensorProto.FLOAT, ["batch", 4]), value("lens", TensorProto.INT64, ["batch"])]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", 3]), value("tokens", TensorProto.FLOAT, ["batch", "n"])]
    return saved(folder, nodes, inputs=inputs, outputs=outputs)


def least_length(folder: Path) -> Path:
    nodes = [
        node("Unsqueeze", "samples axis", "signal"),
        node("Conv", "signal kernel", "wave", strides=[10]),
        node("GlobalAveragePool", "wave", "mean"),
        node("Flatten", "mean", "features"),
        node("MatMul", "features W", "logits"),
    ]
    kernel = np.linspace(-1, 1, 4 * 40, dtype=np.float32).reshape(4, 1, 40)
    return saved(
        folder,
        nodes,
        inputs=[value("samples", TensorProto.FLOAT, ["batch", "length"])],
        constants={"W": WEIGHTS, "kernel": kernel, "axis": np.array([1])},
    )


def classifier(*, zipmap: str = "", label_axes: Axes = (None,), only_ml: bool = False, ir: int = 9) -> Any:
    """LinearClassifier as converters write it: a label, and probabilities or a map of them."""

    def make(folder: Path) -> Path:
        labels: dict[str, Any] = {"classlabels_ints": [0, 1, 2]}
        if zipmap == "strings":
            labels = {"classlabels_strings": ["cat", "dog", "crane"]}
        kind = TensorProto.STRING if zipmap == "strings" else TensorProto.INT64
        coefficients = WEIGHTS.T.ravel().tolist()
        nodes = [
            helper.make_node(
                "LinearClassifier",
                ["x"],
                ["label", "probabilities" if not zipmap else "p"],
                domain="ai.onnx.ml",
                coefficients=coefficients,
                intercepts=[0.0, 0.1, 0.2],
                post_transform="SOFTMAX",
                **labels,
            )
        ]
        outputs = [value("label", kind, label_axes), value("probabilities", TensorProto.FLOAT, [None, 3])]
        if zipmap:
            attribute = (
                {"classlabels_strings": labels.get("classlabels_strings")}
                if zipmap == "strings"
                else {"classlabels_int64s": labels["classlabels_ints"]}
            )
            nodes.append(helper.make_node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", **attribute))
            key = TensorProto.STRING if zipmap == "strings" else TensorProto.INT64
            of_floats = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
            maps = helper.make_sequence_type_proto(helper.make_map_type_proto(key, of_floats))
            outputs[1] = helper.make_value_info("probabilities", maps)
        inputs = [value("x", TensorProto.FLOAT, [None, 4])]
        return saved(
            folder, nodes, inputs=inputs, outputs=outputs, constants={}, opset=0 if only_ml else 9, ml=1, ir=ir
        )

    return make


def tree_with_missing(folder: Path) -> Path:
    """x[0] ≤ 1, or missing: (0.8, 0.1, 0.1); otherwise (0.2, 0.3, 0.5)."""
    tree = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[1.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[1, 0, 0],
        class_treeids=[0] * 6,
        class_nodeids=[1, 1, 1, 2, 2, 2],
        class_ids=[0, 1, 2, 0, 1, 2],
        class_weights=[0.8, 0.1, 0.1, 0.2, 0.3, 0.5],
        classlabels_int64s=[0, 1, 2],
        post_transform="NONE",
    )
    outputs = [value("label", TensorProto.INT64, [None]), value("probabilities", TensorProto.FLOAT, [None, 3])]
    inputs = [value("x", TensorProto.FLOAT, [None, 4])]
    return saved(folder, [tree], inputs=inputs, outputs=outputs, constants={}, opset=9, ml=1)


def old_opset(folder: Path) -> Path:
    nodes = [node("MatMul", "x W", "scores"), node("Softmax", "scores", "prob", axis=1)]
    outputs = [value("prob", TensorProto.FLOAT, ["N", 3])]
    return saved(folder, nodes, outputs=outputs, opset=7, ir=3, constants_are_inputs=True)


def quantized(folder: Path) -> Path:
    """x is quantized with one scale for the whole batch, as onnxruntime.quantization.quantize_dynamic does it."""
    nodes = [
        node("DynamicQuantizeLinear", "x", "q scale zero"),
        node("MatMulInteger", "q W zero wzero", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f scale", "g"),
        node("Mul", "g wscale", "logits"),
    ]
    constants: Arrays = {
        "W": np.round(WEIGHTS * 50).astype(np.int8),
        "wzero": np.array(0, np.int8),
        "wscale": np.array(1 / 50, np.float32),
    }
    return saved(folder, nodes, constants=constants)


def batch_baked_in(folder: Path) -> Path:
    """The exporter wrote the example's batch into a Reshape: several rows become one."""
    nodes = [node("Reshape", "x shape", "one"), node("MatMul", "one W", "logits")]
    return saved(folder, nodes, constants={"W": WEIGHTS, "shape": np.array([1, 4])})


def batch_baked_in_quietly(folder: Path) -> Path:
    """The same, where several rows give one: the first."""
    nodes = [
        node("Slice", "x zero one axis", "first"),
        node("MatMul", "first W", "logits"),
    ]
    constants = {"W": WEIGHTS, "zero": np.array([0]), "one": np.array([1]), "axis": np.array([0])}
    return saved(folder, nodes, constants=constants)


def one_sigmoid(axes: Axes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        nodes = [node("MatMul", "x w", "z"), node("Sigmoid", "z", "p" if len(axes) == 2 else "q")]
        if len(axes) == 1:
            nodes.append(node("Squeeze", "q axis", "p"))
        constants = {"w": WEIGHTS[:, :1], "axis": np.array([1])}
        return saved(folder, nodes, outputs=[value("p", TensorProto.FLOAT, axes)], constants=constants)

    return make


def of_vocabulary(folder: Path) -> Path:
    """Token ids of any length → mean of their vectors, of 50 words."""
    nodes = [
        node("Gather", "words tokens", "vectors"),
        node("ReduceMean", "vectors", "mean", axes=[1], keepdims=0),
        node("MatMul", "mean W", "logits"),
    ]
    words = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    tokens = [value("tokens", TensorProto.INT64, ["batch", "length"])]
    return saved(folder, nodes, inputs=tokens, constants={"W": WEIGHTS, "words": words}, opset=13)


def named_embedding(folder: Path) -> Path:
    outputs = [value("logits", TensorProto.FLOAT, ["batch", 3]), value("embedding", TensorProto.FLOAT, ["batch", 4])]
    return saved(folder, [node("Tanh", "x", "embedding"), node("MatMul", "embedding W", "logits")], outputs=outputs)


def double_probabilities(folder: Path) -> Path:
    nodes = [node("MatMul", "x W", "z"), node("Softmax", "z", "p", axis=1)]
    return saved(
        folder,
        nodes,
        inputs=[value("x", TensorProto.DOUBLE, ["batch", 4])],
        outputs=[value("p", TensorProto.DOUBLE, ["batch", 3])],
        constants={"W": WEIGHTS.astype(np.float64)},
    )


def inner_graph(folder: Path) -> Path:
    """Weights inside a branch, in a data file beside the graph."""
    then = helper.make_graph([node("MatMul", "x V", "a")], "then", [], [value("a", TensorProto.FLOAT, None)],
                             [numpy_helper.from_array(WEIGHTS, "V")])  # fmt: skip
    other = helper.make_graph([node("MatMul", "x U", "b")], "else", [], [value("b", TensorProto.FLOAT, None)],
                              [numpy_helper.from_array(-WEIGHTS, "U")])  # fmt: skip
    branch = helper.make_node("If", ["yes"], ["logits"], then_branch=then, else_branch=other)
    path = saved(folder, [branch], constants={"yes": np.array(True)})
    return external(folder, path)


def external(folder: Path, path: Path, location: str = "m.onnx_data") -> Path:
    """Move all constants, those of inner graphs too, into a data file."""
    model = onnx.load(path)
    data = bytearray()

    def move(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            raw = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, text in (("location", location), ("offset", str(len(data))), ("length", str(len(raw)))):
                tensor.external_data.add(key=key, value=text)
            data.extend(raw)
        for each in graph.node:
            for attribute in each.attribute:
                if attribute.HasField("g"):
                    move(attribute.g)

    move(model.graph)
    if "/" not in location:
        (folder / location).write_bytes(bytes(data))
    path.write_bytes(model.SerializeToString())
    return path


def linear_with_data(folder: Path) -> Path:
    return external(folder, saved(folder, [LINEAR]))


def hugging_face_cache(*, links: bool) -> Callable[[Path], Path]:
    """snapshots/…/onnx/model.onnx and its data, both links into blobs; without links, the links' texts."""

    def make(folder: Path) -> Path:
        linear_with_data(folder)
        blobs, snapshot = folder / "blobs", folder / "snapshots" / "abd2878d52a6" / "onnx"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        for name, blob in (("m.onnx", "c6edb929bf34"), ("m.onnx_data", "b879fe4b946c")):
            (folder / name).rename(blobs / blob)
            target = f"../../../blobs/{blob}"
            os.symlink(target, snapshot / name) if links else (snapshot / name).write_text(target)
        return snapshot / "m.onnx"

    return make


def data_of_a_neighbour(folder: Path) -> Path:
    """Its data is a link to a file elsewhere, such as a secret."""
    inside = folder / "model"
    inside.mkdir()
    path = linear_with_data(inside)
    (inside / "m.onnx_data").rename(folder / "secret")
    os.symlink(folder / "secret", inside / "m.onnx_data")
    return path


def data_at(location: str) -> Callable[[Path], Path]:
    return lambda folder: external(folder, saved(folder, [LINEAR]), location)


def without_its_data(folder: Path) -> Path:
    path = linear_with_data(folder)
    (folder / "m.onnx_data").unlink()
    return path


def with_half_its_data(folder: Path) -> Path:
    path = linear_with_data(folder)
    data = folder / "m.onnx_data"
    data.write_bytes(data.read_bytes()[:20])
    return path


def text_file(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "m.onnx").write_text(text)
        return folder / "m.onnx"

    return make


def strings(folder: Path) -> Path:
    nodes = [
        helper.make_node(
            "LabelEncoder", ["sex"], ["code"], domain="ai.onnx.ml", keys_strings=["m", "f"], values_floats=[0.0, 1.0]
        ),
        node("MatMul", "code w", "logits"),
    ]
    inputs = [value("sex", TensorProto.STRING, [None, 1])]
    return saved(folder, nodes, inputs=inputs, constants={"w": WEIGHTS[:1]}, ml=2)


def optional_input(folder: Path) -> Path:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 4])
    mask = helper.make_value_info("mask", helper.make_optional_type_proto(tensor))
    inputs = [value("x", TensorProto.FLOAT, ["batch", 4]), mask]
    return saved(folder, [node("OptionalHasElement", "mask", "has"), LINEAR], inputs=inputs)


def sequence_input(folder: Path) -> Path:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 4])
    parts = helper.make_value_info("parts", helper.make_sequence_type_proto(tensor))
    nodes = [node("ConcatFromSequence", "parts", "x", axis=0), LINEAR]
    return saved(folder, nodes, inputs=[parts])


def recurrent_state(folder: Path) -> Path:
    """As a voice detector has it: a state whose first axis is the layers, and a scalar rate."""
    inputs = [
        value("x", TensorProto.FLOAT, ["batch", 4]),
        value("state", TensorProto.FLOAT, [2, "batch", 64]),
    ]
    return saved(folder, [LINEAR, node("Neg", "state", "next")], inputs=inputs)


def scalar_input(folder: Path) -> Path:
    inputs = [value("x", TensorProto.FLOAT, ["batch", 4]), value("sr", TensorProto.INT64, [])]
    return saved(folder, [LINEAR, node("Neg", "sr", "no")], inputs=inputs)


def dropout_in_training(folder: Path) -> Path:
    nodes = [node("Dropout", "x ratio training", "y"), node("MatMul", "y W", "logits")]
    constants: Arrays = {"W": WEIGHTS, "ratio": np.array(0.5, np.float32), "training": np.array(True)}
    return saved(folder, nodes, constants=constants)


def custom_operator(folder: Path) -> Path:
    nodes = [helper.make_node("BertTokenizer", ["x"], ["y"], domain="ai.onnx.contrib"), node("MatMul", "y W", "logits")]
    path = saved(folder, nodes)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    path.write_bytes(model.SerializeToString())
    return path


def of_future_opset(folder: Path) -> Path:
    return saved(folder, [LINEAR], opset=999)


def scores_of_tokens(folder: Path) -> Path:
    nodes = [node("Unsqueeze", "x axis", "tokens"), node("MatMul", "tokens W", "logits")]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", 1, 3])]
    return saved(folder, nodes, outputs=outputs, constants={"W": WEIGHTS, "axis": np.array([1])})


def batch_is_second(folder: Path) -> Path:
    nodes = [node("ReduceMean", "x", "mean", axes=[0], keepdims=0), node("MatMul", "mean W", "logits")]
    return saved(
        folder,
        nodes,
        inputs=[value("x", TensorProto.FLOAT, ["steps", "batch", 4])],
        opset=13,
    )


def linear(inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    return {"logits": inputs["x"] @ WEIGHTS}


CASES = [
    # --- shapes ---
    Case(
        name="columns",
        make=two_columns,
        address="https://github.com/microsoft/onnxruntime/issues/3890",
        rows={"age": X[:, 0], "fare": X[:, 1]},
    ),
    Case(
        name="least-length",
        make=least_length,
        address="https://github.com/triton-inference-server/server/issues/8156",
        rows={"samples": np.linspace(-1, 1, 300, dtype=np.float32).reshape(3, 100)},
    ),
    Case(
        name="batch-of-1",
        make=declared((1, 4), (1, 3)),
        address="https://github.com/triton-inference-server/server/issues/4445",
        notes=[r"rows are served one by one, as its batch is fixed to 1"],
    ),
    Case(
        name="batch-of-2",
        own_answer=linear,
        make=declared((2, 4), (2, 3)),
        address="https://github.com/triton-inference-server/onnxruntime_backend/issues/88",
        notes=["its batch is fixed to 2: fewer rows are filled up"],
    ),
    Case(
        name="baked",
        make=batch_baked_in,
        address="https://github.com/triton-inference-server/server/issues/5866",
        notes=["rows are served one by one, as it rejects more than one row"],
    ),
    Case(
        name="baked-quietly",
        make=batch_baked_in_quietly,
        address="https://github.com/triton-inference-server/server/issues/5334",
        notes=["rows are served one by one, as it gives rows only one by one"],
    ),
    Case(
        name="unknown-width",
        make=declared(outputs=("batch", "classes")),
        address="https://github.com/triton-inference-server/onnxruntime_backend/issues/165",
        options={"actions": ("a", "b", "c")},
    ),
    Case(name="unknown-rank", make=declared(outputs=None)),
    Case(
        name="wrong-batch-of-output",
        make=declared(outputs=(1, 3)),
        address="https://github.com/onnx/onnxmltools/pull/681",
    ),
    Case(
        name="input-is-output",
        make=lambda folder: saved(
            folder,
            [LINEAR],
            outputs=[value("logits", TensorProto.FLOAT, ["batch", 3]), value("x", TensorProto.FLOAT, ["batch", 4])],
        ),
        options={"logits": "logits"},
    ),
    Case(name="zero-axes", own_answer=linear, make=declared((0, 4), (0, 3))),
    Case(
        name="unnamed-axes",
        make=declared((None, None), (None, None)),
        address="https://github.com/triton-inference-server/server/issues/7462",
    ),
    Case(name="rank-by-golden", make=declared(inputs=None), options={"golden": {"x": X}}),
    Case(
        name="vocabulary",
        make=of_vocabulary,
        address="https://github.com/microsoft/onnxruntime/issues/2080",
        rows={"tokens": np.array([[1, 2, 3], [49, 0, 7]])},
    ),
    # --- dtypes ---
    *(
        Case(
            name=f"in-{dtype}",
            make=of_dtype(dtype),
            address="https://github.com/microsoft/onnxruntime/issues/4787",
            rows={"x": np.array([[1, 0, 1, 0], [0, 0, 1, 1]], dtype)},
        )
        for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "float64")
    ),
    *(
        Case(
            name=f"all-{dtype}",
            make=in_dtype(dtype),
            address="https://github.com/microsoft/onnxruntime/issues/3890",
            rows={"x": X.astype(dtype)},
        )
        for dtype in ("float16", "float64")
    ),
    Case(
        name="double-probabilities",
        make=double_probabilities,
        address="https://github.com/onnx/sklearn-onnx/issues/785",
        rows={"x": X.astype(np.float64)},
        scores="p",
        notes=["output 'p' is taken for probabilities, as its rows sum to 1"],
    ),
    # --- converters ---
    Case(
        name="label-of-1",
        make=classifier(label_axes=[1]),
        address="https://github.com/onnx/sklearn-onnx/issues/312",
        scores="probabilities",
        notes=["output 'probabilities' is taken for probabilities"],
    ),
    Case(
        name="zipmap-ints",
        make=classifier(zipmap="ints"),
        address="https://github.com/triton-inference-server/server/issues/3798",
        scores="probabilities",
        notes=["output 'probabilities' is taken for probabilities"],
    ),
    Case(
        name="zipmap-strings",
        make=classifier(zipmap="strings"),
        address="https://github.com/sonos/tract/issues/1262",
        scores="probabilities",
        notes=["output 'probabilities' is taken for probabilities", "output 'label' is left out: it holds strings"],
    ),
    Case(
        name="ml-operators-alone",
        make=classifier(only_ml=True),
        address="https://github.com/onnx/onnxmltools/issues/783",
        scores="probabilities",
        notes=["output 'probabilities' is taken for probabilities"],
    ),
    Case(
        name="missing-values",
        make=tree_with_missing,
        address="https://github.com/onnx/sklearn-onnx/issues/1253",
        rows={"x": np.array([[np.nan, 0, 0, 0], [2, np.nan, 0, 0], [0, 0, 0, 0]], np.float32)},
        scores="probabilities",
        notes=["output 'probabilities' is taken for probabilities"],
    ),
    Case(
        name="names-of-columns",
        make=column_names("sepal length (cm)", "home.dest", "年齢", "fare-£"),
        address="https://github.com/onnx/sklearn-onnx/pull/697",
        rows={name: X[:, i : i + 1] for i, name in enumerate(["sepal length (cm)", "home.dest", "年齢", "fare-£"])},
    ),
    Case(
        name="one-sigmoid",
        make=one_sigmoid(["batch", 1]),
        address="https://github.com/onnx/sklearn-onnx/issues/1135",
        options={"actions": ("no", "yes"), "probabilities": True},
        scores="p",
    ),
    Case(
        name="one-sigmoid-squeezed",
        make=one_sigmoid(["batch"]),
        address="https://github.com/ReX-XAI/ReX/issues/3",
        options={"actions": ("no", "yes"), "probabilities": True},
        scores="p",
    ),
    Case(
        name="opset-7",
        make=old_opset,
        address="https://github.com/kserve/kserve/issues/4489",
        options={"probabilities": True},
        scores="prob",
    ),
    Case(
        name="quantized",
        make=quantized,
        address="https://github.com/microsoft/onnxruntime/issues/10111",
        notes=["rows are served one by one, as a row's scores depend on the other rows of a batch .it is quantized"],
    ),
    Case(
        name="newer-ir",
        own_answer=linear,
        make=lambda folder: saved(folder, [LINEAR], ir=99),
        address="https://github.com/microsoft/onnxruntime/issues/23602",
        notes=["it is of IR version 99, and was read as version"],
    ),
    # --- outputs ---
    Case(
        name="scalar-output",
        make=with_scalar_output,
        address="https://github.com/triton-inference-server/server/issues/2496",
        notes=["output 'logit_scale' is left out: 3 rows gave "],
    ),
    Case(
        name="padded",
        make=padded,
        options={"golden": {"x": X, "lens": np.array([2, 5, 3])}},
        rows={"x": X, "lens": np.array([1, 2, 3])},
        notes=["output 'tokens' is left out: a row of it depends on the other rows"],
    ),
    Case(name="named-embedding", make=named_embedding),
    Case(
        name="an-output-of-bfloat16",
        make=lambda folder: saved(
            folder,
            [LINEAR, node("Cast", "logits", "short", to=TensorProto.BFLOAT16)],
            outputs=[value("logits", TensorProto.FLOAT, ["b", 3]), value("short", TensorProto.BFLOAT16, ["b", 3])],
        ),
        own_answer=linear,
        notes=["output 'short' is left out: it is of BFLOAT16, which numpy has not"],
    ),
    # --- files ---
    Case(
        name="cache-of-links",
        make=hugging_face_cache(links=True),
        address="https://github.com/microsoft/onnxruntime/issues/27353",
    ),
    Case(
        name="cache-without-links",
        own_answer=linear,
        make=hugging_face_cache(links=False),
        address="https://github.com/robertknight/rten/issues/1334",
    ),
    Case(
        name="data-of-inner-graphs",
        own_answer=linear,
        make=inner_graph,
        address="https://github.com/huggingface/sentence-transformers/pull/3913",
    ),
]
"""Served."""

REFUSED = [
    Case(
        name="data-missing",
        make=without_its_data,
        address="https://github.com/MemPalace/mempalace/pull/1667",
        refused="its data file m.onnx_data is not there; put it beside the file",
    ),
    Case(
        name="data-cut-short",
        make=with_half_its_data,
        refused="its data file m.onnx_data ends before constant 'W' does; fetch the whole file",
    ),
    Case(
        name="data-above",
        make=data_at("../../etc/passwd"),
        address="https://github.com/microsoft/onnxruntime/pull/26776",
        refused="its data file '../../etc/passwd' is not in its folder",
    ),
    Case(name="data-at-root", make=data_at("/etc/passwd"), refused="its data file '/etc/passwd' is not in its folder"),
    Case(
        name="data-by-link",
        make=data_of_a_neighbour,
        address="https://github.com/microsoft/onnxruntime/pull/27374",
        refused="its data file m.onnx_data is a link that leaves the folder",
    ),
    Case(
        name="git-lfs",
        make=text_file("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        address="https://github.com/commaai/commavq/issues/12",
        refused="is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    ),
    Case(
        name="a-web-page",
        make=text_file("<!DOCTYPE html><html>Not found</html>"),
        address="https://github.com/levihsu/OOTDiffusion/issues/118",
        refused="is not a readable ONNX file",
    ),
    Case(name="empty-file", make=text_file(""), refused="is not a readable ONNX file .it holds no graph"),
    Case(
        name="strings",
        make=strings,
        address="https://github.com/onnx/sklearn-onnx/issues/125",
        refused="input 'sex': holds strings; only numbers and truth values are served; .* encode them where requests",
    ),
    Case(
        name="optional",
        make=optional_input,
        address="https://github.com/microsoft/onnxruntime/pull/12134",
        refused="input 'mask': is of kind optional; only tensors are served",
    ),
    Case(
        name="sequence",
        make=sequence_input,
        address="https://github.com/NVIDIA/TensorRT/issues/3986",
        refused="input 'parts': is of kind sequence; only tensors are served",
    ),
    Case(
        name="recurrent-state",
        make=recurrent_state,
        address="https://github.com/snakers4/silero-vad/issues/215",
        refused="input 'state': its first axis has the fixed length 2, others have {'x': 'free'}",
    ),
    Case(
        name="nine-axes",
        make=lambda folder: saved(
            folder,
            [node("Reshape", "x shape", "y"), node("MatMul", "y W", "logits")],
            inputs=[value("x", TensorProto.FLOAT, ["batch", *[1] * 8, 4])],
            constants={"W": WEIGHTS, "shape": np.array([-1, 4])},
        ),
        refused="input 'x': has 10 axes; requests have 8 beside the batch",
    ),
    Case(
        name="too-many-columns",
        make=column_names(*(f"c{number}" for number in range(1_025))),
        refused="the graph has 1025 inputs; requests hold 1024 at most; export columns as one input",
    ),
    Case(name="scalar-input", make=scalar_input, refused="input 'sr': is a scalar; its first axis must be the batch"),
    Case(
        name="dropout",
        make=dropout_in_training,
        address="https://github.com/microsoft/onnxruntime/issues/4589",
        refused="output 'logits': gives something else each time it is run; export the graph in evaluation mode",
    ),
    Case(
        name="custom-operator",
        make=custom_operator,
        address="https://github.com/microsoft/onnxruntime/issues/10029",
        refused="operator 'BertTokenizer' of domain 'ai.onnx.contrib': is not built into ONNX Runtime",
    ),
    Case(name="future-opset", make=of_future_opset, refused="ONNX Runtime cannot load the graph: .*opset"),
    Case(
        name="scores-of-tokens",
        make=scores_of_tokens,
        refused=r"none of the outputs can be: 'logits' float32 \[batch, 1, 3\]; it is floats \[batch, actions\]",
    ),
    Case(
        name="batch-is-second",
        make=batch_is_second,
        address="https://github.com/triton-inference-server/server/issues/6969",
        refused="logits: which output scores the actions",
    ),
    Case(
        name="one-value",
        make=one_sigmoid(["batch", 1]),
        refused=r"none of the outputs can be: 'p' float32 \[batch, 1\]",
    ),
    Case(
        name="no-probabilities",
        make=lambda folder: saved(folder, [LINEAR]),
        options={"probabilities": True},
        refused="output 'logits' gives values from .* to .*; these are no probabilities",
    ),
    Case(
        name="reserved-input",
        make=lambda folder: saved(
            folder,
            [node("MatMul", "embedding W", "logits")],
            inputs=[value("embedding", TensorProto.FLOAT, ["batch", 4])],
        ),
        refused="input 'embedding': has a name that is reserved",
    ),
]
"""Refused with the reason."""
