"""Options that several commands share, declared once as groups, and what they lead to: settings, a client, output.

A command takes a group as one parameter; :func:`expand_options` shows typer one option for each of its fields:

    @app.command()
    @expand_options
    def receipt(feedback_id: FeedbackId, *, options: ServerOptions) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_type_hints

import typer

from plaudit.cli import output
from plaudit.client import AsyncClient, Client
from plaudit.client.calls import ChangeOptions
from plaudit.compose.settings import api_key_in_environment, load_settings
from plaudit.compose.tracing import service_tracing
from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import reachable
from plaudit.core.settings import Settings, admin_target

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

DEFAULT_CONFIG: Final = Path("plaudit.toml")

Model = Annotated[str, typer.Option("--model", help="Model name; may be left out where one model is served.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; progress goes to stderr.")]

Result = TypeVar("Result")


@dataclass(frozen=True)
class CommonOptions:
    """Options of every command."""

    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings file; ./plaudit.toml if it is there.")
    ] = None
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Where all state lives; overrides `data_dir`.")
    ] = None
    as_json: Json = False

    def settings(self, flags: Mapping[str, Any] | None = None) -> Settings:
        """Settings from the file, the environment and the flags, which go first.

        Args:
            flags: nested as the settings are; None among them means not given.

        Raises:
            ConfigError: naming the setting and the value.
        """
        config = self.config
        if config is None and DEFAULT_CONFIG.is_file():
            config = DEFAULT_CONFIG
        settings = load_settings(config, _without_none(dict(flags or {}) | {"data_dir": self.data_dir}))
        os.umask(int(settings.umask, 8))
        return settings

    def arguments(self) -> list[str]:
        """The same options for a ``plaudit`` as child process, which reports in JSON."""
        return [
            "--json",
            *(["--config", str(self.config)] if self.config else []),
            *(["--data-dir", str(self.data_dir)] if self.data_dir else []),
        ]

    def show(self, result: Result, as_text: Callable[[Result], None]) -> None:
        """Print the result: as JSON with ``--json``, otherwise with ``as_text``."""
        (output.print_json if self.as_json else as_text)(result)


@dataclass(frozen=True)
class ModelOptions(CommonOptions):
    """Options of commands that work on the data of one model."""

    model: Model = ""


@dataclass(frozen=True)
class ServerOptions(CommonOptions):
    """Options of commands that call a running server."""

    target: Annotated[
        str | None,
        typer.Option("--target", metavar="HOST:PORT", help="The server; by default the one the settings describe."),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", metavar="FILE", help="File with the API key; by default that in PLAUDIT_API_KEY."
        ),
    ] = None
    tls_ca: Annotated[
        str | None,
        typer.Option(
            "--tls-ca",
            metavar="FILE",
            envvar="PLAUDIT_TLS_CA",
            help="Speak TLS, and trust certificates signed by these (PEM), or by `system` those of the well-known "
            "authorities; by default `serving.tls.certificate`, for the server that the settings describe.",
        ),
    ] = None
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate", metavar="FILE", envvar="PLAUDIT_CLIENT_CERTIFICATE", help="The client's own (PEM)."
        ),
    ] = None
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", envvar="PLAUDIT_CLIENT_KEY", help="Its private key (PEM)."),
    ] = None

    @contextmanager
    def client(self, *, admin: bool = False) -> Iterator[Client]:
        """Client of the server; where tracing is on, a span of the command is around all its calls.

        Args:
            admin: the calls are those of an admin, for which the server may have a port of its own.
        """
        settings = self.settings()
        target = self.target or _described(settings, admin=admin)
        with (
            _command_span(settings) as provider,
            Client(
                target,
                api_key=self.api_key(),
                admin_token=settings.serving.admin_token,
                tls_ca=self.server_ca(settings, target),
                certificate=self.certificate,
                key=self.key,
                max_message_bytes=settings.serving.max_message_bytes,
                tracer_provider=provider,
            ) as client,
        ):
            yield client

    def api_key(self) -> str | None:
        """The key of the file, or of the environment; None: there is none."""
        if self.api_key_file is None:
            return api_key_in_environment()
        try:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file: {self.api_key_file} cannot be read ({error})") from error

    def server_ca(self, settings: Settings, target: str) -> str | None:
        """File of the authorities to trust; None: plain text."""
        tls = settings.serving.tls
        if self.tls_ca is not None or tls.certificate is None or self.target is not None:
            return self.tls_ca
        return None if target == admin_target(settings.serving) else str(tls.certificate)


@dataclass(frozen=True)
class ServedModelOptions(ServerOptions):
    """Options of commands that ask a running server about one of its models."""

    model: Model = ""


@dataclass(frozen=True)
class RolloutOptions(ServedModelOptions):
    """Options of commands that change which version of a model serves."""

    reason: Annotated[str, typer.Option("--reason", help="Why, in one sentence; kept with the change.")] = ""
    expect: Annotated[
        int,
        typer.Option(
            "--expect",
            metavar="GENERATION",
            min=0,
            help="Refuse if the rollout has changed since this generation (`plaudit versions` shows it).",
        ),
    ] = 0

    def change(self) -> ChangeOptions:
        """Keyword arguments of the client's method that makes the change."""
        return {"reason": self.reason, "expected_generation": self.expect, "model": self.model}


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` as typer is to see it: each parameter that is a group of options, a dataclass, becomes its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters = []
    for name, own in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        shared = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=shared[field.name]
            )
            for field in fields(groups[name])
        ]

    @functools.wraps(command)
    def expanded(**given: object) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    expanded.__annotations__ = {each.name: each.annotation for each in parameters}
    expanded.__dict__["__signature__"] = inspect.Signature(parameters)
    return expanded


def called_alone(context: typer.Context, options: CommonOptions) -> bool:
    """True where a group of commands was called by itself, without one of its commands.

    Raises:
        BadParameter: options were given before the command, where they would have no effect.
    """
    if context.invoked_subcommand is not None and options != type(options)():
        raise typer.BadParameter(f"put options behind {context.invoked_subcommand!r}")
    return context.invoked_subcommand is None


@contextmanager
def _command_span(settings: Settings) -> Iterator[TracerProvider | None]:
    """Provider of spans below one for the command; None where tracing is off or, with a remark, impossible."""
    try:
        tracing = service_tracing(settings, "plaudit-cli")
    except ConfigError as error:
        output.err.print(f"not traced: {error}")
        tracing = None
    if tracing is None:
        yield None
        return
    try:
        with tracing.span(" ".join(["plaudit", *sys.argv[1:2]])):  # the command's name; the rest may be confidential
            yield tracing.provider
    finally:
        tracing.close()


def _described(settings: Settings, *, admin: bool) -> str:
    """Address of the server that the settings describe."""
    own = admin_target(settings.serving) if admin else None
    return own or reachable(settings.serving.host, settings.serving.port)


def async_client(settings: Settings, options: ServerOptions, provider: TracerProvider | None = None) -> AsyncClient:
    """Client for asyncio of the server, without the admin token.

    Args:
        provider: makes a span of each call; None: calls are not traced.
    """
    target = options.target or _described(settings, admin=False)
    return AsyncClient(
        target,
        api_key=options.api_key(),
        tls_ca=options.server_ca(settings, target),
        certificate=options.certificate,
        key=options.key,
        max_message_bytes=settings.serving.max_message_bytes,
        tracer_provider=provider,
    )


def _without_none(flags: Mapping[str, Any]) -> dict[str, Any]:
    given = {}
    for name, value in flags.items():
        if isinstance(value, Mapping):
            given[name] = _without_none(value)
        elif value is not None:
            given[name] = value
    return given
