"""Runs the learning benchmarks and writes a table, a JSON file and plots. With CHECK=1 it fails where a goal is missed.

    make bench-learning                              all of them
    make bench-learning ONLY="shift digits_bandit"   some of them
    make bench-learning QUICK=1                      smaller streams, to see that everything runs; goals mean nothing

A benchmark is a module of this package with `run(shuffles: int, quick: bool) -> list[Measure]`, named in BENCHMARKS.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy is loaded
    os.environ.setdefault(name, "1")

from benchmarks.learning.measure import Measure  # noqa: E402

BENCHMARKS = ("digits_bandit", "shift", "gate", "poisoning", "ope", "cost")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-learning", description="How well the learner learns.")
    parser.add_argument("only", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)}; all if left out")
    parser.add_argument("--shuffles", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small streams: does it run? goals mean nothing")
    parser.add_argument("--out", type=Path, default=Path("build/bench-learning"))
    options = parser.parse_args()
    for benchmark in options.only:
        if benchmark not in BENCHMARKS:
            parser.error(f"benchmark: {benchmark!r} is not one of {', '.join(BENCHMARKS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[Measure]] = {}
    seconds: dict[str, float] = {}
    for benchmark in options.only or BENCHMARKS:
        started_s = time.monotonic()
        module = importlib.import_module(f"benchmarks.learning.{benchmark}")
        measured[benchmark] = module.run(options.shuffles, options.quick)
        seconds[benchmark] = time.monotonic() - started_s
        _say(benchmark, measured[benchmark], seconds[benchmark])
        _plot(options.out / f"{benchmark}.png", benchmark, measured[benchmark])
    _write(options.out, measured, seconds, shuffles=options.shuffles, quick=options.quick)
    short = [f"{name} {m.shortfall()}" for name, measures in measured.items() for m in measures if not m.reached]
    for line in short:
        print(f"falls short: {line}", file=sys.stderr)
    return 1 if short and os.environ.get("CHECK") == "1" else 0


def _say(benchmark: str, measures: Sequence[Measure], duration_s: float) -> None:
    print(f"\n{benchmark} ({duration_s:.0f} s)")
    for row in _rows(measures):
        print("  " + row, flush=True)


def _rows(measures: Sequence[Measure]) -> list[str]:
    sign = {"at_least": "≥", "at_most": "≤"}
    width = max((len(m.name) for m in measures), default=0)
    rows = []
    for m in measures:
        goal = "" if m.goal is None else f"{sign[m.direction]} {m.goal:.4g} {'' if m.reached else '✗'}"
        rows.append(f"{m.name:<{width}}  {m.value:>9.4g}  {goal:<14}  {m.note}".rstrip())
    return rows


def _write(out: Path, measured: Mapping[str, Sequence[Measure]], seconds: Mapping[str, float], **options: Any) -> None:
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    report = {
        "options": options,
        "machine": machine,
        "benchmarks": {
            name: {
                "seconds": seconds[name],
                "measures": [asdict(m) | {"reached": m.reached} for m in measures],
            }
            for name, measures in measured.items()
        },
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, default=float)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    lines = [f"{name} ({seconds[name]:.0f} s)\n" + "\n".join(_rows(measures)) for name, measures in measured.items()]
    (out / "report.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nwritten: {out}/report.json, report.txt and plots")


def _plot(path: Path, title: str, measures: Sequence[Measure]) -> None:
    curves = [(m.name, m.curve) for m in measures if m.curve is not None]
    if not curves:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name, curve in curves:
        axes.plot(curve.x, curve.y, label=name, linewidth=1.2)
        axes.set_xlabel(curve.x_name)
        axes.set_ylabel(curve.y_name)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
