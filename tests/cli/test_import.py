"""A model made elsewhere joins the loop: import, serve, thumbs, and a head that follows them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plaudit.cli.commands.importing import ImportRequest, import_model, read_actions
from plaudit.cli.failures import CommandFailed
from plaudit.client import Client, tensor
from plaudit.core.settings import Settings
from support.deployment import PLAUDIT, Service


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """x [batch, 3] → logits [batch, 3], the same: the largest input is the most probable action."""
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def plaudit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*PLAUDIT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def imported(graph: Path, data_dir: Path, *options: object) -> Any:
    done = plaudit("import", graph, "--data-dir", data_dir, "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_imported_model_serves_and_learns_without_a_model_table(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "actions.txt").write_text("red\ngreen\n\nblue\n")
    data_dir = tmp_path / "data"
    first = imported(graph, data_dir, "--name", "colours", "--actions", tmp_path / "actions.txt")
    assert (first["model"], first["version"], first["live"]) == ("colours", 1, True)
    assert imported(graph, data_dir, "--name", "others")["live"]

    config = tmp_path / "plaudit.toml"
    config.write_text(
        f'data_dir = "{data_dir}"\n[serving]\nport = 0\nmetrics_port = 0\n[learner]\nmetrics_port = 0\nbatch = 8\n'
    )
    service = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
    try:
        target = service.event(event="ready", service="serve")["address"]
        with Client(target) as client:
            assert client.predict({"x": tensor(np.zeros(3, np.float32))}, model="others").action in ("0", "1", "2")
            x = tensor(np.array([2.0, 0.0, 0.0], np.float32))
            before = client.predict({"x": x}, model="colours")
            for number in range(40):
                prediction = client.predict({"x": x}, model="colours", user_id=f"u{number}")
                said = client.thumbs_up if prediction.action == "blue" else client.thumbs_down
                assert not said(prediction).duplicate
            for rollout in client.watch_versions(model="colours"):
                live = rollout.live
                if live is not None and live > 1:
                    break
            assert live is not None
            version = live  # perhaps not the first refresh: the learner may have been faster than the watch
            while version > 1:
                refreshed = client.version(version, model="colours")
                assert refreshed.kind == "head"
                assert refreshed.parent is not None
                version = refreshed.parent
            assert version == 1
            serving = client.predict({"x": x}, model="colours")
            assert serving.version >= live
            assert serving.scores["blue"] > 2 * before.scores["blue"]
        assert service.stop(signal.SIGTERM) == 0
    finally:
        service.kill()


def saved(path: Path, nodes: Sequence[Any], constants: Mapping[str, Any], inputs: Sequence[Any] = ()) -> Path:
    made = helper.make_graph(
        nodes,
        "g",
        inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_graph_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    """Under 300 bytes that ask for 6.4 GB; the process that imports may have 2 GiB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["logits"]),
    ]
    bomb = saved(tmp_path / "bomb.onnx", nodes, {"many": np.array([1_600_000_000])})
    failed = plaudit("import", bomb, "--name", "bomb", "--data-dir", tmp_path / "data")
    assert failed.returncode == 1
    assert "Failed to allocate memory for requested buffer of size 6400000000" in failed.stderr
    assert "allow it with --memory-limit" in failed.stderr
    assert not (tmp_path / "data" / "registry").exists()


