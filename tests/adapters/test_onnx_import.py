"""Any ONNX file becomes a version that serves, or a sentence that names what is wrong with it and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from plaudit.adapters.runtime.importer import CannotImport, ImportOptions, import_onnx
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit_models.bundle import CARD, TRUNK_GOLDEN
from plaudit_models.preprocess import Batch
from plaudit_models.spec import OutputSpec, TensorModality

Axes = Sequence[int | str | None]
Tensors = dict[str, tuple[int, Axes]]

WEIGHTS = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], np.float32)  # [2, 3]


def a_graph(
    path: Path,
    *,
    inputs: Tensors | None = None,
    outputs: Tensors | None = None,
    nodes: Sequence[Any] = (),
    external: bool = False,
) -> Path:
    """x [batch, 2] → hidden = x, logits = x·W [batch, 3], unless told otherwise."""
    graph = helper.make_graph(
        nodes
        or [
            helper.make_node("Identity", ["x"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "W"], ["logits"]),
        ],
        "g",
        [
            helper.make_tensor_value_info(name, kind, axes)
            for name, (kind, axes) in (inputs or {"x": (TensorProto.FLOAT, ["batch", 2])}).items()
        ],
        [
            helper.make_tensor_value_info(name, kind, axes)
            for name, (kind, axes) in (outputs or {"logits": (TensorProto.FLOAT, ["batch", 3])}).items()
        ],
        [numpy_helper.from_array(WEIGHTS, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def imported(path: Path, tmp_path: Path, **options: Any) -> Any:
    folder = tmp_path / "version"
    folder.mkdir()
    note = options.pop("note", print)
    manifest = import_onnx(path, "mine", folder, ImportOptions(**options), note)
    return manifest, OnnxRuntime("cpu").load(folder)


@pytest.mark.parametrize("external", [False, True])
def test_a_graph_becomes_a_version_that_computes_the_same(tmp_path: Path, external: bool) -> None:
    file = a_graph(tmp_path / "m.onnx", external=external)
    manifest, model = imported(file, tmp_path, actions=("a", "b", "c"), floor=0.1)
    assert (manifest.kind, manifest.floor, manifest.trainable) == ("imported", 0.1, False)
    assert manifest.spec.modalities == {"x": TensorModality((2,), required=True)}
    assert manifest.spec.outputs == {"logits": OutputSpec("float32", (3,))}
    assert manifest.spec.actions == ("a", "b", "c")
    rows = [{"x": np.array([1.0, 2.0], np.float32)}, {"x": np.array([0.5, 0.0], np.float32)}]
    embedding, base_logits, native = model.trunk(Batch(manifest.spec, 8).fill(rows), ["logits"])
    # [1, 2]·W = [1, 2, 2 − 2]; [.5, 0]·W = [.5, 0, 1]
    np.testing.assert_allclose(base_logits, [[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]])
    np.testing.assert_allclose(embedding, base_logits)  # nothing else was named
    np.testing.assert_allclose(native["logits"], base_logits)
    np.testing.assert_allclose(model.head(embedding, base_logits), base_logits)
    model.warm([1, 2])


def test_every_input_keeps_its_name_dtype_and_free_lengths(tmp_path: Path) -> None:
    file = a_graph(
        tmp_path / "m.onnx",
        inputs={
            "Input.ids:0": (TensorProto.INT32, ["batch", "length"]),
            "flag": (TensorProto.BOOL, ["batch", 1]),
            "half": (TensorProto.FLOAT16, ["batch", 3]),
        },
        nodes=[
            helper.make_node("Constant", [], ["axis"], value=numpy_helper.from_array(np.array([1]))),
            helper.make_node("Cast", ["Input.ids:0"], ["ids"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["ids", "axis"], ["total"], keepdims=1),
            helper.make_node("Cast", ["flag"], ["flags"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["half"], ["halves"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["total", "flags"], ["sum"]),
            helper.make_node("Add", ["sum", "halves"], ["logits"]),
        ],
    )
    manifest, model = imported(file, tmp_path)
    assert manifest.spec.modalities == {
        "Input.ids:0": TensorModality((-1,), dtype="int32", required=True),
        "flag": TensorModality((1,), dtype="bool", required=True),
        "half": TensorModality((3,), dtype="float16", required=True),
    }
    row = {
        "Input.ids:0": np.array([1, 2, 3], np.int32),
        "flag": np.array([True]),
        "half": np.array([0.0, 0.5, 1.0], np.float16),
    }
    # 1 + 2 + 3 + 1 = 7, and the halves
    logits = model.trunk(Batch(manifest.spec, 2).fill([row])).base_logits
    np.testing.assert_allclose(logits, [[7.0, 7.5, 8.0]])
    model.warm([1, 2])


def test_an_embedding_can_be_named_and_inner_values_may_have_our_names(tmp_path: Path) -> None:
    file = a_graph(
        tmp_path / "m.onnx",
        nodes=[
            helper.make_node("Identity", ["x"], ["embedding"]),  # an inner value: not an output
            helper.make_node("Neg", ["embedding"], ["hidden"]),
            helper.make_node("MatMul", ["embedding", "W"], ["logits"]),
        ],
        outputs={"logits": (TensorProto.FLOAT, ["batch", 3]), "hidden": (TensorProto.FLOAT, ["batch", 2])},
    )
    manifest, model = imported(file, tmp_path, logits="logits", embedding="hidden")
    assert manifest.spec.embedding_size == 2
    embedding, base_logits, _ = model.trunk({"x": np.array([[1.0, 2.0]], np.float32)})
    np.testing.assert_allclose(embedding, [[-1.0, -2.0]])
    np.testing.assert_allclose(base_logits, [[1.0, 2.0, 0.0]])


def test_probabilities_become_log_probabilities(tmp_path: Path) -> None:
    file = a_graph(
        tmp_path / "m.onnx",
        nodes=[
            helper.make_node("MatMul", ["x", "W"], ["scores_"]),
            helper.make_node("Softmax", ["scores_"], ["p"], axis=1),
        ],
        outputs={"p": (TensorProto.FLOAT, ["batch", 3])},
    )
    _, model = imported(file, tmp_path, probabilities=True)
    logits = model.trunk({"x": np.array([[1.0, 2.0]], np.float32)}).base_logits[0]
    np.testing.assert_allclose(np.exp(logits), np.exp([1.0, 2.0, 0.0]) / np.exp([1.0, 2.0, 0.0]).sum(), rtol=1e-5)


TWO = {"logits": (TensorProto.FLOAT, ["batch", 3]), "hidden": (TensorProto.FLOAT, ["batch", 2])}


@pytest.mark.parametrize(
    ("graph", "options", "problem"),
    [
        ({"outputs": TWO}, {}, r"2 outputs could be: \['logits', 'hidden'\]; .* name it with --logits"),
        ({}, {"logits": "other"}, r"logits: 'other' is not an output; there are \['logits'\]"),
        ({"outputs": TWO}, {"logits": "logits", "embedding": "no"}, "embedding: 'no' is not an output"),
        ({}, {"actions": ("a", "b")}, "actions: 2 are named, but output 'logits' has 3 values a row"),
        ({}, {"actions": ("a", "b", "a")}, "an action appears twice"),
        ({}, {"golden": {"y": np.zeros((2, 2), np.float32)}}, r"golden: holds \['y'\], the graph takes \['x'\]"),
        (
            {},
            {"golden": {"x": np.zeros((2, 5), np.float32)}},
            r"golden: x: takes the shape \[2\], got a tensor of \[5\]",
        ),
        ({}, {"golden": {"x": np.full((2, 2), np.nan, np.float32)}}, "golden: x: the tensor holds nan at"),
        ({}, {"golden": {"x": np.full((2, 2), 3e38, np.float32)}}, "values that are not finite; record inputs"),
    ],
)
def test_what_cannot_be_served_is_told(
    tmp_path: Path, graph: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CannotImport, match=problem):
        imported(a_graph(tmp_path / "m.onnx", **graph), tmp_path, **options)


def test_a_reserved_input_name(tmp_path: Path) -> None:
    file = a_graph(
        tmp_path / "m.onnx",
        inputs={"present": (TensorProto.FLOAT, ["batch", 2])},
        nodes=[helper.make_node("MatMul", ["present", "W"], ["logits"])],
    )
    with pytest.raises(CannotImport, match="input 'present': has a name that is reserved"):
        imported(file, tmp_path)


def test_rows_that_see_each_other_are_served_one_by_one(tmp_path: Path) -> None:
    file = a_graph(
        tmp_path / "m.onnx",
        nodes=[
            helper.make_node("ReduceMean", ["x"], ["mean"]),
            helper.make_node("Sub", ["x", "mean"], ["centred"]),
            helper.make_node("MatMul", ["centred", "W"], ["logits"]),
        ],
    )
    notes: list[str] = []
    manifest, model = imported(file, tmp_path, note=notes.append)
    (note,) = notes
    assert note.startswith("rows are served one by one, as a row's scores depend on the other rows of a batch; ")
    rows = [{"x": np.array([1.0, 3.0], np.float32)}, {"x": np.array([5.0, 5.0], np.float32)}]
    # Each less its own mean: [-1, 1]·W = [-1, 1, -3], and [0, 0]·W
    logits = model.trunk(Batch(manifest.spec, 2).fill(rows)).base_logits
    np.testing.assert_allclose(logits, [[-1.0, 1.0, -3.0], [0.0, 0.0, 0.0]])


def test_no_file_and_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match=r"none\.onnx"):
        imported(tmp_path / "none.onnx", tmp_path)
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "version").rmdir()
    with pytest.raises(CannotImport, match="not a readable ONNX file"):
        imported(tmp_path / "text.onnx", tmp_path)


def test_an_output_without_a_row_for_each_row_is_left_out(tmp_path: Path) -> None:
    rows_together = [
        helper.make_node("MatMul", ["x", "W"], ["logits"]),
        helper.make_node("Flatten", ["x"], ["flat"], axis=0),
        helper.make_node("Transpose", ["flat"], ["values"]),
    ]
    outputs: Tensors = {"logits": (TensorProto.FLOAT, ["batch", 3]), "values": (TensorProto.FLOAT, ["many", 1])}
    file = a_graph(tmp_path / "m.onnx", nodes=rows_together, outputs=outputs)
    notes: list[str] = []
    manifest, _ = imported(file, tmp_path, note=notes.append)
    assert list(manifest.spec.outputs) == ["logits"]
    assert notes == ["output 'values' is left out: 3 rows gave [6, 1], so its first axis is not the batch"]


def test_outputs_of_strings_are_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["words"], to=TensorProto.STRING),
    ]
    outputs: Tensors = {"logits": (TensorProto.FLOAT, ["batch", 3]), "words": (TensorProto.STRING, ["batch", 3])}
    manifest, _ = imported(a_graph(tmp_path / "m.onnx", nodes=nodes, outputs=outputs), tmp_path)
    assert manifest.spec.outputs == {"logits": OutputSpec("float32", (3,))}


def test_more_than_a_file_can_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = a_graph(tmp_path / "m.onnx", external=True)
    with (tmp_path / "m.onnx.data").open("r+b") as data:
        data.truncate(3_000_000_000)  # sparse: it takes no room
    with pytest.raises(CannotImport, match=r"holds 30\d+ bytes with its data; up to 2000000000 can be imported"):
        imported(file, tmp_path)


def test_a_card_says_where_it_came_from(tmp_path: Path) -> None:
    imported(a_graph(tmp_path / "m.onnx"), tmp_path)
    assert "m.onnx was imported" in (tmp_path / "version" / CARD).read_text()


def test_data_that_is_missing_is_named(tmp_path: Path) -> None:
    file = a_graph(tmp_path / "m.onnx", external=True)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(CannotImport, match=r"m\.onnx\.data"):
        imported(file, tmp_path)


def test_a_few_of_many_recorded_rows_are_enough(tmp_path: Path) -> None:
    rows = np.arange(2_000, dtype=np.float32).reshape(1_000, 2)
    imported(a_graph(tmp_path / "m.onnx"), tmp_path, golden={"x": rows})
    np.testing.assert_array_equal(load_file(tmp_path / "version" / TRUNK_GOLDEN)["x"], rows[:16])
