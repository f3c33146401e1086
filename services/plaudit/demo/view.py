"""Progress of the demo: a live table on a terminal, plain lines elsewhere. All of it on stderr.

Knows nothing about measuring; it shows a :class:`TrafficState`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from plaudit.demo.report import NEW_KIND_TARGET, SHIFT_TARGET, SHIFTED_KIND, Answer, Failure
from plaudit.demo.task import KINDS, NEW_KIND, Kind

RECENT: Final = 100
"""Number of answers of a kind that the satisfaction shown is averaged over."""
_RECENT_S: Final = 5.0
_CHANGES_SHOWN: Final = 8
_LINE_EVERY_S: Final = 10.0
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_TREND_CELLS: Final = 30
_TREND_CELLS_LEAST: Final = 11
_OTHER_CELLS: Final = 62
"""Width of the other columns of a line."""

_WANTED: Final[Mapping[Kind, str]] = {
    "hear": "the spoken digit",
    "see": "the written digit",
    "larger": "the larger of the two",
    "add": "now only the last digit of the sum",
    "smaller": "the smaller of the two, never labelled",
}


@dataclass
class TrafficState:
    """State of the traffic while it runs; the driver writes it, the view reads it.

    Attributes:
        total: number of requests to be sent.
        started_s: start of the traffic, UTC seconds.
        changes: latest changes of what serves, newest last.
        finetuning: state of the fine-tuning job, in a few words.
        paused_for: reason why requests pause, in a few words; empty while they are sent.
    """

    total: int
    started_s: float
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    changes: deque[str] = field(default_factory=lambda: deque(maxlen=_CHANGES_SHOWN))
    live: int | None = None
    candidate: int | None = None
    swaps: int = 0
    finetuning: str = "none"
    paused_for: str = ""
    freshness_s: float | None = None


def recent_satisfaction(answers: Sequence[Answer], kind: Kind) -> float | None:
    """Share of the last answers of ``kind`` that users liked; None if there are none."""
    liked = _liked(answers, kind)[-RECENT:]
    return sum(liked) / len(liked) if liked else None


def trend(liked: Sequence[bool], cells: int = _TREND_CELLS) -> str:
    """A line of blocks: the share liked in each of up to ``cells`` equal stretches, oldest first."""
    cells = min(cells, len(liked))
    stretches = [liked[len(liked) * i // cells : len(liked) * (i + 1) // cells] for i in range(cells)]
    return "".join(_LEVELS[min(int(sum(s) / len(s) * len(_LEVELS)), len(_LEVELS) - 1)] for s in stretches)


def per_second(answers: Sequence[Answer], now_s: float) -> float:
    """Answers a second over the last few seconds."""
    count = 0
    for answer in reversed(answers):
        if answer.answered_s < now_s - _RECENT_S:
            break
        count += 1
    return count / _RECENT_S


def render(state: TrafficState, now_s: float, width: int = 120) -> RenderableType:
    """Live view, ``width`` columns wide."""
    kinds = Table(box=None, pad_edge=False, header_style="dim")
    cells = max(_TREND_CELLS_LEAST, min(_TREND_CELLS, width - _OTHER_CELLS))
    for title in ("satisfied", f"last {RECENT}", "since start", "what users want"):
        kinds.add_column(title, no_wrap=True)
    for kind in KINDS:
        recent = recent_satisfaction(state.answers, kind)
        style = {SHIFTED_KIND: "yellow", NEW_KIND: "cyan"}.get(kind, "")
        line_of_blocks = trend(_liked(state.answers, kind), cells)
        kinds.add_row(kind, _percent(recent), line_of_blocks, _WANTED[kind], style=style)
    facts = Table.grid(padding=(0, 3))
    facts.add_row(
        f"[b]{len(state.answers)}[/b] of {state.total} thumbs",
        f"{per_second(state.answers, now_s):.0f} a second",
        f"{now_s - state.started_s:.0f} s",
        f"{len(state.failures)} failed",
    )
    facts.add_row(
        f"version [b]{state.live or '-'}[/b] serves",
        f"in an experiment: {state.candidate or '-'}",
        f"{state.swaps} swaps",
        f"thumb to policy: {_seconds(state.freshness_s)}",
    )
    news = Text("\n".join(state.changes) or "nothing has changed yet", style="dim", no_wrap=True, overflow="ellipsis")
    waiting = f"\nusers wait for {state.paused_for}" if state.paused_for else ""
    now = Text(f"fine-tuning: {state.finetuning}{waiting}")
    return Group(facts, Text(), kinds, Text(), now, Text(), news)


def line(state: TrafficState, now_s: float) -> str:
    """Live view in one line."""
    kinds = ", ".join(f"{kind} {_percent(recent_satisfaction(state.answers, kind))}" for kind in KINDS)
    return (
        f"{len(state.answers)}/{state.total} thumbs, {per_second(state.answers, now_s):.0f}/s, "
        f"{len(state.failures)} failed; version {state.live or '-'}, {state.swaps} swaps, "
        f"fresh in {_seconds(state.freshness_s)}; fine-tuning {state.finetuning}; "
        f"{f'users wait for {state.paused_for}; ' if state.paused_for else ''}satisfied: {kinds}"
    )


def results(summary: Mapping[str, Any]) -> RenderableType:
    """Final tables of the content of summary.json."""
    return Group(Text(), _pretrained(summary["pretrain"]), Text(), _learned(summary))


def _pretrained(pretrain: Mapping[str, Any]) -> Table:
    table = _table("right after pre-training", *pretrain["accuracy"])
    table.add_row("with everything given", *(_percent(share) for share in pretrain["accuracy"].values()))
    for name, withheld in pretrain["without"].items():
        table.add_row(f"without {name}", *(_percent(withheld[kind]) for kind in pretrain["accuracy"]))
    return table


def _learned(summary: Mapping[str, Any]) -> Table:
    requests, fresh_s, unchanged = summary["requests"], summary["freshness_s"], summary["unchanged"]
    table = _table("users satisfied", "before", "after", "")
    for name, change, target in (
        (f"{SHIFTED_KIND}: users changed their taste", summary["shift"], SHIFT_TARGET),
        (f"{NEW_KIND}: never labelled", summary["new_kind"], NEW_KIND_TARGET),
    ):
        reached = change["reached_after_thumbs"]
        when = "not reached" if reached is None else f"reached after {reached}"
        table.add_row(
            name,
            _percent(change["before"]),
            _percent(change["after"]),
            f"{change['thumbs']} thumbs; {target:.0%} {when}",
        )
    which = f"{unchanged['kind']}, version {unchanged['version']}"
    table.add_row("other kinds, worst drop", "", f"{unchanged['worst_drop_points']:.1f} points", which)
    served = ", ".join(f"{count} {made}" for made, count in summary["versions_served"].items())
    table.add_row("versions that served", "", str(sum(summary["versions_served"].values())), served)
    table.add_row("requests failed", "", str(requests["failed"]), f"of {requests['total']}")
    table.add_row("thumb to changed policy", "", _seconds(fresh_s["p50"]), f"95 % within {_seconds(fresh_s['p95'])}")
    for version in summary["trainings_cut_short"]:
        table.add_row("training cut short by its time limit", "", f"version {version}", "weaker than it could be")
    table.add_row("the whole demo", "", _seconds(summary["duration_s"]), "")
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(titles[0])
    for title in titles[1:]:
        table.add_column(title, justify="right" if title else "left")
    return table


def finetuning_text(report: Mapping[str, Any]) -> str:
    """State of the fine-tuning in a few words, from the learner's status."""
    match report:
        case {"phase": "training", "snapshot": snapshot, "progress": progress}:
            return f"training on {snapshot} experiences, {_percent(progress.get('fraction', 0.0))}"
        case {"phase": "gating", "gate": gate}:
            return f"candidate at the gate: {gate['n']} experiences, evidence {gate['e_value_gain']:.3g} for a gain"
        case {"phase": "canary", "canary": canary}:
            return f"version {canary['version']} in an experiment: {canary['n']} experiences, {canary['why']}"
        case {"phase": "idle"}:
            return "waiting for more experiences"
        case _:
            return "none"


