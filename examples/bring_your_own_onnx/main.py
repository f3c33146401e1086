"""Bring your own ONNX: ``main.py model`` writes a graph; ``main.py`` asks the running server and gives thumbs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plaudit.client import Client, Prediction, tensor

COLOURS = ("red", "green", "blue")


def write_model(folder: Path) -> None:
    """``model.onnx``: rgb ``[batch, 3]`` → logits ``[batch, 3]``, the largest input wins. And ``actions.txt``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rgb", "weights"], ["logits"])],
        "colours",
        [helper.make_tensor_value_info("rgb", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(2 * np.eye(3, dtype=np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    (folder / "actions.txt").write_text("\n".join(COLOURS) + "\n")


def ask(client: Client, user: str) -> Prediction:
    """About a pure red."""
    return client.predict({"rgb": tensor(np.array([1.0, 0.0, 0.0], np.float32))}, model="colours", user_id=user)


def main(target: str) -> None:
    with Client(target) as client:
        before = ask(client, "ada")
        for number in range(80):
            answer = ask(client, f"user-{number % 10}")
            client.rate(answer, 1.0 if answer.action == "blue" else 0.0)
        for rollout in client.watch_versions(model="colours"):
            after = ask(client, "ada")
            print(f"version {rollout.live}: P(blue) = {after.scores['blue']:.2f}")
            if after.scores["blue"] > before.scores["blue"] + 0.2:
                break


if __name__ == "__main__":
    if sys.argv[1:2] == ["model"]:
        write_model(Path.cwd())
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
