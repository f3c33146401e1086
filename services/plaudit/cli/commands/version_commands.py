"""Commands that show the versions of a running server's model and say which of them serves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from plaudit.cli import output
from plaudit.cli.options import RolloutOptions, ServedModelOptions, called_alone, expand_options
from plaudit_models import version_card

versions = typer.Typer(no_args_is_help=False)
app = typer.Typer()

Number = Annotated[int, typer.Argument(metavar="N", min=1, help="The version.")]


@versions.callback()
@expand_options
def list_versions(context: typer.Context, *, options: ServedModelOptions) -> None:
    """List the versions, which of them serves, and why; show one, or what differs between two.

    Example: `plaudit versions`, `plaudit versions show 3`, `plaudit versions diff 1 3`
    """
    if called_alone(context, options):
        with options.client(admin=True) as client:
            options.show(client.versions(model=options.model), output.print_versions)


@versions.command()
@expand_options
def show(number: Number, *, options: ServedModelOptions) -> None:
    """Show all that is known about a version: lineage, data, raters, metrics per slice, gate evidence, digests.

    Example: `plaudit versions show 3`
    """
    with options.client(admin=True) as client:
        options.show(client.version(number, model=options.model), output.print_version)


@versions.command()
@expand_options
def diff(
    before: Annotated[int, typer.Argument(metavar="A", min=1, help="A version.")],
    after: Annotated[int, typer.Argument(metavar="B", min=1, help="Another.")],
    *,
    options: ServedModelOptions,
) -> None:
    """Show what differs between two versions, and whether one was made from the other.

    Example: `plaudit versions diff 1 3`
    """
    with options.client(admin=True) as client:
        manifests = [client.version(number, model=options.model).manifest for number in (before, after)]
        parents = {version.version: version.parent for version in client.versions(model=options.model).versions}
    differences = version_card.differences(*manifests)
    ancestry = version_card.ancestry(after, parents)
    if options.as_json:
        rows = [asdict(each) for each in differences]
        output.print_json({"before": before, "after": after, "ancestry": ancestry, "differences": rows})
    else:
        output.print_differences(before, after, ancestry, differences)


@app.command()
@expand_options
def promote(number: Number, *, options: RolloutOptions) -> None:
    """Make a version live.

    Example: `plaudit promote 3 --reason "measured better on the ward's own images"`
    """
    with options.client(admin=True) as client:
        options.show(client.promote(number, **options.change()), output.print_rollout)


@app.command()
@expand_options
def rollback(options: RolloutOptions) -> None:
    """Make the previous version live again.

    Example: `plaudit rollback --reason "complaints about sums"`
    """
    with options.client(admin=True) as client:
        options.show(client.rollback(**options.change()), output.print_rollout)


@app.command()
@expand_options
def pin(number: Number, *, options: RolloutOptions) -> None:
    """Make a version live and keep it, whatever the learner publishes, until `plaudit unpin`.

    Example: `plaudit pin 3 --reason "audit until Friday"`
    """
    with options.client(admin=True) as client:
        options.show(client.pin(number, **options.change()), output.print_rollout)


@app.command()
@expand_options
def unpin(options: RolloutOptions) -> None:
    """Let the learner change what is live again.

    Example: `plaudit unpin`
    """
    with options.client(admin=True) as client:
        options.show(client.unpin(**options.change()), output.print_rollout)
