"""What could not be used: ``plaudit deadletter list``, ``plaudit deadletter replay`` and ``plaudit orphans``."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from plaudit.cli import output
from plaudit.cli.failures import Failed, extra
from plaudit.cli.options import Config, DataDir, Json, Model, read_settings

app = typer.Typer(no_args_is_help=True, help="Records that no learner could use: which and why, and back with them.")


@app.command("list")
def list_(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the records that were set aside, why, and whether this Plaudit can use them.

    Example: `plaudit deadletter list`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.compose.log import event_log
        from plaudit.learner.ingest.dead_letters import buried
    with contextlib.closing(event_log(settings)) as log:
        rows = [
            {
                "place": each.place,
                "time_s": each.letter.time_s,
                "size_bytes": len(each.letter.payload),
                "reason": each.letter.reason,
                "usable": not each.problem,
            }
            for each in buried(log)
        ]
    output.print_json(rows) if as_json else output.print_dead_letters(rows)


@app.command()
def replay(
    places: Annotated[list[str] | None, typer.Argument(metavar="[PLACE]...", help="As listed; by default all.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Put records that can be used by now back into their topics. Doing it twice does no harm.

    Example: `plaudit deadletter replay`, or only one: `plaudit deadletter replay plaudit.feedback:17`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.compose.log import event_log
        from plaudit.learner.ingest import dead_letters
    with contextlib.closing(event_log(settings)) as log:
        found = {each.place: each for each in dead_letters.buried(log)}
        unknown = [place for place in places or () if place not in found]
        if unknown:
            raise Failed(f"there is no dead letter of {unknown[0]!r}; `plaudit deadletter list` names them")
        wanted = [found[place] for place in places or found]
        replayed = [each.place for each in dead_letters.replay(log, wanted)]
    left = {each.place: each.problem for each in wanted if each.problem}
    output.print_json({"replayed": replayed, "left": left}) if as_json else output.print_replayed(replayed, left)
    if places and left:
        raise Failed(f"{len(left)} of {len(wanted)} cannot be used by this Plaudit either")


def orphans(
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 50,
    model: Model = "",
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List feedback whose decision has not arrived, the oldest first.

    Example: `plaudit orphans --limit 10`
    """
    settings = read_settings(config, data_dir)
    with extra("learn"):
        from plaudit.compose.registry import resolve_model
        from plaudit.compose.store import experience_store
    with contextlib.closing(experience_store(settings, resolve_model(settings, model))) as store:
        rows: list[dict[str, Any]] = [
            {
                "feedback_id": feedback.feedback_id,
                "prediction_id": feedback.prediction_id,
                "user_id": feedback.user_id,
                "time_s": feedback.time_s,
            }
            for feedback in store.orphans(limit)
        ]
        waiting = store.intake_stats().waiting
    output.print_json({"waiting": waiting, "orphans": rows}) if as_json else output.print_orphans(waiting, rows)
