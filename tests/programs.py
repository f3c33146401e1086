"""Where tests find programs that no Python package brings. `make programs` gets them.

First what an environment variable names, then what is on PATH, then what `make programs` has put below .cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

_CACHE: Final = Path(__file__).parents[1] / ".cache/debian"


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
