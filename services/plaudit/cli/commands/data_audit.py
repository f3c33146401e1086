"""Audit of a data folder with a progress bar. Imports scikit-learn; to be imported inside the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed
from plaudit.compose.learner import data_config
from plaudit.core.settings import Settings
from plaudit_models.data.audit.examine import Audit
from plaudit_models.data.audit.findings import AuditReport
from plaudit_models.data.audit.report import exclusions, to_html, to_json
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.rows import Rows, read_rows

_SHOWN_CASES: Final = 5
_MARKS: Final = {"error": "✗", "warning": "!", "note": "·"}


@dataclass(frozen=True, slots=True)
class Audited:
    """Rows of a folder and the report on them."""

    rows: Rows
    report: AuditReport


def audit(settings: Settings, folder: Path) -> Audited:
    """Report on a folder. Raises CommandFailed or ConfigError with a sentence for the user."""
    rows = _rows(settings, folder)
    with _bar() as bar:
        task = bar.add_task("reading", total=None)
        report = Audit(rows, lambda stage, done, n: bar.update(task, description=stage, completed=done, total=n)).run()
    return Audited(rows, report)


def measured(settings: Settings, folder: Path) -> Mapping[str, Any]:
    """Statistics of a folder, without any check. Raises as :func:`audit`."""
    rows = _rows(settings, folder)
    with _bar() as bar:
        task = bar.add_task("reading", total=None)
        counted = Audit(
            rows, lambda stage, done, n: bar.update(task, description=stage, completed=done, total=n)
        ).measure()
    return {"source": str(rows.table.path), **asdict(counted)}


def _rows(settings: Settings, folder: Path) -> Rows:
    try:
        return read_rows(folder, settings.spec(), data_config(settings))
    except InvalidData as error:
        raise CommandFailed(str(error)) from error


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.err) as bar:
        yield bar


def write_page(report: AuditReport, path: Path | None) -> None:
    """Write the page, if one is wanted."""
    if path is not None:
        path.write_text(to_html(report), encoding="utf-8")


def write_exclusions(found: Audited, path: Path) -> None:
    """Write the list of rows to leave out."""
    path.write_text(exclusions(found.report, found.rows), encoding="utf-8")


def print_report(report: AuditReport) -> None:
    """Print the report as JSON."""
    output.print_json(to_json(report))


def show_report(report: AuditReport) -> None:
    """Print the report as text."""
    show_statistics({"source": report.source, **asdict(report.statistics)})
    for finding in report.findings:
        count = f" ({finding.count})" if finding.count else ""
        output.out.print(f"{_MARKS[finding.severity]} {finding.title}{count}")
        for case in finding.cases[:_SHOWN_CASES]:
            more = f" and {len(case.places) - 2} more" if len(case.places) > 2 else ""
            column = f", {case.column}" if case.column else ""
            output.out.print(f"    {'; '.join(case.places[:2])}{more}{column}: {case.text}")
        if finding.cases and finding.count > _SHOWN_CASES:
            output.out.print(f"    and {finding.count - _SHOWN_CASES} more; --html or --json tells them")
    if not report.findings:
        output.out.print("✓ nothing was found")


def show_statistics(counted: Mapping[str, Any]) -> None:
    """Print statistics as text."""
    output.out.print(counted["source"])
    sizes = ", ".join(
        f"{split} {n}" + (f" ({counted['groups'][split]} groups)" if split in counted["groups"] else "")
        for split, n in counted["rows"].items()
    )
    output.out.print(f"  rows: {sizes}")
    if counted["made_splits"]:
        output.out.print(f"  {counted['made_splits']}")
    for action, splits in counted["balance"].items():
        output.out.print(f"  {action}: {', '.join(f'{split} {n}' for split, n in splits.items()) or 'none'}")
    for name, facts in counted["modalities"].items():
        output.out.print(f"  {name}: {facts['kind']}, in {facts['rows']} rows, {facts['distinct']} distinct")
        for fact, value in facts.items():
            if isinstance(value, Mapping):
                told = ", ".join(
                    f"{key} {part:g}" if isinstance(part, float) else f"{key} {part}" for key, part in value.items()
                )
                output.out.print(f"    {fact}: {told}")


def show_excluded(written: Mapping[str, Any]) -> None:
    """Print what was written as text."""
    output.out.print(
        f"{written['excluded']} of {written['rows']} rows are listed in {written['file']}; nothing was deleted. "
        "To leave them out, set data.exclude to its path within the folder"
    )