def test_a_graph_that_does_not_end_is_ended(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, [])],
    )
    carried = helper.make_graph(
        [*body.node, helper.make_node("Add", ["sum", "one"], ["more"])],
        "body",
        [*body.input, helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])],
        [*body.output, helper.make_tensor_value_info("more", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    loop = [
        helper.make_node("Loop", ["turns", "yes", "zero"], ["sum"], body=carried),
        helper.make_node("Add", ["x", "sum"], ["logits"]),
    ]
    constants = {"turns": np.array(2**62), "yes": np.array(True), "zero": np.array(0, np.float32)}
    file = saved(tmp_path / "loop.onnx", loop, constants)
    failed = plaudit("import", file, "--name", "loop", "--data-dir", tmp_path / "data", "--time-limit", "2")
    assert failed.returncode == 1
    assert "did not finish within 2 s; if the graph needs that long, allow it with --time-limit" in failed.stderr


def test_a_name_that_leaves_the_folder_makes_nothing(graph: Path, tmp_path: Path) -> None:
    settings = Settings(model={}, data_dir=tmp_path / "home" / "data")
    with pytest.raises(CommandFailed, match=r"model\.name: '\.\./\.\./x' must match"):
        import_model(settings, ImportRequest(file=graph, name="../../x"), go_live=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_an_import_needs_nothing_of_training_and_says_what_it_assumed(tmp_path: Path) -> None:
    """`pip install plaudit[serve]` is enough: neither torch nor onnxscript is there."""
    (tmp_path / "blocked").mkdir()
    for name in ("torch", "onnxscript", "sklearn"):
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    path = os.pathsep.join([str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")])
    one = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])]
    file = saved(tmp_path / "one.onnx", [helper.make_node("Identity", ["x"], ["logits"])], {}, one)
    done = subprocess.run(
        [*PLAUDIT, "import", str(file), "--name", "one", "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "version 1 of 'one' is published and live" in done.stdout
    assert "rows are served one by one, as its batch is fixed to 1" in done.stderr


@pytest.mark.parametrize(
    ("data", "actions"),
    [
        ("\ufeffcat\ndog\ncrane\n".encode(), ["cat", "dog", "crane"]),
        ("cat\r\ndog\r\n".encode("utf-16"), ["cat", "dog"]),
        ("\ufeffcat\r\ndog\r\n".encode("utf-16-be"), ["cat", "dog"]),
        (b"cat\n\n  dog \r\n", ["cat", "dog"]),
        ("größe\nform\x0bfeed".encode().replace(b"\x0b", b" "), ["größe", "form feed"]),
    ],
    ids=["utf-8 with a mark", "utf-16", "utf-16-be", "blanks", "one line"],
)
def test_actions_are_read_as_editors_write_them(tmp_path: Path, data: bytes, actions: list[str]) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    assert read_actions(tmp_path / "labels.txt") == actions


@pytest.mark.parametrize(
    ("label", "problem"),
    [("x" * 129, "line 2: .* has 129 characters; at most 128"), ("a\x1b[2J", r"line 2: .* control character U\+001B")],
)
def test_an_action_that_feedback_could_not_name_is_refused(tmp_path: Path, label: str, problem: str) -> None:
    (tmp_path / "labels.txt").write_text(f"cat\n{label}\n")
    with pytest.raises(CommandFailed, match=problem):
        read_actions(tmp_path / "labels.txt")


def test_actions_that_are_there_twice_are_named(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n\ncat\nmouse\ndog\n")
    with pytest.raises(CommandFailed, match=r"'cat' \(lines 1 and 4\), 'dog' \(lines 2 and 6\)$"):
        read_actions(tmp_path / "labels.txt")


def test_a_second_version_goes_live_only_if_asked(graph: Path, tmp_path: Path) -> None:
    assert imported(graph, tmp_path, "--name", "m")["live"]
    assert not imported(graph, tmp_path, "--name", "m")["live"]
    third = imported(graph, tmp_path, "--name", "m", "--promote")
    assert (third["version"], third["live"]) == (3, True)
    of_two = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])]
    other = saved(tmp_path / "other.onnx", [helper.make_node("MatMul", ["x", "w"], ["logits"])],
                  {"w": np.ones((2, 3), np.float32)}, of_two)  # fmt: skip
    failed = plaudit("import", other, "--name", "m", "--promote", "--data-dir", tmp_path)
    assert failed.returncode == 1
    assert "incompatible with clients of version 3, which is live: modality 'x' is of shape [2]" in failed.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--name", "Bad Name"), "model.name: 'Bad Name' must match"),
        (("--name", "m", "--logits", "nothing"), "logits: 'nothing' is not an output; there are ['logits']"),
        (("--name", "m", "--actions", "/no/such/file"), "actions: /no/such/file"),
        (("--name", "m", "--golden", "/no/such/file"), "golden: /no/such/file"),
    ],
)
def test_what_is_wrong_is_one_sentence(graph: Path, tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    failed = plaudit("import", graph, "--data-dir", tmp_path / "data", *options)
    assert failed.returncode == 1
    assert problem in failed.stderr
    assert "Traceback" not in failed.stderr
