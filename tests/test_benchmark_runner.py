"""Figures that the benchmarks write, and the options of every package of benchmarks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Measure
from benchmarks.runner import conclude, table

ROOT = Path(__file__).parents[1]
FAST = Measure("latency", 1.5, 2.0, "at_most", note="of 10", unit="ms")
SLOW = Measure("rate", 7.0, 9.0, unit="1/s")
NONE = Measure("nothing to measure", math.nan, 0.5)


def test_figures_are_dated_and_those_of_other_benchmarks_stay(tmp_path: Path) -> None:
    file = tmp_path / "new" / "serving.json"
    conclude([file], "serving", "make bench-serving", {"start": [FAST], "soak": [SLOW, NONE]})
    conclude([file], "serving", 'make bench-serving ONLY="soak"', {"soak": [SLOW]})
    report = json.loads(file.read_text())
    assert (report["name"], report["command"], report["quick"]) == ("serving", 'make bench-serving ONLY="soak"', False)
    assert list(report["figures"]) == ["start: latency", "soak: rate"]
    figure = report["figures"]["start: latency"]
    assert figure.pop("date") == report["date"]
    assert figure == {"value": 1.5, "unit": "ms", "goal": "≤ 2", "reached": True, "note": "of 10"}


def test_a_value_that_is_not_a_number_is_null_and_reaches_no_goal(tmp_path: Path) -> None:
    conclude([tmp_path / "x.json"], "x", "make bench-x", {"one": [NONE]})
    figure = json.loads((tmp_path / "x.json").read_text())["figures"]["one: nothing to measure"]
    assert (figure["value"], figure["reached"]) == (None, False)


@pytest.mark.parametrize(("check", "code"), [("1", 1), ("", 0)])
def test_a_missed_goal_is_named_and_fails_where_goals_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check: str, code: int
) -> None:
    monkeypatch.setenv("CHECK", check)
    assert conclude([tmp_path / "x.json"], "x", "make bench-x", {"one": [FAST, SLOW]}) == code
    assert capsys.readouterr().err == "goal missed: one: rate: 7 1/s is not ≥ 9\n"


def test_the_table_aligns_values_units_and_goals() -> None:
    assert table("one", [FAST, SLOW], 3.0).splitlines() == [
        "one (3 s)",
        "  latency        1.5 ms   ≤ 2         of 10",
        "  rate             7 1/s  ≥ 9 ✗",
    ]


@pytest.mark.parametrize("package", ["serving", "learning", "rollout", "feedback", "console", "gpu"])
def test_every_package_of_benchmarks_has_help(package: str) -> None:
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("services", "models", "tests", "."))
    }
    command = [sys.executable, "-m", f"benchmarks.{package}", "--help"]
    done = subprocess.run(command, env=env, cwd=ROOT, text=True, capture_output=True, check=True, timeout=120)
    assert f"python -m benchmarks.{package}" in done.stdout
