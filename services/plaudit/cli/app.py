"""The commands. Each reads its options, hands plain values on and prints; what takes thought lives elsewhere.

Modules that need an extra are imported inside the command that needs them, so that the others start at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from plaudit import __version__
from plaudit.cli import canary, deadletter, output
from plaudit.cli import up as supervisor
from plaudit.cli.failures import Failed, as_exit_codes, extra
from plaudit.cli.options import (
    CONSOLE_PORT,
    Config,
    ConsolePort,
    DataDir,
    Expect,
    Json,
    Model,
    Reason,
    Target,
    client,
    read_settings,
)
from plaudit.client import Client, feedback
from plaudit.client.content import to_content
from plaudit.client.errors import ClientError
from plaudit.v1.content_pb2 import Content
from plaudit_models import version_card as lineage

app = typer.Typer(
    name="plaudit",
    help="Serve a multimodal model that learns from its users' thumbs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    with as_exit_codes():
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


# --- services --------------------------------------------------------------------------------------------------------


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
    with extra("demo"):
        from plaudit.demo.run import Options, run
        from plaudit.demo.services import DemoFailed
        from plaudit.demo.speech import SpeechFailed
    try:
        options = Options(data_dir, events=events, minutes=minutes, seed=seed, console_port=console_port)
        summary = run(options, Console(stderr=True))
    except (DemoFailed, SpeechFailed) as error:
        raise Failed(str(error)) from error
    if as_json:
        output.print_json(summary)


@app.command()
def up(
    console_port: ConsolePort = None, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Run the inference service and the learner together until ctrl-C, which drains both.

    Example: `plaudit up --config plaudit.toml --console-port 8004`, and a page to look at besides
    """
    with extra("learn"):
        from plaudit.compose.registry import known_models
    settings = read_settings(config, data_dir, {"console": {"port": console_port}})
    shared = _shared(config, data_dir)
    services = [
        supervisor.Service("serve", [sys.executable, "-m", "plaudit", "serve", *shared], restart=False),
    ]
    for number, model in enumerate(known_models(settings)):
        port = settings.learner.metrics_port + number if settings.learner.metrics_port else 0
        command = [sys.executable, "-m", "plaudit", "learn", *shared, "--model", model, "--metrics-port", str(port)]
        services.append(supervisor.Service("learn" if number == 0 else f"learn-{model}", command, restart=True))
    if settings.console.port is not None:
        command = [sys.executable, "-m", "plaudit", "console", *shared, "--target", "{address}"]
        command += ["--port", str(settings.console.port)]
        services.append(supervisor.Service("console", command, restart=True, after="serve"))
    elif not as_json:
        output.err.print(f"no console; to try the model and watch the loop: plaudit up --console-port {CONSOLE_PORT}")
    code = asyncio.run(supervisor.run(services, output.print_json if as_json else output.print_event))
    if code:
        raise typer.Exit(code)


def _shared(config: Path | None, data_dir: Path | None) -> list[str]:
    """What a child process is told of our own options."""
    return [
        "--json",
        *(["--config", str(config)] if config else []),
        *(["--data-dir", str(data_dir)] if data_dir else []),
    ]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides `serving.host`.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; overrides `serving.port`.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Overrides `serving.metrics_port`.")] = None,
    device: Annotated[str | None, typer.Option(help="`auto`, `cuda` or `cpu`; overrides `serving.device`.")] = None,
    processes: Annotated[int | None, typer.Option(help="Overrides `serving.processes`.")] = None,
    share_port: Annotated[bool, typer.Option(hidden=True)] = False,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run the inference service alone until ctrl-C, which drains it. Needs no torch.

    Example: `plaudit serve --config plaudit.toml --host 0.0.0.0`
    """
    flags = {"host": host, "port": port, "metrics_port": metrics_port, "device": device, "processes": processes}
    settings = read_settings(config, data_dir, {"serving": flags})
    with extra("serve"):
        from plaudit.cli import services

        services.log_to_stderr()
        if settings.serving.processes == 1 or share_port:
            asyncio.run(services.serve(settings, _reporter("serve", as_json), share_port=share_port))
            return
        command = [sys.executable, "-m", "plaudit", "serve", *_shared(config, data_dir)]
        command += ["--processes", str(settings.serving.processes)]
        command += ["--host", settings.serving.host, "--device", settings.serving.device]
        code = asyncio.run(
            services.serve_as_many(settings, command, output.print_json if as_json else output.print_event)
        )
    if code:
        raise typer.Exit(code)


@app.command()
def learn(
    host: Annotated[str | None, typer.Option(help="Address of the metrics; overrides `learner.host`.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Overrides `learner.metrics_port`.")] = None,
    model: Model = "",
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run the learner of one model until ctrl-C, which saves where it stands.

    Example: `plaudit learn --config plaudit.toml`
    """
    settings = read_settings(config, data_dir, {"learner": {"host": host, "metrics_port": metrics_port}})
    with extra("learn"):
        from plaudit.cli import services
        from plaudit.compose.registry import resolve_model

        services.log_to_stderr()
        asyncio.run(services.learn(settings, resolve_model(settings, model), _reporter("learn", as_json)))


