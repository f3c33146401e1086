"""The generated code is what `make proto` makes of proto/ today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", params=["v1", "inference"])
def generated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder that is checked in, and one made now."""
    out = tmp_path_factory.mktemp("generated")
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
    if request.param == "inference":
        _protoc(protoc, out, [ROOT / "proto/inference/open_inference.proto"])
        return ROOT / "services/plaudit/inference", out / "inference"
    protos = sorted((ROOT / "proto/plaudit/v1").glob("*.proto"))
    services = [path for path in protos if "\nservice " in path.read_text(encoding="utf-8")]
    _protoc(protoc, out, protos)
    subprocess.run([*protoc, f"--grpc_python_out={out}", *map(str, services)], check=True)
    return ROOT / "services/plaudit/v1", out / "plaudit/v1"


def _protoc(protoc: list[str], out: Path, protos: list[Path]) -> None:
    subprocess.run([*protoc, f"--python_out={out}", f"--pyi_out={out}", *map(str, protos)], check=True)


def test_no_file_is_missing_or_left_over(generated: tuple[Path, Path]) -> None:
    checked_in, fresh = generated
    expected = {path.name for path in fresh.iterdir()} | {"__init__.py"}
    assert {path.name for path in checked_in.iterdir() if path.is_file()} == expected


def test_every_file_is_current(generated: tuple[Path, Path]) -> None:
    checked_in, fresh = generated
    stale = [path.name for path in fresh.iterdir() if path.read_text() != (checked_in / path.name).read_text()]
    assert stale == [], "run `make proto` and commit the result"
