"""A deployment of the tiny model, and the services as processes, for tests that need them whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Change, promote
from support import builders

PLAUDIT: Final = [sys.executable, "-m", "plaudit"]


def deployed(folder: Path) -> Path:
    """The settings file of a deployment on free ports, with version 1 live, that learns from every thumb at once."""
    path = folder / "plaudit.toml"
    path.write_text(
        f"data_dir = {json.dumps(str(folder / 'data'))}\n"
        "[serving]\nport = 0\nmetrics_port = 0\n"
        "[learner]\nmetrics_port = 0\nbatch = 1\n" + _toml_of_tiny_model()
    )
    registry = model_registry(load_settings(path))
    builders.tiny_bundle(folder / "made")
    registry.publish(folder / "made")
    registry.set_rollout(promote(registry.rollout(), 1, Change("ada", 1.0, "")))
    return path


def _toml_of_tiny_model() -> str:
    spec = builders.tiny_spec().to_dict()
    lines = [f"[model]\nname = {json.dumps(spec['name'])}", f"actions = {json.dumps(spec['actions'])}"]
    lines.append(f"embedding_size = {spec['embedding_size']}")
    for name, fields in spec["modalities"].items():
        lines.append(f"[model.modalities.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(lines) + "\n"


class Service:
    """A running ``plaudit`` with ``--json``. Its log goes to a file, for when a test fails."""

    def __init__(self, command: list[str]) -> None:
        self._logged = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by kill()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._logged, text=True, process_group=0
        )

    def event(self, **wanted: Any) -> Mapping[str, Any]:
        """The next event like ``wanted``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: Mapping[str, Any] = json.loads(line)
            if wanted.items() <= event.items():
                return event
        pytest.fail(f"ended before {wanted}: {self.logged()}")

    def ready(self, *services: str) -> dict[str, Mapping[str, Any]]:
        """Ready events of these services of a ``plaudit up``, by service, in any order of arrival."""
        said: dict[str, Mapping[str, Any]] = {}
        while not said.keys() >= set(services):
            event = self.event(event="ready")
            said[event["service"]] = event
        return said

    def logged(self) -> str:
        """Log written so far."""
        self._logged.seek(0)
        return self._logged.read()

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait()

    def kill(self) -> None:
        """Kill the process and all its children. A second call does nothing."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._logged.close()