@app.command()
def console(
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides `console.host`.")] = None,
    port: Annotated[int | None, typer.Option(help=f"Overrides `console.port`; by default {CONSOLE_PORT}.")] = None,
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Serve a page to try the model and watch the loop, beside a service that runs, until ctrl-C.

    Example: `plaudit console --config plaudit.toml --port 8004`
    """
    settings = read_settings(config, data_dir, {"console": {"host": host, "port": port}})
    if settings.console.port is None:
        settings = read_settings(config, data_dir, {"console": {"host": host, "port": CONSOLE_PORT}})
    with extra("console"):
        from plaudit.cli import services

        services.log_to_stderr()
        asyncio.run(services.console(settings, target, _reporter("console", as_json)))


# --- making and checking ---------------------------------------------------------------------------------------------


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.onnx", help="A graph with named inputs and a dynamic batch axis.")
    ],
    name: Annotated[str, typer.Option(help="What the model is called in requests.")],
    logits: Annotated[
        str, typer.Option(help="The output that scores the actions; may be left out if just one can.")
    ] = "",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="That output holds probabilities, not logits.")
    ] = False,
    embedding: Annotated[
        str, typer.Option(help="The output that holds the embedding; by default the logits stand in for it.")
    ] = "",
    actions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the actions, one a line; by default 0, 1, 2, …")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Inputs to record and prove by; by default made up.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Go live even if another version is live.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Turn an ONNX file into a version of a model, to be served and to learn; a model's first version goes live.

    Example: `plaudit import resnet.onnx --name pets --logits logits --actions breeds.txt`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.adapters.runtime.importer import ImportOptions
        from plaudit.cli import importing

        options = ImportOptions(
            logits=logits,
            embedding=embedding,
            probabilities=probabilities,
            actions=importing.read_actions(actions),
            floor=settings.policy.floor,
            golden=importing.read_golden(golden),
        )
        imported = importing.import_model(settings, file, name, options, go_live=promote)
    manifest = imported.manifest
    if as_json:
        output.print_json(
            {"model": name, "version": manifest.version, "digest": manifest.digest, "live": imported.live}
        )
    else:
        output.out.print(
            f"version {manifest.version} of {name!r} is published{' and live' if imported.live else ''}: "
            f"{len(manifest.spec.actions)} actions, inputs {', '.join(manifest.spec.modalities)}"
        )


@app.command()
def pretrain(
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="Labelled data: a manifest.csv and the files it names.")],
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Train the model on labelled data and publish it; it goes live if no version is.

    Example: `plaudit pretrain --data animals/` with `animals/manifest.csv` beginning
    `split,action,image,text` and `train,cat,photos/1.png,"what is it?"`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.cli import pretrain as body
    published = body.pretrain(settings, data)
    output.print_json(body.summary(published)) if as_json else body.show(published)


@app.command()
def finetune(
    reason: Reason = "",
    model: Model = "",
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run one fine-tuning job on all feedback so far, and publish what it made; it serves only once you promote it.

    Example: `plaudit finetune --reason "before the audit"`, then `plaudit promote N`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.cli import finetune as body
        from plaudit.compose.registry import resolve_model

        manifest = body.finetune(settings, resolve_model(settings, model), reason)
    if as_json:
        output.print_json(json.loads(manifest.to_json()))
    else:
        output.out.print(
            f"version {manifest.version} is published; to make it live: plaudit promote {manifest.version}"
        )


@app.command()
def doctor(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Check settings, data directory, log, registry, device, ports and extras; say how to mend what is wrong.

    Example: `plaudit doctor --config plaudit.toml`
    """
    settings = read_settings(config, data_dir)
    with extra("serve"):
        from plaudit.cli.doctor import examine
        from plaudit.cli.findings import State

    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            output.print_finding(finding.what, finding.state, finding.found, finding.mend)
    if as_json:
        output.print_json([asdict(finding) for finding in findings])
    bad = [finding.what for finding in findings if finding.state is State.BAD]
    if bad:
        raise Failed(f"needs mending: {', '.join(bad)}")


# --- a client from the shell -----------------------------------------------------------------------------------------


@app.command()
def predict(
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An image, for the model's image modality.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(metavar="FILE", help="A sound, for its audio modality.")] = None,
    text: Annotated[str | None, typer.Option(help="Text, for its text modality.")] = None,
    content: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Any modality by name: text, or `@FILE` for an image, a sound or a `.npy` tensor. Repeatable.",
        ),
    ] = None,
    user: Annotated[str, typer.Option(help="Who asks.")] = "",
    user_group: Annotated[
        str, typer.Option(metavar="LABEL", help="A group the user belongs to, such as `premium`.")
    ] = "",
    allow: Annotated[
        list[str] | None, typer.Option(metavar="ACTION", help="Pick only among these. Repeatable; by default all.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=TEXT",
            help="Pick among these instead of the model's actions, by what their texts say. Repeatable.",
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Pick the most probable action instead of sampling.")
    ] = False,
    top_k: Annotated[int, typer.Option(min=0, help="How many actions to list; 0 is all.")] = 5,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each modality contributed.")] = False,
    request_id: Annotated[str, typer.Option(help="Comes back unchanged and appears in the server's logs.")] = "",
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Ask a running server for an action.

    Example: `plaudit predict --image cat.png --text "what is this?" --user ada`; by name:
    `plaudit predict --content left=@left.jpg --content right=@right.jpg --content radar=@radar.npy`; among answers of
    your own: `plaudit predict --text "my card is gone" --candidate block="block a card" --candidate pin="change a PIN"`
    """
    parts = _named_content(content or [])
    dynamic_actions = _candidates(candidate or [])
    by_kind = {kind: part for kind, part in (("image", image), ("audio", audio), ("text", text)) if part is not None}
    with client(read_settings(config, data_dir), target) as server:
        if by_kind:
            spec = _live_spec(server, model)
            for kind, part in by_kind.items():
                _add(parts, _modality_of_kind(spec, kind), part, f"--{kind}")
        prediction = server.predict(
            parts,
            user_id=user,
            allowed_actions=allow or None,
            dynamic_actions=dynamic_actions or None,
            greedy=greedy,
            top_k=top_k,
            explain=explain,
            request_id=request_id,
            model=model,
            user_group=user_group,
        )
    output.print_json(prediction) if as_json else output.print_prediction(prediction)


@app.command(name="feedback")
def feedback_(
    prediction_id: Annotated[str, typer.Argument(help="From `plaudit predict`.")],
    up: Annotated[bool, typer.Option("--up", help="A thumb up.")] = False,
    down: Annotated[bool, typer.Option("--down", help="A thumb down.")] = False,
    rating: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="How good the answer was.")] = None,
    correct: Annotated[
        str | None, typer.Option(metavar="ACTION", help="The action that would have been right.")
    ] = None,
    prefer: Annotated[
        tuple[str, str] | None, typer.Option(metavar="BETTER WORSE", help="One action is better than another.")
    ] = None,
    implicit: Annotated[
        str | None, typer.Option(metavar="KIND", help="What the user did: `rephrased`, `interrupted` or `accepted`.")
    ] = None,
    retract: Annotated[str | None, typer.Option(metavar="FEEDBACK_ID", help="Take this feedback back.")] = None,
    retract_all: Annotated[
        bool, typer.Option("--retract-all", help="Take back all of the user's feedback on the prediction.")
    ] = False,
    user: Annotated[str, typer.Option(help="Who says it.")] = "",
    feedback_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Idempotency key; by default a fresh one.")
    ] = None,
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say how good an answer was. Returns when the feedback is durable.

    Example: `plaudit feedback PREDICTION_ID --up --user ada`
    """
    options: feedback.FeedbackOptions = {"user_id": user}
    if feedback_id is not None:
        options["feedback_id"] = feedback_id
    given = []
    if up:
        given.append(feedback.thumbs_up(prediction_id, **options))
    if down:
        given.append(feedback.thumbs_down(prediction_id, **options))
    if rating is not None:
        given.append(feedback.rate(prediction_id, rating, **options))
    if correct is not None:
        given.append(feedback.correct(prediction_id, correct, **options))
    if prefer is not None:
        given.append(feedback.prefer(prediction_id, *prefer, **options))
    if implicit is not None:
        given.append(_implicit(prediction_id, implicit, options))
    if retract is not None or retract_all:
        given.append(feedback.retract(prediction_id, retract or "", **options))
    if len(given) != 1:
        raise typer.BadParameter(
            f"{len(given)} signals given; give one of --up, --down, --rating, --correct, --prefer, --implicit, "
            "--retract, --retract-all"
        )
    with client(read_settings(config, data_dir), target) as server:
        acknowledged = server.send_feedback(given[0])
    output.print_json(acknowledged) if as_json else output.print_acknowledgement(acknowledged)


@app.command()
def receipt(
    feedback_id: Annotated[str, typer.Argument(metavar="ID", help="A feedback id.")],
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say what became of a piece of feedback: recorded, joined, used in which version, live since when.

    Example: `plaudit receipt 1b4e28ba-2fa1-11d2-883f-0016d3cca427`
    """
    with client(read_settings(config, data_dir), target) as server:
        found = server.receipt(feedback_id)
    output.print_json(found) if as_json else output.print_receipt(found)


# --- raters ----------------------------------------------------------------------------------------------------------

raters = typer.Typer(no_args_is_help=True, help="See whom the learner believes; take users out of quarantine, or in.")
app.add_typer(raters, name="raters")
User = Annotated[str, typer.Argument(metavar="USER", help="The user's id.")]


@raters.command(name="list")
def list_raters(
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Only those in quarantine.")] = False,
    model: Model = "",
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List the users the learner has heard of: how much of what they say counts, and how far others agree with it.

    Example: `plaudit raters list --quarantined`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.cli.raters import heard_of

        rows = [row for row in heard_of(settings, model) if not quarantined or row["trust_level"] == "quarantined"]
    output.print_json(rows) if as_json else output.print_raters(rows)


@raters.command()
def release(
    user: User, model: Model = "", config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Take a user out of quarantine for good. What was set aside stays so; what the user says from now on counts.

    Example: `plaudit raters release ada`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.cli.raters import order

        order(settings, model, user, "trusted")
    output.print_trust_level(user, "trusted", as_json)


@raters.command()
def quarantine(
    user: User, model: Model = "", config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Learn nothing more from a user, and forget what was learned.

    Example: `plaudit raters quarantine mallory`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.cli.raters import order

        order(settings, model, user, "quarantined")
    output.print_trust_level(user, "quarantined", as_json)


# --- versions --------------------------------------------------------------------------------------------------------


app.add_typer(deadletter.app, name="deadletter")
app.command()(deadletter.orphans)

versions_app = typer.Typer(no_args_is_help=False)
app.add_typer(versions_app, name="versions", invoke_without_command=True)


@versions_app.callback()
def versions(
    context: typer.Context,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List the versions, which of them serves, and why; show one, or what differs between two.

    Example: `plaudit versions`, `plaudit versions show 3`, `plaudit versions diff 1 3`
    """
    if context.invoked_subcommand is not None:
        if model or target or config or data_dir or as_json:
            raise typer.BadParameter(f"put options behind {context.invoked_subcommand!r}")
        return
    with client(read_settings(config, data_dir), target) as server:
        listed = server.versions(model=model)
    output.print_json(listed) if as_json else output.print_versions(listed)


@versions_app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="The version.")],
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show all that is known about a version: lineage, data, raters, metrics per slice, gate evidence, digests.

    Example: `plaudit versions show 3`
    """
    with client(read_settings(config, data_dir), target) as server:
        one = server.version(number, model=model)
    output.print_json(one) if as_json else output.print_version(one)


@versions_app.command()
def diff(
    before: Annotated[int, typer.Argument(metavar="A", min=1, help="A version.")],
    after: Annotated[int, typer.Argument(metavar="B", min=1, help="Another.")],
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two versions, and whether one was made from the other.

    Example: `plaudit versions diff 1 3`
    """
    with client(read_settings(config, data_dir), target) as server:
        ours, theirs = (server.version(number, model=model).manifest for number in (before, after))
        parents = {version.version: version.parent for version in server.versions(model=model).versions}
    found = lineage.differences(ours, theirs)
    ancestry = lineage.ancestry(after, parents)
    if as_json:
        fields = [asdict(each) for each in found]
        output.print_json({"before": before, "after": after, "ancestry": ancestry, "differences": fields})
    else:
        output.print_differences(before, after, ancestry, found)


