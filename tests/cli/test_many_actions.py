"""A classifier of a thousand actions over a 512-wide embedding joins the loop and learns within bounds."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plaudit.client import Client, tensor
from plaudit.core.limits import MAX_ACTIONS
from support.deployment import PLAUDIT, Service

EMBEDDING = 512
THUMBS = 512
MAX_MEMORY_BYTES = 500e6
MAX_HEAD_BYTES = 10e6


def classifier(path: Path, n_actions: int) -> Path:
    """x [batch, 512] → embedding, the same, and logits [batch, n]."""
    weights = np.random.default_rng(0).normal(size=(EMBEDDING, n_actions), scale=0.1).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Tanh", ["x"], ["features"]), helper.make_node("MatMul", ["features", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", EMBEDDING])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_actions]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", EMBEDDING]),
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def plaudit(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PLAUDIT, *map(str, arguments)], capture_output=True, text=True, check=False)


def memory_bytes(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def children(pid: int) -> Iterator[int]:
    for each in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield each
        yield from children(each)


@pytest.mark.slow
def test_a_thousand_actions_are_learned_about_within_bounds(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    options = ("--name", "large", "--logits", "logits", "--embedding", "features", "--json")
    done = plaudit("import", classifier(tmp_path / "m.onnx", 1_000), "--data-dir", data_dir, *options)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "plaudit.toml"
    config.write_text(
        f'data_dir = "{data_dir}"\n[serving]\nport = 0\nmetrics_port = 0\n[learner]\nmetrics_port = 0\nbatch = 64\n'
        "[finetune]\nenabled = false\n"
    )
    rng = np.random.default_rng(1)
    service = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
    try:
        with Client(service.event(event="ready", service="serve")["address"]) as client:
            last = 1
            for number in range(THUMBS):
                x = tensor(rng.normal(size=EMBEDDING).astype(np.float32))
                prediction = client.predict({"x": x}, model="large", user_id=f"u{number % 40}")
                said = client.thumbs_up if number % 3 else client.thumbs_down
                assert not said(prediction).duplicate
                last = max(last, prediction.version)
            for rollout in client.watch_versions(model="large"):
                if rollout.live is not None and rollout.live > last:
                    last = rollout.live
                    break
            assert client.version(last, model="large").kind == "head"
        [learner] = [
            pid for pid in children(service.process.pid) if b"learn" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        print({"learner_bytes": memory_bytes(learner, "VmHWM"), "last": last})
        assert memory_bytes(learner, "VmHWM") <= MAX_MEMORY_BYTES
        heads = list((data_dir / "registry").glob("**/head.onnx"))
        assert len(heads) > 1
        assert max(os.path.getsize(head) for head in heads) <= MAX_HEAD_BYTES
        found = plaudit("doctor", "--config", config)
        assert "given up" not in found.stdout
    finally:
        service.stop(signal.SIGTERM)
        service.kill()


def test_an_import_beyond_the_limit_says_what_it_found_and_what_to_do(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m.onnx", MAX_ACTIONS + 1)
    done = plaudit("import", file, "--data-dir", tmp_path / "data", "--name", "large", "--logits", "logits")
    assert done.returncode != 0
    assert f"scores {MAX_ACTIONS + 1} actions, and a model has at most {MAX_ACTIONS}" in done.stderr