def outcome_text(outcome: Mapping[str, Any]) -> str:
    """Outcome of a fine-tuning in one sentence."""
    version = f"version {outcome['version']}" if outcome["version"] else outcome["run"]
    verdict = {
        "promote": "was promoted",
        "reject": "was rejected",
        "insufficient": "was not promoted for lack of evidence",
        "failed": "failed",
    }[outcome["outcome"]]
    return f"fine-tuned {version} {verdict}: {outcome['why']}"


class View:
    """Shows the stages of the demo one after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def training(self) -> Iterator[Callable[[float, str], None]]:
        """Yields a function that shows progress: fraction done and a few words."""
        if not self._console.is_terminal:
            yield _Lines(self.say).training
            return
        columns = (TextColumn("pre-training"), BarColumn(bar_width=15), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("", total=1.0)
            yield lambda fraction, words: progress.update(task, completed=fraction, description=words)

    @contextmanager
    def traffic(self) -> Iterator[Callable[[TrafficState], None]]:
        """Yields a function that shows the present state; call it a few times a second."""
        if not self._console.is_terminal:
            yield _Lines(self.say).traffic
            return
        with Live(console=self._console, auto_refresh=False) as live:
            yield lambda state: live.update(render(state, time.time(), self._console.width), refresh=True)

    def results(self, summary: Mapping[str, Any]) -> None:
        self._console.print(results(summary))


class _Lines:
    """Progress where there is no terminal: a line every :data:`_LINE_EVERY_S`, and one for every change."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last_s = 0.0
        self._last_change = ""

    def training(self, fraction: float, words: str) -> None:
        if self._due() or fraction >= 1.0:
            self._say(f"pre-training {fraction:.0%}: {words}")

    def traffic(self, state: TrafficState) -> None:
        if state.changes and state.changes[-1] != self._last_change:
            self._last_change = state.changes[-1]
            self._say(self._last_change)
        if self._due():
            self._say(line(state, time.time()))

    def _due(self) -> bool:
        now_s = time.monotonic()
        due = now_s - self._last_s >= _LINE_EVERY_S
        if due:
            self._last_s = now_s
        return due


def _liked(answers: Sequence[Answer], kind: Kind) -> list[bool]:
    return [answer.liked for answer in answers if answer.kind == kind]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _seconds(duration_s: float | None) -> str:
    return "-" if duration_s is None else f"{duration_s:.1f} s"