@app.command()
def promote(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="The version to make live.")],
    reason: Reason = "",
    expect: Expect = 0,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a version live.

    Example: `plaudit promote 3 --reason "measured better on the ward's own images"`
    """
    with client(read_settings(config, data_dir), target) as server:
        output.print_rollout(server.promote(number, reason=reason, model=model, expected_generation=expect), as_json)


@app.command()
def rollback(
    reason: Reason = "",
    expect: Expect = 0,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make the previous version live again.

    Example: `plaudit rollback --reason "complaints about sums"`
    """
    with client(read_settings(config, data_dir), target) as server:
        output.print_rollout(server.rollback(reason=reason, model=model, expected_generation=expect), as_json)


@app.command()
def pin(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="The version to make live and keep.")],
    reason: Reason = "",
    expect: Expect = 0,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a version live and keep it, whatever the learner publishes, until `plaudit unpin`.

    Example: `plaudit pin 3 --reason "audit until Friday"`
    """
    with client(read_settings(config, data_dir), target) as server:
        output.print_rollout(server.pin(number, reason=reason, model=model, expected_generation=expect), as_json)


@app.command()
def unpin(
    reason: Reason = "",
    expect: Expect = 0,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let the learner change what is live again.

    Example: `plaudit unpin`
    """
    with client(read_settings(config, data_dir), target) as server:
        output.print_rollout(server.unpin(reason=reason, model=model, expected_generation=expect), as_json)


