"""Checks of the doctor on SQLite files: event log, experience stores, spool; and on the clock, which their times show.

Each file is opened as its service opens it, and changed by nothing but a transaction that is rolled back.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from plaudit.adapters import sqlite_errors
from plaudit.adapters.log.sqlite import PARTITION
from plaudit.adapters.store.engine import parsed_url, sqlite_file
from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.log import event_log, kafka_cluster
from plaudit.compose.paths import data_dir
from plaudit.compose.registry import known_models
from plaudit.compose.store import experience_store, store_url
from plaudit.core.errors import ConfigError, LogUnavailable, PlauditError
from plaudit.core.events import Topic
from plaudit.core.settings import Settings

_LOG: Final = "event log"
_STORE: Final = "experience store"
_SPOOL: Final = "spool"
_CLOCK: Final = "clock"
_BUSY_S: Final = 2.0
_MAX_CHECKED_BYTES: Final = 2**30
"""Size of the largest file that is read whole to see whether it is damaged: some seconds."""
_MAX_AHEAD_S: Final = 60.0
_NEWEST: Final = 1_000
_FIRST_RELEASE_S: Final = datetime(2026, 11, 1, tzinfo=UTC).timestamp()


def examine_log(settings: Settings) -> Iterator[Finding]:
    """Findings on the event log."""
    if settings.log.kind == "kafka":
        try:
            connection, plan = kafka_cluster(settings)
        except ConfigError as error:
            yield Finding(_LOG, State.ERROR, str(error), "see [kafka] in docs/reference/settings.md")
            return
        from plaudit.cli.doctor.kafka import examine_kafka

        yield from examine_kafka(connection, plan, settings.serving.feedback_window_s)
        return
    path = data_dir(settings) / "log.sqlite"
    if path.exists() and (problem := damage(path)):
        fix = "stop what holds it, put it back from a backup, or move it away and begin with an empty log"
        yield Finding(_LOG, State.ERROR, problem, fix)
        return
    log = event_log(settings)
    try:
        reader = log.reader("doctor", [Topic.DECISIONS, Topic.FEEDBACK], start=dict)
        recorded = reader.lag()
        reader.close()
    finally:
        log.close()
    yield Finding(_LOG, State.OK, f"{recorded} decisions and pieces of feedback recorded")


def examine_stores(settings: Settings) -> Iterator[Finding]:
    """Findings on the experience store of every model."""
    models = known_models(settings)
    for model in models:
        subject = _STORE if len(models) == 1 else f"{_STORE} of {model}"
        try:
            yield _store(settings, model, subject)
        except LogUnavailable as error:
            yield Finding(subject, State.NOTE, f"not compared with the log: {error.problem}")
        except ConfigError as error:
            yield Finding(subject, State.ERROR, str(error), "see [store] in docs/reference/settings.md")
        except PlauditError as error:
            fix = "see that the server runs, and that user, password and database in store.url are right"
            if sqlite_file(parsed_url(store_url(settings, model))) is not None:
                fix = "move it away with its -wal and -shm, and the learner makes another one from the log"
            yield Finding(subject, State.ERROR, str(error), fix)


def _store(settings: Settings, model: str, subject: str) -> Finding:
    file = sqlite_file(parsed_url(store_url(settings, model)))
    if file is not None and not file.exists():
        return Finding(subject, State.OK, "none yet; the learner makes it")
    if file is not None and (problem := damage(file)):
        fix = "move it away with its -wal and -shm, and the learner makes another one from the log"
        return Finding(subject, State.ERROR, problem, fix)
    with contextlib.closing(experience_store(settings, model)) as store:
        stats, positions = store.intake_stats(), store.positions()
    if settings.log.kind == "sqlite" and (problem := _log_is_another(settings, positions.get(PARTITION))):
        fix = f"move {file or 'the store'} away, and the learner makes another one from this log"
        return Finding(subject, State.ERROR, problem, fix)
    return Finding(subject, State.OK, f"{stats.last_number} experiences from {stats.feedback} signals")


def _log_is_another(settings: Settings, read_to: str | None) -> str:
    """What shows that the store was not made from this log; "" if nothing does."""
    if read_to is None:
        return ""
    if not read_to.isdecimal():
        return f"its position {read_to[:80]!r} is one of another log"
    with _opened(data_dir(settings) / "log.sqlite") as connection:
        (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    if int(read_to) > last:
        return (
            f"it has read the log up to record {read_to}, and the log ends at {last}: nothing new is learned before "
            "the log is as long again"
        )
    return ""


def examine_spool(settings: Settings) -> Iterator[Finding]:
    """Findings on events that wait in the spool, where there is one."""
    folder = data_dir(settings) / "spool"
    files = sorted(folder.glob("*.sqlite")) if folder.is_dir() else []
    if not files:
        return
    waiting = 0
    for path in files:
        if problem := damage(path):
            fix = "stop the inference service, move the file away and keep it: it may hold acknowledged events"
            yield Finding(_SPOOL, State.ERROR, problem, fix)
            continue
        with _opened(path) as connection:
            waiting += connection.execute("SELECT count(*) FROM events").fetchone()[0]
    if waiting and settings.log.kind == "sqlite":
        fix = 'start the inference service once with log.kind = "kafka", as it was when they were taken'
        yield Finding(_SPOOL, State.ERROR, f"{waiting} acknowledged events wait for Kafka, which is not the log", fix)
    else:
        yield Finding(_SPOOL, State.OK, f"{waiting} events wait to be handed on to Kafka")


def examine_clock(settings: Settings) -> Iterator[Finding]:
    """Finding on this machine's clock, beside the newest times of an embedded log."""
    fix = "set the clock of this machine (NTP); until then new feedback looks older than what is recorded"
    now_s = time.time()
    if now_s < _FIRST_RELEASE_S:
        yield Finding(_CLOCK, State.ERROR, f"it says {_text(now_s)}, before Plaudit was released", fix)
        return
    path = data_dir(settings) / "log.sqlite"
    newest_s = None
    if settings.log.kind == "sqlite" and path.exists() and not damage(path, whole=False):
        with _opened(path) as connection:
            (newest_s,) = connection.execute(
                f"SELECT max(time_s) FROM (SELECT time_s FROM events ORDER BY id DESC LIMIT {_NEWEST})"
            ).fetchone()
    if newest_s is not None and newest_s > now_s + _MAX_AHEAD_S:
        problem = f"it says {_text(now_s)}, and the log has a record of {_text(newest_s)}: one of them was wrong"
        yield Finding(_CLOCK, State.ERROR, problem, fix)
    else:
        yield Finding(_CLOCK, State.OK, _text(now_s))


def damage(path: Path, *, whole: bool = True) -> str:
    """What keeps the file from being read and written; "" if nothing does.

    Args:
        whole: read all of it, if it is not too large.
    """
    try:
        with _opened(path) as connection:
            found: Sequence[tuple[str]] = [("ok",)]
            if whole and path.stat().st_size <= _MAX_CHECKED_BYTES:
                found = connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != [("ok",)]:
                return f"{path}: {found[0][0]}"
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return sqlite_errors.explain(path, error, "it is damaged")
    return ""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as connection:
        yield connection


def _text(time_s: float) -> str:
    try:
        return datetime.fromtimestamp(time_s, UTC).isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{time_s:g} s since 1970"
