"""The generated code under services/plaudit/v1 is what `make proto` makes of proto/ today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKED_IN = ROOT / "services/plaudit/v1"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    protos = sorted((ROOT / "proto/plaudit/v1").glob("*.proto"))
    services = [path for path in protos if "\nservice " in path.read_text(encoding="utf-8")]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
    subprocess.run([*protoc, f"--python_out={out}", f"--pyi_out={out}", *map(str, protos)], check=True)
    subprocess.run([*protoc, f"--grpc_python_out={out}", *map(str, services)], check=True)
    return out / "plaudit/v1"


def test_no_file_is_missing_or_left_over(fresh):
    generated = {path.name for path in fresh.iterdir()} | {"__init__.py"}
    assert {path.name for path in CHECKED_IN.iterdir() if path.is_file()} == generated


def test_every_file_is_current(fresh):
    stale = [path.name for path in fresh.iterdir() if path.read_text() != (CHECKED_IN / path.name).read_text()]
    assert stale == [], "run `make proto` and commit the result"
