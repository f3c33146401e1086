"""The examples as their READMEs run them: each in a copy of its folder, on free ports."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Change, promote
from support import builders
from support.deployment import PLAUDIT, Service
from support.kafka_broker import Kafka
from support.markdown import ROOT

EXAMPLES = ROOT / "examples"
ANY_PORT = {"PLAUDIT_SERVING__PORT": "0", "PLAUDIT_SERVING__METRICS_PORT": "0", "PLAUDIT_LEARNER__METRICS_PORT": "0"}


@pytest.fixture(autouse=True)
def free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ANY_PORT.items():
        monkeypatch.setenv(name, value)


def copied(name: str, folder: Path) -> Path:
    """The example in a folder of its own; the data directory is made there."""
    return Path(shutil.copytree(EXAMPLES / name, folder / name))


def python(folder: Path, *arguments: str) -> str:
    return _run(folder, sys.executable, "main.py", *arguments)


def plaudit(folder: Path, *arguments: str) -> str:
    return _run(folder, *PLAUDIT, *arguments)


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of ``plaudit up`` in the example's folder; afterwards it has drained."""
    monkeypatch.chdir(folder)
    service = Service([*PLAUDIT, "up", "--json"])
    try:
        yield service.ready("serve", "learn")["serve"]["address"]
        assert service.stop(signal.SIGTERM) == 0
    finally:
        service.kill()


def publish_tiny_version(folder: Path) -> None:
    """A version 1 of the example's model that was not trained, in milliseconds."""
    settings = load_settings(folder / "plaudit.toml", {"data_dir": str(folder / "plaudit-data")})
    registry = model_registry(settings)
    builders.tiny_bundle(folder / "made", spec=settings.spec())
    registry.publish(folder / "made")
    registry.set_rollout(promote(registry.rollout(), 1, Change("ada", 1.0, "")))


@pytest.mark.slow
def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("quickstart", tmp_path)
    python(folder, "data")
    plaudit(folder, "pretrain", "--data", "data")
    with running(folder, monkeypatch) as target:
        assert "P(red | blue square)" in python(folder, target)


def test_bring_your_own_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("bring_your_own_onnx", tmp_path)
    python(folder, "model")
    plaudit(folder, "import", "model.onnx", "--name", "colours", "--actions", "actions.txt")
    with running(folder, monkeypatch) as target:
        assert "P(blue)" in python(folder, target)


def test_triton_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("triton_client", tmp_path)
    publish_tiny_version(folder)
    with running(folder, monkeypatch) as target:
        assert python(folder, target).count("with probability") == 2


@pytest.mark.kafka
def test_kafka(kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("kafka", tmp_path)
    monkeypatch.setenv("PLAUDIT_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("PLAUDIT_KAFKA__TOPIC_PREFIX", kafka.prefix)
    publish_tiny_version(folder)
    with running(folder, monkeypatch) as target:
        assert "the thumb is live" in python(folder, target)


def test_every_example_has_its_three_files_and_a_test() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert {f"test_{name}" for name in names} <= set(globals())
    for name in names:
        assert {"README.md", "main.py", "plaudit.toml"} <= {path.name for path in (EXAMPLES / name).iterdir()}
        load_settings(EXAMPLES / name / "plaudit.toml")
