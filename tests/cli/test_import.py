"""A model made elsewhere joins the loop: import, serve, thumbs, and a head that follows them."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plaudit.client import Client, tensor
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


def test_a_second_version_goes_live_only_if_asked(graph: Path, tmp_path: Path) -> None:
    assert imported(graph, tmp_path, "--name", "m")["live"]
    assert not imported(graph, tmp_path, "--name", "m")["live"]
    third = imported(graph, tmp_path, "--name", "m", "--promote")
    assert (third["version"], third["live"]) == (3, True)


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
