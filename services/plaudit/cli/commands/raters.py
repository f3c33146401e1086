"""``plaudit raters``: the users whose feedback the learner has seen, and commands about them, which it applies."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import output
from plaudit.cli.failures import needs_extra
from plaudit.cli.options import ModelOptions, expand_options
from plaudit.core.text.identifiers import check_id

if TYPE_CHECKING:
    from plaudit_models.evaluation.raters import TrustLevel

app = typer.Typer(
    no_args_is_help=True, help="See how far the learner trusts each user; put users into quarantine, or out of it."
)
User = Annotated[str, typer.Argument(metavar="USER", help="The user's id.")]


@app.command(name="list")
@expand_options
def list_raters(
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Only those in quarantine.")] = False,
    suspected: Annotated[
        bool, typer.Option("--suspected", help="Only those about whom people have to decide.")
    ] = False,
    *,
    options: ModelOptions,
) -> None:
    """List the users who gave feedback, the latest at the end: how much of it counts, and how far others agree.

    A suspected user says the opposite of others and was not put into quarantine: too large a part of the user's group,
    or of all users, would be.

    Example: `plaudit raters list --suspected`
    """
    settings = options.settings()
    with needs_extra("learn"):
        from plaudit.compose.store import experience_store
        from plaudit.learner.state import LearnerState

        with contextlib.closing(experience_store(settings, options.model or settings.spec().name)) as store:
            users = LearnerState(store).raters.users
    rows = [
        {
            "user": user,
            "reliability": rater.reliability,
            "floods": rater.floods,
            "suspected": rater.suspected,
            **asdict(rater),
        }
        for user, rater in users.items()
        if not (quarantined or suspected)
        or (quarantined and rater.trust_level == "quarantined")
        or (suspected and rater.suspected)
    ]
    options.show(rows, output.print_raters)


@app.command()
@expand_options
def release(user: User, *, options: ModelOptions) -> None:
    """Take a user out of quarantine for good. Feedback that was excluded stays so; from now on all of it counts.

    Example: `plaudit raters release ada`
    """
    _set_trust_level(user, "trusted", options)


@app.command()
@expand_options
def quarantine(user: User, *, options: ModelOptions) -> None:
    """Learn nothing more from a user, and forget what was learned.

    Example: `plaudit raters quarantine mallory`
    """
    _set_trust_level(user, "quarantined", options)


def _set_trust_level(user: str, trust_level: TrustLevel, options: ModelOptions) -> None:
    """Leave a command for the learner, which applies it before its next batch."""
    check_id("user", user)
    settings = options.settings()
    with needs_extra("learn"):
        from plaudit.compose.store import experience_store

        with contextlib.closing(experience_store(settings, options.model or settings.spec().name)) as store:
            store.put_command(user, trust_level)
    if options.as_json:
        output.print_json({"user": user, "trust_level": trust_level})
    else:
        output.out.print(f"{user}: {trust_level}, from the learner's next batch on")
