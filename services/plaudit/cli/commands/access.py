"""``plaudit keys`` and ``plaudit tls``: who may call the service, and the certificate that it shows."""

from __future__ import annotations

import socket
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from plaudit.cli import output
from plaudit.cli.failures import needs_extra
from plaudit.cli.options import CommonOptions, expand_options
from plaudit.core.access import CallerRole
from plaudit.core.prediction_id import SigningKeys

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys; a running service knows at once.")
tls = typer.Typer(no_args_is_help=True, help="Certificates of the service.")

DEFAULT_ROLES: Final = [CallerRole.PREDICT, CallerRole.FEEDBACK]


@keys.command()
@expand_options
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for; also its user, unless told.")],
    role: Annotated[
        list[CallerRole], typer.Option("--role", help="What it may do. Repeatable.", show_default=False)
    ] = DEFAULT_ROLES,
    user: Annotated[str, typer.Option(metavar="ID", help="User that its requests are of; by default its name.")] = "",
    speaks_for_others: Annotated[
        bool, typer.Option("--speaks-for-others", help="Its requests may be of any user, as those of a web server are.")
    ] = False,
    calls_per_minute: Annotated[
        int,
        typer.Option(min=0, help="Calls, and messages on streams, that a process takes a minute; 0: any."),
    ] = 0,
    *,
    common: CommonOptions,
) -> None:
    """Make a key and print it, once: only its digest is kept. From the first key on, every call needs one.

    Example: `plaudit keys create web --speaks-for-others`, `plaudit keys create ops --role admin`
    """
    if speaks_for_others and user:
        raise typer.BadParameter("a key that speaks for others is of no user", param_hint="--user")
    settings = common.settings()
    with needs_extra("serve"):
        from plaudit.compose.access import key_file

        entry, key = key_file(settings).create(
            name, role, user_id=user, speaks_for_others=speaks_for_others, calls_per_minute=calls_per_minute
        )
    if common.as_json:
        output.print_json({"id": entry.id, "name": entry.name, "roles": list(entry.roles), "key": key})
        return
    output.err.print(f"key {entry.id} for {entry.name}: {', '.join(entry.roles)}; it is shown this once:")
    print(key)


@keys.command(name="list")
@expand_options
def list_keys(common: CommonOptions) -> None:
    """List the keys: whose they are and what they may do. Not the keys themselves, which nobody has.

    Example: `plaudit keys list`
    """
    settings = common.settings()
    with needs_extra("serve"):
        from plaudit.compose.access import key_file

        entries = key_file(settings).entries()
    rows = [{name: value for name, value in asdict(each).items() if name != "sha256"} for each in entries]
    common.show(rows, output.print_keys)


@keys.command()
@expand_options
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The key's id; `plaudit keys list` shows it.")],
    *,
    common: CommonOptions,
) -> None:
    """Revoke a key: the next call with it is refused.

    Example: `plaudit keys revoke 4f2a9c01b7`
    """
    settings = common.settings()
    with needs_extra("serve"):
        from plaudit.compose.access import key_file

        entry = key_file(settings).revoke(id_)
    if common.as_json:
        output.print_json({"id": entry.id, "name": entry.name})
    else:
        output.err.print(f"revoked: {entry.id} for {entry.name}")


@keys.command(name="rotate-signing")
@expand_options
def rotate_signing(common: CommonOptions) -> None:
    """Make a new key to sign prediction ids with. The one before stays good until the next rotation.

    Example: `plaudit keys rotate-signing`, then start the services anew, one after the other
    """
    settings = common.settings()
    with needs_extra("serve"):
        from plaudit.compose.paths import data_dir

        SigningKeys(data_dir(settings) / "signing.key").rotate()
    output.err.print("start the services anew: they go on signing with the key before until then")


@tls.command(name="self-signed")
@expand_options
def self_signed(
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name or address that clients call the service by. Repeatable; besides this machine's."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where server.crt and server.key go; by default DATA_DIR/tls.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is valid.")] = 365,
    *,
    common: CommonOptions,
) -> None:
    """Make a certificate that is its own authority, and its key. Clients trust it by `--tls-ca server.crt`.

    Example: `plaudit tls self-signed --host plaudit.example`
    """
    settings = common.settings()
    with needs_extra("serve"):
        from plaudit.adapters.access.self_signed import make_self_signed
        from plaudit.compose.paths import data_dir

        folder = data_dir(settings) / "tls" if out is None else out
        certificate, key = folder / "server.crt", folder / "server.key"
        hosts = dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname(), *(host or [])])
        make_self_signed(certificate, key, list(hosts), days)
    made = {"certificate": str(certificate), "key": str(key)}
    if common.as_json:
        output.print_json({**made, "hosts": list(hosts), "days": days})
        return
    output.err.print(f"for {', '.join(hosts)}; valid for {days} days. For plaudit.toml:")
    print("\n".join(["[serving.tls]", *(f'{name} = "{path}"' for name, path in made.items())]))
