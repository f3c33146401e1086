"""Threads of training that wait must sleep, whatever loads torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

UNSET = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
SHOW = """
import sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            import os
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
            sys.exit()
sys.meta_path.insert(0, Watch())
import {module}
"""


def set_when_torch_is_loaded(module: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", SHOW.format(module=module)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["plaudit.learner.pretraining", "plaudit.learner.job", "plaudit.demo.run"])
def test_spinning_is_short_by_the_time_torch_is_loaded(module: str) -> None:
    assert set_when_torch_is_loaded(module, UNSET) == "1000 0"


def test_what_the_user_set_is_left_alone() -> None:
    environment = UNSET | {"OMP_WAIT_POLICY": "active"}
    assert set_when_torch_is_loaded("plaudit.learner.pretraining", environment) == "None None"
