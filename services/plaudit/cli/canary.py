"""``plaudit canary``: try a version out on a share of the users, see how it does, stop it or promote it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import grpc
import typer

from plaudit.cli import output
from plaudit.cli.failures import Failed
from plaudit.cli.options import Config, DataDir, Expect, Json, Model, Reason, Target, client, read_settings
from plaudit.client import Client, ClientError, Rollout, Version
from plaudit.core.errors import RolloutMoved
from plaudit.core.rollout_updates import compare_and_set
from plaudit.core.settings import Settings

_SHARE: Final = 0.1
"""Where the settings have none."""

app = typer.Typer(no_args_is_help=False)


@app.callback(invoke_without_command=True)
def canary(
    context: typer.Context,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show the experiment that is under way: satisfaction, failures and latency of both arms, and the evidence so far.

    Example: `plaudit canary`, `plaudit canary start 7 --share 0.1`, `plaudit canary stop`, `plaudit canary promote`
    """
    if context.invoked_subcommand is not None:
        if model or target or config or data_dir or as_json:
            raise typer.BadParameter(f"put options behind {context.invoked_subcommand!r}")
        return
    with client(read_settings(config, data_dir), target) as server:
        rollout = _rollout(server, model)
        one = None if rollout.candidate is None else server.version(rollout.candidate, model=model)
    experiment = None if one is None else _present(one, rollout)
    if as_json:
        output.print_json({"candidate": rollout.candidate, "generation": rollout.generation, "experiment": experiment})
        return
    output.print_rollout(rollout)
    if one is None:
        output.out.print("no version is in an experiment")
    elif experiment is None:
        output.out.print("no learner has said anything about the experiment yet")
    else:
        output.print_experiment(experiment)


@app.command()
def start(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="The version to try out.")],
    share: Annotated[
        float | None, typer.Option(help="Of the users that it serves; by default `canary.share`, or 0.1.")
    ] = None,
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="Show its answers to nobody: compute them behind a share of the requests."),
    ] = False,
    reason: Reason = "",
    expect: Expect = 0,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Try a version out; the learner promotes or withdraws it on proof, and you whenever you like.

    Example: `plaudit canary start 7 --share 0.1 --reason "trained on the new ward"`
    """
    settings = read_settings(config, data_dir)
    if share is None:
        share = _share(settings, model)
    with client(settings, target) as server:
        rollout = server.start_canary(
            number, share, shadow=shadow, reason=reason, expected_generation=expect, model=model
        )
    output.print_rollout(rollout, as_json)


@app.command()
def stop(
    reason: Reason = "",
    expect: Expect = 0,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """End the experiment that is under way; the live version serves everybody again.

    Example: `plaudit canary stop --reason "complaints about sums"`
    """
    with client(read_settings(config, data_dir), target) as server:
        output.print_rollout(server.stop_canary(reason=reason, expected_generation=expect, model=model), as_json)


@app.command()
def promote(
    reason: Reason = "",
    expect: Expect = 0,
    model: Model = "",
    target: Target = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make the version that is in an experiment live, without waiting for proof.

    Example: `plaudit canary promote --reason "good enough for the ward"`
    """
    with client(read_settings(config, data_dir), target) as server:
        output.print_rollout(_promote(server, model, reason, expect), as_json)


def _promote(server: Client, model: str, reason: str, expect: int) -> Rollout:
    """Compare-and-set: the version that goes live is still in the same experiment; head refreshes do not matter."""
    meant = _rollout(server, model)

    def write(now: Rollout) -> Rollout:
        if now.candidate is None or (now.candidate, now.experiment) != (meant.candidate, meant.experiment):
            raise Failed(
                "no version is in an experiment" if meant.candidate is None else "the experiment was ended meanwhile"
            )
        try:
            return server.promote(
                now.candidate,
                reason=reason or f"version {now.candidate} was promoted from its experiment",
                expected_generation=expect or now.generation,
                model=model,
            )
        except ClientError as error:
            if error.code is not grpc.StatusCode.ABORTED or expect:
                raise
            raise RolloutMoved(now.generation, _rollout(server, model).generation) from error

    return compare_and_set(lambda: _rollout(server, model), write)


def _rollout(server: Client, model: str) -> Rollout:
    return next(server.watch_versions(model=model, timeout_s=10.0))


def _present(one: Version, rollout: Rollout) -> dict[str, Any] | None:
    """What is known of the experiment that is under way; that of an earlier one of the same version is not it."""
    experiment = one.experiment
    return None if experiment is None or experiment["generation"] != (rollout.experiment or 0) else dict(experiment)


def _share(settings: Settings, model: str) -> float:
    name = model or str(settings.model.get("name", ""))
    return settings.canary.of(name).share or _SHARE
