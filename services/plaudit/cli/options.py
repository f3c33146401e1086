"""Options that several commands share, and what they come to: settings and clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from plaudit.cli import output
from plaudit.client import AsyncClient, Client
from plaudit.compose.settings import load_settings
from plaudit.compose.tracing import service_tracing
from plaudit.core.errors import ConfigError
from plaudit.core.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

DEFAULT_CONFIG: Final = Path("plaudit.toml")
CONSOLE_PORT: Final = 8004
"""Where the page is served if it is asked for without a port."""

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file; ./plaudit.toml if it is there.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where all state lives; overrides `data_dir`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; progress goes to stderr.")]
Target = Annotated[
    str | None,
    typer.Option("--target", metavar="HOST:PORT", help="The server; by default the one the settings describe."),
]
Model = Annotated[str, typer.Option("--model", help="Model name; may be left out where one model is served.")]
ConsolePort = Annotated[
    int | None, typer.Option(help="Serve a page to try the model and watch the loop on this port of this machine.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, in one sentence; kept with the change.")]
Expect = Annotated[
    int,
    typer.Option(
        "--expect",
        metavar="GENERATION",
        min=0,
        help="Refuse if somebody has changed the rollout since this generation (`plaudit versions` shows it).",
    ),
]


def read_settings(config: Path | None, data_dir: Path | None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings of a command. ``flags`` are nested as the settings are; None among them means not given.

    Raises:
        ConfigError: naming the setting and the value.
    """
    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    given = _without_none(dict(flags or {}) | {"data_dir": data_dir})
    return load_settings(config, given)


@contextmanager
def client(settings: Settings, target: str | None) -> Iterator[Client]:
    """A client of the server that the settings describe, unless ``target`` names another.

    Where tracing is on, a span of the command is around all its calls.
    """
    with (
        _command_traced(settings) as provider,
        Client(
            target or address(settings.serving.host, settings.serving.port),
            admin_token=settings.serving.admin_token,
            max_message_bytes=settings.serving.max_message_bytes,
            tracer_provider=provider,
        ) as made,
    ):
        yield made


def async_client(settings: Settings, target: str | None, provider: TracerProvider | None = None) -> AsyncClient:
    """The same for asyncio, without the admin token.

    Args:
        provider: makes a span of each call; None: calls are not traced.
    """
    return AsyncClient(
        target or address(settings.serving.host, settings.serving.port),
        max_message_bytes=settings.serving.max_message_bytes,
        tracer_provider=provider,
    )


@contextmanager
def _command_traced(settings: Settings) -> Iterator[TracerProvider | None]:
    """What a command asks for is done, traced or not: where traces cannot be made, that is a remark."""
    try:
        tracing = service_tracing(settings, "plaudit-cli")
    except ConfigError as error:
        output.err.print(f"not traced: {error}")
        tracing = None
    if tracing is None:
        yield None
        return
    try:
        with tracing.span(" ".join(["plaudit", *sys.argv[1:2]])):  # the command's name; what follows is its user's
            yield tracing.provider
    finally:
        tracing.close()


def address(host: str, port: int) -> str:
    """Where to reach what listens on ``host``: an address of this machine where it listens on all of them."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"


def _without_none(flags: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in flags.items():
        if isinstance(value, Mapping):
            kept[name] = _without_none(value)
        elif value is not None:
            kept[name] = value
    return kept
