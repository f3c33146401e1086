"""Commands that run services until ctrl-C, the demo, and the doctor."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed, drop_output, lasting_problems, needs_extra
from plaudit.cli.options import CommonOptions, Json, Model, ServerOptions, expand_options
from plaudit.cli.processes import ports, supervisor
from plaudit.core.settings import admin_place

CONSOLE_PORT: Final = 8004
"""Port of the console where it is asked for without one."""

ConsolePort = Annotated[
    int | None, typer.Option(help="Serve a page to try the model and watch the loop on this port of this machine.")
]

app = typer.Typer()


@app.command()
def demo(
    events: Annotated[int, typer.Option(min=100, help="Requests that simulated users send.")] = 8_000,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long they take for it.")] = 3.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same data, requests and thumbs.")] = 0,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Where everything goes; an earlier demo there is removed.")
    ] = Path("demo-data"),
    console_port: ConsolePort = None,
    as_json: Json = False,
) -> None:
    """See it all at work: pre-train, serve, learn from simulated users, swap versions; then a plot and a summary.

    Example: `plaudit demo --minutes 3 --seed 1`
    """
    with needs_extra("demo"):
        from plaudit.demo.run import CONFIG, Options, run
        from plaudit.demo.services import DemoFailed
        from plaudit.demo.speech import SpeechFailed
    try:
        options = Options(data_dir, events=events, minutes=minutes, seed=seed, console_port=console_port)
        summary = run(options, Console(stderr=True))
    except (DemoFailed, SpeechFailed) as error:
        raise CommandFailed(str(error)) from error
    command = f"plaudit up --config {data_dir / CONFIG} --console-port {CONSOLE_PORT}"
    output.err.print(f"to go on, and to ask it things yourself: {command}")
    if as_json:
        output.print_json(summary)


@app.command()
@expand_options
def up(console_port: ConsolePort = None, *, common: CommonOptions) -> None:
    """Run the inference service and the learner together until ctrl-C, which drains both.

    Example: `plaudit up --config plaudit.toml --console-port 8004`, and a page to look at besides
    """
    with needs_extra("learn"):
        from plaudit.cli.processes.services import KILL_MARGIN_S, LEARNER_EXIT_S, serving_exit_s
        from plaudit.compose.registry import known_models
    settings = common.settings({"console": {"port": console_port}})
    models = known_models(settings)
    learner_ports = [
        settings.learner.metrics_port + n if settings.learner.metrics_port else 0 for n in range(len(models))
    ]
    # Before anything is started: where a port is taken, perhaps by another `plaudit up`, nothing else is touched.
    ports.require_free("serving.port", settings.serving.host, settings.serving.port)
    ports.require_free("serving.metrics_port", settings.serving.metrics_host, settings.serving.metrics_port)
    if (own := admin_place(settings.serving)) is not None:
        ports.require_free("serving.admin_address", *own)
    for port in learner_ports:
        ports.require_free("learner.metrics_port", settings.learner.host, port)
    if settings.console.port is not None:
        ports.require_free("console.port", settings.console.host, settings.console.port)
    services = [supervisor.Service("serve", _plaudit("serve", common), restart=False)]
    for number, (model, port) in enumerate(zip(models, learner_ports, strict=True)):
        command = [*_plaudit("learn", common), "--model", model, "--metrics-port", str(port)]
        services.append(supervisor.Service("learn" if number == 0 else f"learn-{model}", command, restart=True))
    if settings.console.port is not None:
        command = [*_plaudit("console", common), "--target", "{address}", "--port", str(settings.console.port)]
        if settings.serving.tls.certificate is not None:
            command += ["--tls-ca", str(settings.serving.tls.certificate)]
        services.append(supervisor.Service("console", command, restart=True, after="serve"))
    elif not common.as_json:
        output.err.print(f"no console; to try the model and watch the loop: plaudit up --console-port {CONSOLE_PORT}")
    report = output.print_json if common.as_json else output.print_event
    children_s = max(serving_exit_s(settings), LEARNER_EXIT_S) + 2 * KILL_MARGIN_S
    code = asyncio.run(supervisor.run(services, report, kill_after_s=children_s))
    if code:
        raise typer.Exit(code)


@app.command()
@expand_options
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides `serving.host`.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; overrides `serving.port`.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Overrides `serving.metrics_port`.")] = None,
    device: Annotated[str | None, typer.Option(help="`auto`, `cuda` or `cpu`; overrides `serving.device`.")] = None,
    processes: Annotated[int | None, typer.Option(help="Overrides `serving.processes`.")] = None,
    share_port: Annotated[bool, typer.Option(hidden=True)] = False,
    *,
    common: CommonOptions,
) -> None:
    """Run the inference service alone until ctrl-C, which drains it. Needs no torch.

    Example: `plaudit serve --config plaudit.toml --host 0.0.0.0`
    """
    flags = {"host": host, "port": port, "metrics_port": metrics_port, "device": device, "processes": processes}
    settings = common.settings({"serving": flags})
    with needs_extra("serve"), lasting_problems():
        from plaudit.cli.processes import services

        services.log_to_stderr()
        if settings.serving.processes == 1 or share_port:
            asyncio.run(services.serve(settings, _reporter("serve", common), share_port=share_port))
            return
        command = [*_plaudit("serve", common), "--processes", str(settings.serving.processes)]
        command += ["--host", settings.serving.host, "--device", settings.serving.device]
        report = output.print_json if common.as_json else output.print_event
        code = asyncio.run(services.serve_in_processes(settings, command, report))
    if code:
        raise typer.Exit(code)


@app.command()
@expand_options
def learn(
    host: Annotated[str | None, typer.Option(help="Address of the metrics; overrides `learner.host`.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Overrides `learner.metrics_port`.")] = None,
    model: Model = "",
    *,
    common: CommonOptions,
) -> None:
    """Run the learner of one model until ctrl-C, which saves its state.

    Example: `plaudit learn --config plaudit.toml`
    """
    settings = common.settings({"learner": {"host": host, "metrics_port": metrics_port}})
    with needs_extra("learn"), lasting_problems():
        from plaudit.cli.processes import services
        from plaudit.compose.registry import resolve_model

        services.log_to_stderr()
        asyncio.run(services.learn(settings, resolve_model(settings, model), _reporter("learn", common)))


@app.command()
@expand_options
def console(
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides `console.host`.")] = None,
    port: Annotated[int | None, typer.Option(help=f"Overrides `console.port`; by default {CONSOLE_PORT}.")] = None,
    *,
    options: ServerOptions,
) -> None:
    """Serve a page to try the model and watch the loop, beside a service that runs, until ctrl-C.

    Example: `plaudit console --config plaudit.toml --port 8004`
    """
    settings = options.settings({"console": {"host": host, "port": port}})
    if settings.console.port is None:
        settings = options.settings({"console": {"host": host, "port": CONSOLE_PORT}})
    with needs_extra("console"), lasting_problems():
        from plaudit.cli.processes import services

        services.log_to_stderr()
        asyncio.run(services.console(settings, options, _reporter("console", options)))


@app.command()
@expand_options
def doctor(common: CommonOptions) -> None:
    """Check settings, data directory, log, registry, device, ports and extras; say how to fix what is wrong.

    Example: `plaudit doctor --config plaudit.toml`
    """
    settings = common.settings()
    with needs_extra("serve"):
        from plaudit.cli.doctor.checks import examine
        from plaudit.cli.doctor.findings import State

    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not common.as_json:
            output.print_finding(finding.subject, finding.state, finding.message, finding.fix)
    if common.as_json:
        output.print_json([asdict(finding) for finding in findings])
    errors = [finding.subject for finding in findings if finding.state is State.ERROR]
    if errors:
        raise CommandFailed(f"to be fixed: {', '.join(errors)}")


def _plaudit(command: str, common: CommonOptions) -> list[str]:
    """Command line of a child process with the same shared options."""
    return [sys.executable, "-m", "plaudit", command, *common.arguments()]


def _reporter(service: str, common: CommonOptions) -> Callable[[Mapping[str, Any]], None]:
    """Prints events. Where nobody reads them any more they are lost; the service is told of that otherwise."""

    def report(event: Mapping[str, Any]) -> None:
        try:
            if common.as_json:
                output.print_json(event)
            else:
                output.print_event({**event, "service": service})
        except (OSError, SystemExit):  # rich raises SystemExit
            drop_output()

    return report
