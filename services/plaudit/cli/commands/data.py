"""`plaudit data`: what a labelled data folder holds, what is wrong with it, and which rows to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.failures import needs_extra
from plaudit.cli.options import CommonOptions, expand_options

app = typer.Typer(no_args_is_help=True, help="Examine labelled data before a model learns from it.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Labelled data, as `plaudit pretrain --data` takes it.")]
Page = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures, which needs no network.")
]


@app.command()
@expand_options
def check(
    folder: Folder,
    html: Page = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    *,
    common: CommonOptions,
) -> None:
    """Look for unreadable items, copies, leaks between splits, give-aways, missing actions and wrong labels.

    Exit code 1: there is an error, so that training would stop or its accuracy be overstated.

    Example: `plaudit data check animals/ --html report.html`
    """
    settings = common.settings()
    with needs_extra("data"):
        from plaudit.cli.commands import data_audit
    report = data_audit.audit(settings, folder).report
    data_audit.write_page(report, html)
    common.show(report, data_audit.show_report) if not common.as_json else data_audit.print_report(report)
    if report.worst() == "error" or (strict and report.worst() == "warning"):
        raise typer.Exit(1)


@app.command()
@expand_options
def stats(folder: Folder, *, common: CommonOptions) -> None:
    """Count rows, groups and actions by split, and measure the items of each modality.

    Example: `plaudit data stats animals/`
    """
    settings = common.settings()
    with needs_extra("data"):
        from plaudit.cli.commands import data_audit
    counted = data_audit.measured(settings, folder)
    common.show(counted, data_audit.show_statistics)


@app.command()
@expand_options
def clean(
    folder: Folder,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Where to write the list; nothing else is changed.")
    ],
    *,
    common: CommonOptions,
) -> None:
    """Write the list of the rows to leave out: broken ones, copies, and training rows that other splits have.

    Nothing is deleted: `data.exclude` in plaudit.toml takes the list, once it lies in the folder.

    Example: `plaudit data clean animals/ --output animals/exclude.csv`
    """
    settings = common.settings()
    with needs_extra("data"):
        from plaudit.cli.commands import data_audit
    found = data_audit.audit(settings, folder)
    data_audit.write_exclusions(found, output)
    common.show(
        {"excluded": len(found.report.excluded), "rows": len(found.rows), "file": str(output)}, data_audit.show_excluded
    )