app.add_typer(canary.app, name="canary")


# --- small things ----------------------------------------------------------------------------------------------------


def _reporter(service: str, as_json: bool) -> Callable[[Mapping[str, Any]], None]:
    if as_json:
        return output.print_json
    return lambda event: output.print_event({**event, "service": service})


def _named_content(named: list[str]) -> dict[str, Content]:
    """``NAME=VALUE`` → content by modality name; BadParameter (exit code 2) where it cannot be read."""
    parts: dict[str, Content] = {}
    for item in named:
        name, separator, value = item.partition("=")
        if not (name and separator):
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--content")
        part = _file(Path(value[1:])) if value.startswith("@") else value
        _add(parts, name, part, "--content")
    return parts


def _candidates(given: list[str]) -> dict[str, str]:
    """``ID=TEXT`` → text by id; BadParameter where it cannot be read."""
    dynamic_actions: dict[str, str] = {}
    for item in given:
        id_, separator, text = item.partition("=")
        if not (id_ and separator):
            raise typer.BadParameter(f"{item!r} is not ID=TEXT", param_hint="--candidate")
        if id_ in dynamic_actions:
            raise typer.BadParameter(f"the id {id_!r} is given twice", param_hint="--candidate")
        dynamic_actions[id_] = text
    return dynamic_actions


