"""`plaudit canary` and compare-and-set from the shell, against a real service and a real learner."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from plaudit.client import Client, ClientError
from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.events import Content, EncodedContent, TensorContent, TextContent
from plaudit.core.rollout import in_experiment
from plaudit_models.bandit.head import IR_VERSION, OPSET
from plaudit_models.bundle import HEAD, HEAD_GOLDEN, TRUNK_GOLDEN, read_manifest, seal
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, SCORES
from support import builders
from support.deployment import PLAUDIT, Service, deployed


@dataclass
class Shop:
    """Versions 1 (live) and 2, a service and a learner that run."""

    config: Path
    target: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*PLAUDIT, *arguments, "--config", str(self.config), "--target", self.target]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    config = deployed(tmp_path)
    with config.open("a") as file:
        file.write("[canary]\nshare = 0.3\n[canary.models.tiny]\nshare = 0.25\n")
    registry = model_registry(load_settings(config))
    builders.tiny_bundle(tmp_path / "two", seed=2, prefer="fish")
    registry.publish(tmp_path / "two")
    up = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
    try:
        target = up.ready("serve", "learn")["serve"]["address"]
        yield Shop(config, target)
    finally:
        up.kill()


def test_an_experiment_from_the_shell(shop: Shop) -> None:
    assert "no version is in an experiment" in shop.run("canary").stdout
    nothing = shop.run("canary", "stop")
    assert (nothing.returncode, "no version is in an experiment" in nothing.stderr) == (1, True)
    nothing = shop.run("canary", "promote")
    assert (nothing.returncode, "no version is in an experiment" in nothing.stderr) == (1, True)

    began = shop.json("canary", "start", "2", "--reason", "let us see")
    assert (began["candidate"], began["candidate_share"], began["reason"]) == (2, 0.25, "let us see")
    again = shop.run("canary", "start", "2")
    assert "version: 2 is in an experiment already; stop that experiment first (plaudit canary stop)" in again.stderr

    registry = model_registry(load_settings(shop.config))
    rollout = registry.rollout()
    with Client(shop.target) as client:
        content = {"question": "which animal is it"}
        for user in [f"user {number}" for number in range(20)]:
            answer = client.predict(content, user_id=user)
            assert (answer.version == 2) == in_experiment(rollout, user)
            client.thumbs_up(answer)
    experiment: dict[str, Any] | None = None
    while experiment is None or experiment["n"] < 10 or experiment["answers"]["live"]["answered"] == 0:
        experiment = shop.json("canary")["experiment"]
    shown = shop.run("canary").stdout
    assert "version 2 is in an experiment with 25% of the users" in shown
    assert "experiment of version 2 with 25% of the users: under way" in shown
    assert "for more failures" in shown
    assert "experiment of version 2" in shop.run("versions", "show", "2").stdout

    promoted = shop.json("canary", "promote")
    assert (promoted["live"], promoted["candidate"]) == (2, None)
    shown = ""
    while "ended the experiment" not in shown:
        shown = shop.run("versions", "show", "2").stdout
    assert "experiment of version 2 with 25% of the users: promote" in shown


def brittle_bundle(folder: Path) -> None:
    """A version that passes its proof and gives no number where the first base logit is below any of the proof's.

    Its head adds √(x₀ − min x₀ of the golden pairs) to nothing: 0 · √… is 0, or not a number where x₀ is less.
    """
    builders.tiny_bundle(folder)
    manifest = read_manifest(folder)
    spec = manifest.spec
    least = float(load_file(folder / TRUNK_GOLDEN)[BASE_LOGITS][:, 0].min()) - 1e-3
    nodes = [
        helper.make_node("Gather", [BASE_LOGITS, "first"], ["x0"], axis=1),
        helper.make_node("Sub", ["x0", "least"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "nothing"], ["zero"]),
        helper.make_node("Add", [BASE_LOGITS, "zero"], [SCORES]),
    ]
    actions = len(spec.actions)
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["b", spec.embedding_size]),
            helper.make_tensor_value_info(BASE_LOGITS, TensorProto.FLOAT, ["b", actions]),
        ],
        [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["b", actions])],
        [
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array([[least]], np.float32), "least"),
            numpy_helper.from_array(np.zeros((1, 1), np.float32), "nothing"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, folder / HEAD)
    save_file(builders.run_graph(folder / HEAD, load_file(folder / TRUNK_GOLDEN)), folder / HEAD_GOLDEN)
    seal(folder, manifest)


def test_a_version_that_fails_on_some_requests_is_withdrawn_by_what_two_services_report(tmp_path: Path) -> None:
    """Without thumbs the counts of the services alone are evidence, and each sees half of the failures."""
    config = deployed(tmp_path)
    registry = model_registry(load_settings(config))
    brittle_bundle(tmp_path / "brittle")
    registry.publish(tmp_path / "brittle")
    commands = [[*PLAUDIT, name, "--config", str(config), "--json"] for name in ("serve", "serve", "learn")]
    services = [Service(command) for command in commands]
    try:
        ready = [service.event(event="ready") for service in services]
        with Client(ready[0]["address"]) as one, Client(ready[1]["address"]) as two:
            contents = [builders.tiny_content(seed) for seed in range(40)]
            one.start_canary(2, 0.3)
            failed = turn = 0
            while registry.rollout().candidate is not None:
                turn += 1
                content = {name: _sendable(part) for name, part in contents[turn % 40].items()}
                try:
                    (one, two)[turn % 2].predict(content, user_id=f"user {turn % 500}")
                except ClientError:
                    failed += 1
            asked = [(client, f"user {number}") for number in range(9) for client in (one, two)]
            while {client.predict({"question": "x"}, user_id=user).version for client, user in asked} != {1}:
                continue  # they look at the registry twenty times a second
    finally:
        for service in services:
            service.kill()
    rollout = registry.rollout()
    assert (rollout.live, rollout.actor) == (1, "learner")
    assert rollout.reason.startswith("version 2 is withdrawn: answers failed: ")
    assert failed > 5


def _sendable(part: Content) -> Any:
    return getattr(part, {EncodedContent: "data", TextContent: "text", TensorContent: "array"}[type(part)])


def test_compare_and_set_from_the_shell(shop: Shop) -> None:
    shadow = shop.json("canary", "start", "2", "--shadow", "--share", "1", "--expect", "1")
    assert (shadow["shadow"], shadow["candidate_share"]) == (True, 1.0)
    assert "requests, in the shadow" in shop.run("versions").stdout
    for command in (["canary", "stop"], ["canary", "promote"], ["promote", "2"], ["pin", "2"], ["unpin"], ["rollback"]):
        late = shop.run(*command, "--expect", "1")
        assert late.returncode == 1
        assert f"the rollout is at generation {shadow['generation']}, not 1; read it and try again" in late.stderr
    assert shop.json("canary", "stop", "--expect", str(shadow["generation"]))["candidate"] is None
