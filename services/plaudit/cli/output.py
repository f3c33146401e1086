"""Output of commands: tables to read or JSON to parse, both on stdout; progress and remarks on stderr."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.text import Text

from plaudit.client import Acknowledgement, Prediction, Receipt, RolloutSnapshot, Version, Versions
from plaudit.core.text.printable import printable
from plaudit_models import version_card


class _Harmless(RenderHook):
    """Spells out what would act on a terminal: ids, reasons and errors reach a console as clients have sent them."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        for each in renderables:
            if isinstance(each, Text) and not each.plain.isprintable():
                each.plain = printable(each.plain)
        return renderables


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)
    console.push_render_hook(_Harmless())
    return console


out = _console()
"""Results as text."""
err = _console(stderr=True)
"""Progress and remarks."""


def print_json(value: Any) -> None:
    """One object on one line, so that a stream of them can be read line by line."""
    print(json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value), flush=True)


def print_prediction(prediction: Prediction) -> None:
    out.print(
        f"{prediction.action}: picked with probability {prediction.propensity:.3f} "
        f"by version {prediction.version} ({prediction.role})"
    )
    rows = [(action, f"{probability:.3f}") for action, probability in prediction.scores.items()]
    _print_table(("action", "probability"), rows)
    for modality, contribution in prediction.contributions.items():
        out.print(f"{modality} contributed {contribution:+.3f}")
    out.print(f"prediction id: {prediction.prediction_id}")


def print_acknowledgement(acknowledged: Acknowledgement) -> None:
    what = "was recorded before; nothing changed" if acknowledged.duplicate else "is recorded"
    out.print(f"feedback {acknowledged.feedback_id} {what}")


def print_receipt(receipt: Receipt) -> None:
    recorded, live_since = _time(receipt.recorded_at_s), _time(receipt.live_since_s)
    cells = (receipt.feedback_id, receipt.state, recorded, receipt.used_in_version, live_since, receipt.reason)
    _print_table(("feedback", "state", "recorded", "used in version", "live since", "reason"), [cells])


def print_raters(rows: Sequence[Mapping[str, Any]]) -> None:
    cells = []
    for row in rows:
        marks = [mark for mark in ("suspected", "floods") if row[mark]]
        user, reliability = row["user"] or "(without id)", f"{row['reliability']:.2f}"
        cells.append(
            (user, row["group"], ", ".join([row["trust_level"], *marks]), row["n"], row["refused"], reliability)
        )
    _print_table(("user", "group", "trust", "counted", "refused", "reliability"), cells)


def print_keys(rows: Sequence[Mapping[str, Any]]) -> None:
    cells = [
        (
            row["id"],
            row["name"],
            ", ".join(row["roles"]),
            "anyone" if row["speaks_for_others"] else row["user_id"],
            row["calls_per_minute"] or "any number",
            _time(row["created_at_s"]),
        )
        for row in rows
    ]
    _print_table(("id", "name", "roles", "speaks for", "calls a minute", "made"), cells)


def print_dead_letters(rows: Sequence[Mapping[str, Any]]) -> None:
    cells = [
        (row["place"], _time(row["time_s"]), row["size_bytes"], "yes" if row["usable"] else "no", row["reason"])
        for row in rows
    ]
    _print_table(("record", "excluded", "bytes", "usable now", "reason"), cells)


def print_replayed(replayed: Sequence[str], left: Mapping[str, str]) -> None:
    out.print(f"{len(replayed)} replayed{'; the learner reads them next' if replayed else ''}")
    for place, problem in left.items():
        out.print(f"{place} is not replayed: {problem}")


def print_orphans(waiting: int, rows: Sequence[Mapping[str, Any]]) -> None:
    out.print(f"{waiting} pieces of feedback wait for their decision")
    if rows:
        cells = [(row["feedback_id"], row["user_id"], _time(row["time_s"]), row["prediction_id"]) for row in rows]
        _print_table(("feedback", "user", "recorded", "prediction"), cells)


