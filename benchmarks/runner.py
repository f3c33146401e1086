"""Command line of the benchmarks: tables on the terminal, and a dated JSON file of figures. With CHECK=1 the exit code
is 1 where a goal is missed.

A benchmark is a module of a package of benchmarks, with a function ``run`` that returns measures.

The JSON file::

    {"name": "serving", "date": "2026-11-29", "command": "make bench-serving", "machine": "x86_64, 2 cores, …",
     "quick": false, "figures": {"soak: failed requests": {"value": 0, "unit": "", "goal": "≤ 0", "reached": true,
     "note": "of 166608", "date": "2026-11-29"}, …}}

``date`` of a figure is the day of the run that measured it: a run of some benchmarks leaves the others' figures.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Measure

FIGURES = Path("docs") / "benchmarks" / "figures"
"""Folder of the figures that the documentation shows: one file for each package of benchmarks."""


def _run(module: Any, options: argparse.Namespace) -> list[Measure]:
    measures: list[Measure] = module.run(quick=options.quick)
    return measures


def main(
    package: str,
    benchmarks: Sequence[str],
    parser: argparse.ArgumentParser,
    *,
    run: Callable[[Any, argparse.Namespace], list[Measure]] = _run,
    then: Callable[[Path, str, Sequence[Measure]], None] = lambda out, benchmark, measures: None,
) -> int:
    """Command of a package of benchmarks. Returns the exit code.

    Args:
        benchmarks: names of its modules that are benchmarks, in the order in which they run.
        parser: with the package's own options, if it has any.
        run: runs one of the modules.
        then: what else is made of the measures of one, in the folder that everything is written to.
    """
    parser.prog = f"python -m benchmarks.{package}"
    parser.add_argument("only", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(benchmarks)}; all if left out")
    parser.add_argument("--quick", action="store_true", help="short runs, to see that everything works")
    parser.add_argument("--record", action="store_true", help=f"update the figures in {FIGURES}/{package}.json too")
    parser.add_argument("--out", type=Path, default=Path("build") / f"bench-{package}", help="folder of the results")
    options = parser.parse_args()
    for benchmark in options.only:
        if benchmark not in benchmarks:
            parser.error(f"benchmark: {benchmark!r} is not one of {', '.join(benchmarks)}")
    if options.quick and options.record:
        parser.error("--record: not with --quick, whose figures mean nothing")
    options.out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[Measure]] = {}
    seconds: dict[str, float] = {}
    for benchmark in options.only or benchmarks:
        began_s = time.monotonic()
        measured[benchmark] = run(importlib.import_module(f"benchmarks.{package}.{benchmark}"), options)
        seconds[benchmark] = time.monotonic() - began_s
        print(table(benchmark, measured[benchmark], seconds[benchmark]), flush=True)
        then(options.out, benchmark, measured[benchmark])
    files = [options.out / f"{package}.json"] + [FIGURES / f"{package}.json"] * options.record
    command = f"make bench-{package}" + (f' ONLY="{" ".join(options.only)}"' if options.only else "")
    return conclude(files, package, command, measured, quick=options.quick)


def conclude(
    files: Sequence[Path],
    name: str,
    command: str,
    measured: Mapping[str, Sequence[Measure]],
    *,
    quick: bool = False,
) -> int:
    """Write the figures to ``files``, and name those that miss their goals. Returns the exit code."""
    for file in files:
        write_figures(file, name, command, measured, quick=quick)
        print(f"written: {file}")
    short = [
        f"{benchmark}: {m.shortfall()}" for benchmark, measures in measured.items() for m in measures if not m.reached
    ]
    for line in short:
        print(f"goal missed: {line}", file=sys.stderr)
    return 1 if short and os.environ.get("CHECK") == "1" else 0


def table(benchmark: str, measures: Sequence[Measure], duration_s: float) -> str:
    width = max((len(m.name) for m in measures), default=0)
    units = max((len(m.unit) for m in measures), default=0)
    lines = [f"{benchmark} ({duration_s:.0f} s)"]
    for m in measures:
        goal = f"{m.goal_text}{'' if m.reached else ' ✗'}"
        lines.append(f"  {m.name:<{width}}  {m.value:>9.4g} {m.unit:<{units}}  {goal:<10}  {m.note}".rstrip())
    return "\n".join(lines)


def write_figures(
    file: Path, name: str, command: str, measured: Mapping[str, Sequence[Measure]], *, quick: bool
) -> None:
    """Write a JSON file of figures; those of other benchmarks that it held before stay."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    figures: dict[str, Any] = {}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))["figures"]
        figures = {key: figure for key, figure in before.items() if key.split(": ")[0] not in measured}
    for benchmark, measures in measured.items():
        figures |= {f"{benchmark}: {m.name}": _figure(m) | {"date": today} for m in measures}
    report = {
        "name": name,
        "date": today,
        "command": command,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}",
        "quick": quick,
        "figures": figures,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _figure(m: Measure) -> dict[str, Any]:
    value = float(m.value)
    return {
        "value": value if math.isfinite(value) else None,
        "unit": m.unit,
        "goal": m.goal_text or None,
        "reached": m.reached,
        "note": m.note,
    }