def _add(parts: dict[str, Content], name: str, part: Any, option: str) -> None:
    if name in parts:
        raise typer.BadParameter(f"the modality {name!r} is given twice", param_hint=option)
    try:
        parts[name] = to_content(name, part)
    except ClientError as error:
        raise typer.BadParameter(error.message, param_hint=option) from error


def _modality_of_kind(spec: Mapping[str, Any], kind: str) -> str:
    """The name of the only modality of ``kind``; BadParameter if there is none or more than one."""
    kinds: dict[str, str] = {name: fields["kind"] for name, fields in spec["modalities"].items()}
    names = [name for name, its_kind in kinds.items() if its_kind == kind]
    if len(names) != 1:
        listed = ", ".join(f"{name} ({its_kind})" for name, its_kind in kinds.items())
        raise typer.BadParameter(
            f"the model has {len(names)} modalities of kind {kind}, so name one with --content NAME=VALUE; "
            f"its modalities are {listed}",
            param_hint=f"--{kind}",
        )
    return names[0]


def _live_spec(server: Client, model: str) -> Mapping[str, Any]:
    """The spec of the version that serves, as its manifest has it."""
    rollout = next(server.watch_versions(model=model, timeout_s=10.0))
    if rollout.live is None:
        raise Failed(f"model {rollout.model!r} has no live version yet; `plaudit pretrain` makes the first")
    spec: Mapping[str, Any] = server.version(rollout.live, model=model).manifest["spec"]
    return spec


def _file(path: Path) -> Any:
    """A tensor for ``.npy``; otherwise the path, to be told apart by its first bytes."""
    if path.suffix != ".npy":
        return path
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} is not a readable .npy file ({error})", param_hint="--content") from error


def _implicit(prediction_id: str, kind: str, options: feedback.FeedbackOptions) -> feedback.Feedback:
    try:
        return feedback.implicit(prediction_id, kind, **options)  # type: ignore[arg-type]  # it checks the kind itself
    except ClientError as error:
        raise typer.BadParameter(error.message, param_hint="--implicit") from error