def print_versions(listed: Versions) -> None:
    rows = [
        (
            version.version,
            version.kind,
            version.parent,
            _time(version.created_at_s),
            version.digest[:12],
            ", ".join(roles(version.version, listed.rollout)),
            version.reason,
        )
        for version in listed.versions
    ]
    _print_table(("version", "kind", "parent", "created", "digest", "role", "why it was made"), rows)
    print_rollout(listed.rollout)


def print_experiment(experiment: Mapping[str, Any]) -> None:
    where = "requests, in the shadow" if experiment["shadow"] else "users"
    verdict = experiment["verdict"] or "under way"
    out.print(f"experiment of version {experiment['version']} with {experiment['share']:.0%} of the {where}: {verdict}")
    out.print(f"  begun by {experiment['actor']} {_time(experiment['started_at_s'])}")
    if experiment.get("ended_at_s") is not None:
        out.print(f"  ended {_time(experiment['ended_at_s'])}")
    if not experiment["shadow"] or experiment["verdict"]:
        out.print(f"  {experiment['why']}")
    arms = ("live",) if experiment["shadow"] else ("live", "candidate")
    rows = []
    for arm in arms:
        answers, rated = experiment["answers"][arm], experiment["satisfaction"][arm]
        latencies = (_ms(answers["p50_s"]), _ms(answers["p95_s"]))
        rows.append((arm, answers["answered"], answers["failed"], *latencies, rated["n"], _percent(rated["mean"])))
    _print_table(("arm", "answers", "failed", "median", "95 %", "rated", "satisfied"), rows, indent="  ")
    if experiment["shadow"]:
        _print_shadowed(experiment["shadowed"])
        return
    out.print(
        f"  evidence: {experiment['e_value_gain']:.3g} for a gain, {experiment['e_value_harm']:.3g} for harm, "
        f"{experiment['e_value_errors']:.3g} for more failures, "
        f"{experiment['e_value_latency']:.3g} for more late answers"
    )
    slices = [
        (
            each["name"],
            *(f"{_percent(each['satisfaction'][arm]['mean'])} of {each['satisfaction'][arm]['n']}" for arm in arms),
            f"{each['e_value_harm']:.3g}, {each['proof']:.3g} is proof"
            + ("; suspected, so nothing is promoted" if each.get("suspected") else ""),
        )
        for each in experiment["slices"]
    ]
    if slices:
        _print_table(("slice", *arms, "evidence for harm"), slices, indent="  ")
    if experiment.get("ungrouped"):
        out.print(f"  {experiment['ungrouped']} rated answers are of further user groups and count over all only")


def _print_shadowed(shadowed: Mapping[str, Any]) -> None:
    kl = "-" if shadowed["kl_nats"] is None else f"{shadowed['kl_nats']:.4f} nats"
    out.print(
        f"  in the shadow: {shadowed['n']} computed, {shadowed['failed']} failed, {shadowed['dropped']} dropped; "
        f"agreement {_percent(shadowed['agreement'])}, KL {kl}, {_ms(shadowed['mean_s'])} on average, "
        f"{_ms(shadowed['slowest_s'])} at most"
    )
    if shadowed["last_failure"]:
        out.print(f"  its last failure: {shadowed['last_failure']}")


def print_version(version: Version) -> None:
    """Everything known about the version, section by section."""
    out.print(f"version {version.version}")
    for section in version_card.sections(version.manifest):
        out.print(f"\n{section.title}")
        width = max((len(name) for name, _ in section.facts), default=0)
        for name, value in section.facts:
            out.print(f"  {name.ljust(width)}  {value}")
        for table in section.tables:
            _print_table(table.header, table.rows, indent="  ")
        for remark in section.remarks:
            out.print(f"  {remark}")
    if version.experiment is not None:
        out.print("\nExperiment")
        print_experiment(version.experiment)


