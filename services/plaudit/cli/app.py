"""The root command: ``plaudit --version`` and the groups of commands.

A command reads its options, calls the code that does the work and prints the result. Modules that need an extra are
imported inside the command that needs them, so that the other commands start at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from plaudit import __version__
from plaudit.cli.commands import (
    access,
    canary,
    client_commands,
    data,
    deadletter,
    model_commands,
    raters,
    service_commands,
    version_commands,
)
from plaudit.cli.failures import exit_codes

app = typer.Typer(
    name="plaudit",
    help="Serve a multimodal model that learns from its users' thumbs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(service_commands.app)
app.add_typer(model_commands.app)
app.add_typer(data.app, name="data")
app.add_typer(client_commands.app)
app.add_typer(raters.app, name="raters")
app.add_typer(deadletter.app, name="deadletter")
app.add_typer(deadletter.orphans_app)
app.add_typer(version_commands.versions, name="versions", invoke_without_command=True)
app.add_typer(version_commands.app)
app.add_typer(canary.app, name="canary")
app.add_typer(access.keys, name="keys")
app.add_typer(access.tls, name="tls")


def run() -> None:
    with exit_codes():
        app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version of plaudit.")
    ] = False,
) -> None:
    pass
