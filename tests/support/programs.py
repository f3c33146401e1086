"""Where tests find programs that no Python package brings. `make programs` gets them.

First what an environment variable names, then what is on PATH, then what `make programs` has put below .cache.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

_CACHE: Final = Path(__file__).parents[2] / ".cache/debian"
_CLIENTS: Final = Path(__file__).parents[2] / ".cache/clients"

CANNOT_BE_HAD: Final = "cannot be had here: "
"""Beginning of the reason of a skip that is allowed in CI: the machine lacks the tools to build the program."""


@dataclass(frozen=True)
class Program:
    """A program, and the environment it needs."""

    path: str
    environment: Mapping[str, str]


def chromium() -> Program:
    return _find("PLAUDIT_TEST_CHROMIUM", ("chromium", "chromium-browser", "google-chrome"), "chromium", "lib/chromium")


def prometheus() -> Program:
    return _find("PLAUDIT_TEST_PROMETHEUS", ("prometheus",), "prometheus", "bin")


def promtool() -> Program:
    return _find("PLAUDIT_TEST_PROMTOOL", ("promtool",), "prometheus", "bin")


def kserve_python() -> str:
    """The interpreter of the environment that KServe's client is installed in."""
    python = _CLIENTS / "kserve/bin/python"
    if not python.exists():
        pytest.skip("no KServe: run `make programs`")
    return str(python)


def perf_analyzer() -> Program:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip(f"{CANNOT_BE_HAD}perf_analyzer is for Linux on x86-64")
    root = _CLIENTS / "perf_analyzer"
    libraries = [root / "nvidia/cuda_runtime/lib", *(root / "debian/usr/lib").glob("*")]
    if not any(folder.glob("libb64.so*") for folder in libraries) and ctypes.util.find_library("b64") is None:
        pytest.skip("no libb64, which perf_analyzer links to: install it, or run `make programs`")
    if not (root / "bin/perf_analyzer").exists():
        pytest.skip("no perf_analyzer: run `make programs`")
    return Program(str(root / "bin/perf_analyzer"), {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))})


def grpcurl() -> Program:
    return _built_with_go("PLAUDIT_TEST_GRPCURL", "grpcurl")


def grpc_health_probe() -> Program:
    return _built_with_go("PLAUDIT_TEST_GRPC_HEALTH_PROBE", "grpc-health-probe", "grpc_health_probe")


def _built_with_go(variable: str, *names: str) -> Program:
    named = os.environ.get(variable) or next((found for name in names if (found := shutil.which(name))), None)
    if named:
        return Program(named, {})
    built = _CLIENTS / "go/bin" / names[0]
    if not built.exists():
        lacking = "" if shutil.which("go") else f"{CANNOT_BE_HAD}no Go to build it with; "
        pytest.skip(f"{lacking}no {names[0]}: set {variable}, put it on PATH, or run `make programs`")
    return Program(str(built), {})


def _find(variable: str, names: Sequence[str], package: str, folder: str) -> Program:
    named = os.environ.get(variable) or next((found for name in names if (found := shutil.which(name))), None)
    if named:
        return Program(named, {})
    root = _CACHE / package
    unpacked = root / "usr" / folder / names[0]
    if not unpacked.exists():
        pytest.skip(f"no {names[0]}: set {variable}, put it on PATH, or run `make programs`")
    # What it links to lies beside it; some libraries keep their own in a folder of theirs.
    folders = [*(root / "usr/lib").glob("*"), *(root / "usr/lib").glob("*/*")]
    libraries = [str(folder) for folder in folders if any(folder.glob("*.so*"))]
    return Program(str(unpacked), {"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {})
