"""Records that the learner could not use: ``plaudit deadletter list`` and ``replay``, and ``plaudit orphans``."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed, needs_extra
from plaudit.cli.options import CommonOptions, ModelOptions, expand_options

orphans_app = typer.Typer()
app = typer.Typer(no_args_is_help=True, help="Records that the learner could not use: list them, and put them back.")


@app.command("list")
@expand_options
def list_letters(common: CommonOptions) -> None:
    """List the records that were excluded, why, and whether this Plaudit can use them.

    Example: `plaudit deadletter list`
    """
    settings = common.settings()
    with needs_extra("learn"):
        from plaudit.compose.log import event_log
        from plaudit.learner.ingest.dead_letters import dead_letters
    with contextlib.closing(event_log(settings)) as log:
        rows = [
            {
                "place": each.place,
                "time_s": each.letter.time_s,
                "size_bytes": len(each.letter.payload),
                "reason": each.letter.reason,
                "usable": not each.problem,
            }
            for each in dead_letters(log)
        ]
    common.show(rows, output.print_dead_letters)


@app.command()
@expand_options
def replay(
    places: Annotated[list[str] | None, typer.Argument(metavar="[PLACE]...", help="As listed; by default all.")] = None,
    *,
    common: CommonOptions,
) -> None:
    """Put records that can be used by now back into their topics. Doing it twice does no harm.

    Example: `plaudit deadletter replay`, or only one: `plaudit deadletter replay plaudit.feedback:17`
    """
    settings = common.settings()
    with needs_extra("learn"):
        from plaudit.compose.log import event_log
        from plaudit.learner.ingest import dead_letters
    with contextlib.closing(event_log(settings)) as log:
        found = {each.place: each for each in dead_letters.dead_letters(log)}
        unknown = [place for place in places or () if place not in found]
        if unknown:
            raise CommandFailed(f"there is no dead letter of {unknown[0]!r}; `plaudit deadletter list` names them")
        wanted = [found[place] for place in places or found]
        replayed = [each.place for each in dead_letters.replay(log, wanted)]
    left = {each.place: each.problem for each in wanted if each.problem}
    output.print_json({"replayed": replayed, "left": left}) if common.as_json else output.print_replayed(replayed, left)
    if places and left:
        raise CommandFailed(f"{len(left)} of {len(wanted)} cannot be used by this Plaudit either")


@orphans_app.command()
@expand_options
def orphans(
    limit: Annotated[int, typer.Option(min=1, help="Number of rows, at most.")] = 50, *, options: ModelOptions
) -> None:
    """List feedback whose decision has not arrived, the oldest first.

    Example: `plaudit orphans --limit 10`
    """
    settings = options.settings()
    with needs_extra("learn"):
        from plaudit.compose.registry import resolve_model
        from plaudit.compose.store import experience_store
    with contextlib.closing(experience_store(settings, resolve_model(settings, options.model))) as store:
        rows: list[dict[str, Any]] = [
            {name: getattr(feedback, name) for name in ("feedback_id", "prediction_id", "user_id", "time_s")}
            for feedback in store.orphans(limit)
        ]
        waiting = store.intake_stats().waiting
    output.print_json({"waiting": waiting, "orphans": rows}) if options.as_json else output.print_orphans(waiting, rows)
