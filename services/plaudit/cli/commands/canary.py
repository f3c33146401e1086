"""``plaudit canary``: try a version out on a share of the users, see how it does, stop it or promote it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import grpc
import typer

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed
from plaudit.cli.options import RolloutOptions, ServedModelOptions, called_alone, expand_options
from plaudit.client import Client, ClientError, RolloutSnapshot, Version
from plaudit.core.errors import RolloutMoved
from plaudit.core.rollout_updates import compare_and_set
from plaudit.core.settings import Settings

_SHARE: Final = 0.1
"""Share of the users where neither the command nor the settings name one."""

app = typer.Typer(no_args_is_help=False)


@app.callback(invoke_without_command=True)
@expand_options
def canary(context: typer.Context, *, options: ServedModelOptions) -> None:
    """Show the experiment that is under way: satisfaction, failures and latency of both arms, and the evidence so far.

    Example: `plaudit canary`, `plaudit canary start 7 --share 0.1`, `plaudit canary stop`, `plaudit canary promote`
    """
    if not called_alone(context, options):
        return
    with options.client(admin=True) as client:
        rollout = _rollout(client, options.model)
        version = None if rollout.candidate is None else client.version(rollout.candidate, model=options.model)
    experiment = None if version is None else _current_experiment(version, rollout)
    if options.as_json:
        output.print_json({"candidate": rollout.candidate, "generation": rollout.generation, "experiment": experiment})
        return
    output.print_rollout(rollout)
    if version is None:
        output.out.print("no version is in an experiment")
    elif experiment is None:
        output.out.print("no learner has reported on the experiment yet")
    else:
        output.print_experiment(experiment)


@app.command()
@expand_options
def start(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="The version to try out.")],
    share: Annotated[
        float | None, typer.Option(help="Share of the users that it serves; by default `canary.share`, or 0.1.")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Show its answers to no user: compute them behind a share of the requests.")
    ] = False,
    *,
    options: RolloutOptions,
) -> None:
    """Try a version out; the learner promotes or withdraws it on proof, and you whenever you like.

    Example: `plaudit canary start 7 --share 0.1 --reason "trained on the new ward"`
    """
    if share is None:
        share = _share(options.settings(), options.model)
    with options.client(admin=True) as client:
        options.show(client.start_canary(number, share, shadow=shadow, **options.change()), output.print_rollout)


@app.command()
@expand_options
def stop(options: RolloutOptions) -> None:
    """End the experiment that is under way; the live version serves all users again.

    Example: `plaudit canary stop --reason "complaints about sums"`
    """
    with options.client(admin=True) as client:
        options.show(client.stop_canary(**options.change()), output.print_rollout)


@app.command()
@expand_options
def promote(options: RolloutOptions) -> None:
    """Make the version that is in an experiment live, without waiting for proof.

    Example: `plaudit canary promote --reason "good enough for the ward"`
    """
    with options.client(admin=True) as client:
        options.show(_promote(client, options), output.print_rollout)


def _promote(client: Client, options: RolloutOptions) -> RolloutSnapshot:
    """Compare-and-set: the version that goes live is still in the same experiment; head refreshes do not matter."""
    asked = _rollout(client, options.model)

    def write(now: RolloutSnapshot) -> RolloutSnapshot:
        if now.candidate is None or (now.candidate, now.experiment) != (asked.candidate, asked.experiment):
            raise CommandFailed(
                "no version is in an experiment" if asked.candidate is None else "the experiment was ended meanwhile"
            )
        try:
            return client.promote(
                now.candidate,
                reason=options.reason or f"version {now.candidate} was promoted from its experiment",
                expected_generation=options.expect or now.generation,
                model=options.model,
            )
        except ClientError as error:
            if error.code is not grpc.StatusCode.ABORTED or options.expect:
                raise
            raise RolloutMoved(now.generation, _rollout(client, options.model).generation) from error

    return compare_and_set(lambda: _rollout(client, options.model), write)


def _rollout(client: Client, model: str) -> RolloutSnapshot:
    return next(client.watch_versions(model=model, timeout_s=10.0))


def _current_experiment(version: Version, rollout: RolloutSnapshot) -> dict[str, Any] | None:
    """Report on the experiment that is under way, not on an earlier one of the same version; None: there is none."""
    experiment = version.experiment
    return None if experiment is None or experiment["generation"] != (rollout.experiment or 0) else dict(experiment)


def _share(settings: Settings, model: str) -> float:
    name = model or str(settings.model.get("name", ""))
    return settings.canary.of(name).share or _SHARE
