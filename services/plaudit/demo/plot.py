"""Plot of the demo: satisfaction of users over the number of thumbs, and the versions that served.

Knows nothing about measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import PercentFormatter

from plaudit.demo.report import SHIFTED_KIND, TRAFFIC_WINDOW, Observations, moving_satisfaction, thumbs_at
from plaudit.demo.task import KINDS, NEW_KIND, Kind

_COLOURS: Final[Mapping[Kind, str]] = {
    "hear": "#9aa5b1",
    "see": "#7b8794",
    "larger": "#52606d",
    "add": "#d97706",
    "smaller": "#0e7490",
}
_LABELS: Final[Mapping[Kind, str]] = {
    SHIFTED_KIND: "add: users now want only the last digit",
    NEW_KIND: "smaller: never labelled, 30 % of traffic",
}


def draw(path: Path, observed: Observations) -> None:
    """Write the plot as PNG."""
    answers, satisfaction = observed.answers, observed.satisfaction
    figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    # A version that was live so briefly that it never answered was not evaluated.
    changes = [
        (thumbs_at(answers, live_s), version) for live_s, version in observed.timeline if version in satisfaction
    ]
    for kind in KINDS:
        colour = _COLOURS[kind]
        axes.plot(*moving_satisfaction(answers, kind), color=colour, linewidth=1, alpha=0.45)
        held_out = [satisfaction[version][kind] for _, version in changes]
        axes.step(
            [*(thumbs for thumbs, _ in changes), len(answers)],
            [*held_out, held_out[-1]],
            where="post",
            color=colour,
            linewidth=2.2 if kind in _LABELS else 1.2,
            label=_LABELS.get(kind, kind),
        )
    for thumbs, version in changes[1:]:
        if observed.kinds[version] == "finetuned":
            axes.axvline(thumbs, color="#be123c", linewidth=1, linestyle="--")
            note = f"fine-tuned\nversion {version}"
            axes.annotate(note, (thumbs, 0.02), xytext=(4, 0), textcoords="offset points", fontsize=8, color="#be123c")
        else:
            axes.axvline(thumbs, ymin=0, ymax=0.015, color="#323f4b", linewidth=0.6)
    axes.set(
        xlabel="thumbs given (5 % of them wrong); ticks at the bottom: refreshed heads",
        ylabel="users satisfied",
        title=f"thick: held-out inputs; thin: the traffic, last {TRAFFIC_WINDOW} of a kind",
        ylim=(0, 1.02),
        xlim=(0, len(answers)),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=len(KINDS), frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