def print_differences(
    before: int, after: int, ancestry: Sequence[int], differences: Sequence[version_card.Difference]
) -> None:
    if before in ancestry:
        steps = ancestry.index(before)
        made = "itself" if steps == 0 else f"made from version {before} in {steps} step{'s' if steps > 1 else ''}"
    else:
        made = f"not made from version {before}"
    out.print(f"version {after} is {made}")
    rows = [(each.field, each.before or "-", each.after or "-") for each in differences]
    _print_table(("field", f"version {before}", f"version {after}"), rows)


def print_rollout(rollout: RolloutSnapshot) -> None:
    live = f"version {rollout.live} is live" if rollout.live else "no version is live"
    pinned = ", pinned" if rollout.pinned else ""
    because = f" ({rollout.reason})" if rollout.reason else ""
    by = f", set by {rollout.actor} {_time(rollout.changed_at_s)}{because}" if rollout.generation else ""
    out.print(f"model {rollout.model}: {live}{pinned}{by}")
    if rollout.candidate is not None:
        where = "requests, in the shadow" if rollout.shadow else "users"
        out.print(f"version {rollout.candidate} is in an experiment with {rollout.candidate_share:.0%} of the {where}")
    out.print(f"generation {rollout.generation}")


def print_event(event: Mapping[str, Any]) -> None:
    """Event that a service reported, or of its process; see :mod:`plaudit.cli.processes.supervisor`."""
    match event:
        case {"event": "ready", "service": "serve", "address": address, "metrics": metrics}:
            out.print(f"serve: answers at {address}, metrics at http://{metrics}/metrics")
        case {"event": "ready", "service": "console", "page": page}:
            out.print(f"console: try the model and watch the loop at {page}")
        case {"event": "ready", "service": name, "metrics": metrics}:
            out.print(f"{name}: runs, metrics at http://{metrics}/metrics")
        case {"event": "exited", "service": name, "code": code}:
            how = f"with exit code {code}" if code >= 0 else f"by signal {-code} ({_signal_name(-code)})"
            out.print(f"{name}: ended {how}")
        case {"event": "restarting", "service": name, "in_s": in_s}:
            out.print(f"{name}: starting again in {in_s:.0f} s")
        case {"event": "given_up", "service": name}:
            out.print(f"{name}: given up, as starting it again does not help; its last lines above say why")
        case {"event": "not_started", "service": name, "problem": problem}:
            out.print(f"{name}: cannot be started: {problem}")
        case {"event": "waiting", "service": name, "problem": problem, "again_in_s": in_s}:
            out.print(f"{name}: waits, and tries again in {in_s:.0f} s: {problem}")
        case _:
            out.print(json.dumps(event))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def print_finding(subject: str, state: str, message: str, fix: str) -> None:
    mark = {"ok": "✓", "note": "·", "error": "✗"}[state]
    out.print(f"{mark} {subject}: {message}" + (f"\n    fix: {fix}" if fix else ""))


def roles(version: int, rollout: RolloutSnapshot) -> list[str]:
    """Roles of a version, such as ``["live", "gated", "pinned"]``."""
    parts: Mapping[str, int | None] = {
        "live": rollout.live,
        "previous": rollout.previous,
        "gated": rollout.gated,
        "candidate": rollout.candidate,
        "pinned": rollout.live if rollout.pinned else None,
    }
    return [name for name, number in parts.items() if number == version]


def _print_table(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "") -> None:
    """Columns are aligned, never cut nor wrapped: other programs may read them. None is shown as a dash."""
    lines = [header, *(["-" if cell is None else printable(str(cell), one_line=True) for cell in row] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for row in lines:
        out.print(indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _time(time_s: float | None) -> str:
    if time_s is None:
        return "-"
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError, TypeError):  # no calendar has it, and nothing may end on that
        return f"{time_s} s"


def _ms(duration_s: float | None) -> str:
    return "-" if duration_s is None else f"{1e3 * duration_s:.3g} ms"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
