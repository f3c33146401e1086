"""The learning benchmarks, with plots; see runner.py.

    make bench-learning                              all of them
    make bench-learning ONLY="shift digits_bandit"   some of them
    make bench-learning QUICK=1                      smaller streams, to see that everything runs; goals mean nothing

A benchmark is a module of this package with `run(shuffles: int, quick: bool) -> list[Measure]`, named below.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy is loaded
    os.environ.setdefault(name, "1")

from benchmarks.measure import Measure  # noqa: E402
from benchmarks.runner import main  # noqa: E402


def _plot(out: Path, benchmark: str, measures: Sequence[Measure]) -> None:
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
    axes.set_title(benchmark)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / f"{benchmark}.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Quality of what the learner learns, beside its peers on the same streams."
    )
    parser.add_argument("--shuffles", type=int, default=5, help="repetitions with other seeds")
    sys.exit(
        main(
            "learning",
            [
                "digits_bandit",
                "shift",
                "drift",
                "hear_see_ask",
                "sampled",
                "gate",
                "poisoning",
                "people",
                "ope",
                "dynamic_actions",
                "cost",
                "actions",
            ],
            parser,
            run=lambda module, options: module.run(options.shuffles, options.quick),
            then=_plot,
        )
    )
