"""Commands use one thread for numpy's linear algebra, unless the environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_THREADS = """
import sys
from plaudit.cli import main
sys.argv = ["plaudit", "--help"]
try:
    main()
except SystemExit:
    pass
import numpy
from threadpoolctl import threadpool_info
print([pool["num_threads"] for pool in threadpool_info() if pool["internal_api"] == "openblas"], file=sys.stderr)
"""


@pytest.mark.parametrize(("said", "threads"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2)])
def test_how_many_threads(said: dict[str, str], threads: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")} | said
    done = subprocess.run([sys.executable, "-c", _THREADS], env=environment, capture_output=True, text=True, check=True)
    if done.stderr.strip() == "[]":
        pytest.skip("numpy here does not use OpenBLAS")
    assert done.stderr.strip() == f"[{min(threads, os.cpu_count() or 1)}]"
