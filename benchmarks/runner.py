"""Runs benchmarks and writes a table and a JSON file. With CHECK=1 it fails where a goal is missed.

A benchmark is a module of a package, with a function `run` that gives measures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Measure

_SIGNS = {"at_least": "≥", "at_most": "≤"}


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
    """The command of a package of benchmarks. Returns the exit code.

    Args:
        parser: with the package's own options, if it has any.
        run: runs one of its modules.
        then: what else is made of the measures, in the folder that everything is written to.
    """
    parser.prog = f"bench-{package}"
    parser.add_argument("only", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(benchmarks)}; all if left out")
    parser.add_argument("--quick", action="store_true", help="short runs: does it work? goals mean nothing")
    parser.add_argument("--out", type=Path, default=Path("build") / f"bench-{package}")
    options = parser.parse_args()
    for benchmark in options.only:
        if benchmark not in benchmarks:
            parser.error(f"benchmark: {benchmark!r} is not one of {', '.join(benchmarks)}")
    options.out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[Measure]] = {}
    seconds: dict[str, float] = {}
    for benchmark in options.only or benchmarks:
        began_s = time.monotonic()
        measured[benchmark] = run(importlib.import_module(f"benchmarks.{package}.{benchmark}"), options)
        seconds[benchmark] = time.monotonic() - began_s
        print(table(benchmark, measured[benchmark], seconds[benchmark]), flush=True)
        then(options.out, benchmark, measured[benchmark])
    return conclude(options.out, measured, seconds, quick=options.quick)


def conclude(
    out: Path, measured: Mapping[str, Sequence[Measure]], seconds: Mapping[str, float], *, quick: bool = False
) -> int:
    """Write what was measured into the folder ``out``, and name what falls short. Returns the exit code."""
    _write(out, measured, seconds, quick=quick)
    short = [f"{name}: {m.shortfall()}" for name, measures in measured.items() for m in measures if not m.reached]
    for line in short:
        print(f"falls short: {line}", file=sys.stderr)
    return 1 if short and os.environ.get("CHECK") == "1" else 0


def table(benchmark: str, measures: Sequence[Measure], duration_s: float) -> str:
    width = max((len(m.name) for m in measures), default=0)
    lines = [f"{benchmark} ({duration_s:.0f} s)"]
    for m in measures:
        goal = "" if m.goal is None else f"{_SIGNS[m.direction]} {m.goal:.4g}{'' if m.reached else ' ✗'}"
        lines.append(f"  {m.name:<{width}}  {m.value:>9.4g}  {goal:<10}  {m.note}".rstrip())
    return "\n".join(lines)


def _write(out: Path, measured: Mapping[str, Sequence[Measure]], seconds: Mapping[str, float], *, quick: bool) -> None:
    report = {
        "quick": quick,
        "machine": {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()},
        "benchmarks": {
            name: {"seconds": seconds[name], "measures": [asdict(m) | {"reached": m.reached} for m in measures]}
            for name, measures in measured.items()
        },
    }
    (out / "report.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False, default=float) + "\n", encoding="utf-8"
    )
    tables = [table(name, measures, seconds[name]) for name, measures in measured.items()]
    (out / "report.txt").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    print(f"\nwritten: {out}/report.json and report.txt")
