"""LeaderStore in a SQL database: what the leader alone saves, and who leads.

That is said by a lease on the clock of PostgreSQL's server, and by a lock on a file beside a SQLite file, which the
kernel takes back from a process that ends, however it ends.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, func, select, update

from plaudit.adapters.file_lock import locked
from plaudit.adapters.store.database import Database
from plaudit.adapters.store.labels import LabelWriter
from plaudit.adapters.store.rows import (
    FEATURES_ROW,
    SUMMARY_ROW,
    Values,
    features_row,
    former_experience,
    header_from_values,
    present_label,
    probabilities_value,
    summary_row,
)
from plaudit.adapters.store.schema import (
    COMMANDS,
    DEAD_FEEDBACK,
    DECISIONS,
    EXPERIENCE_COLUMNS,
    EXPERIENCES,
    EXPERIMENTS,
    FEATURES,
    FEEDBACK,
    HEADER_COLUMNS,
    INTAKE_STATS,
    REVISIONS,
    STATE,
)
from plaudit.core.errors import StoreMoved, StoreUnavailable
from plaudit.core.experience import DecisionHeader, FeedbackState
from plaudit.core.host.os_errors import explain as explain_os_error
from plaudit.core.ports.store import LabelRevision, LeaderCommit

LEAD_SUFFIX: Final = ".lead"
"""End of the name of the file beside a SQLite file that its leader has locked."""

_LEASE_SLACK_S: Final = 1.0
"""Time by which the server's clock may seem to go back without ending a lease."""
_STATE_ROW: Final = ("part", "value")


class SqlLeader(LabelWriter):
    """See :class:`plaudit.core.ports.store.LeaderStore`.

    Args:
        lease_s: time for which a leader that is not heard of stays the leader.
    """

    def __init__(self, database: Database, lease_s: float) -> None:
        super().__init__(database)
        self._lease_s = lease_s
        self._me = uuid.uuid4().hex
        self._epoch = 0
        self._asked_s = -lease_s
        file = database.file
        self._lock_file = None if file is None else file.with_name(file.name + LEAD_SUFFIX)
        self._lock: int | None = None

    def lead(self) -> bool:
        leads = self._epoch > 0
        if leads and time.monotonic() - self._asked_s < self._lease_s / 3:
            return True
        if not self._hold_lock():
            return False
        with self._database.locked() as (connection, row):
            if row.leader != self._me and (leads or (self._database.shared and self._is_held(row))):
                # One that led must begin again from what was saved, even where the lead is free.
                self._epoch = 0
                return False
            epoch = row.epoch if row.leader == self._me and leads else row.epoch + 1
            until_s = row.now_s + self._lease_s
            connection.execute(update(INTAKE_STATS).values(leader=self._me, epoch=epoch, lead_until_s=until_s))
        self._epoch = epoch
        self._asked_s = time.monotonic()
        return True

    def resign(self) -> None:
        leads, self._epoch = self._epoch > 0, 0
        try:
            if leads and self._database.shared:
                with self._database.locked() as (connection, row):
                    if row.leader == self._me:
                        connection.execute(update(INTAKE_STATS).values(lead_until_s=row.now_s))
        finally:
            self._release_lock()

    def save(self, commit: LeaderCommit) -> None:
        database = self._database
        with database.locked() as (connection, row):
            self._check_lead(row)
            features = [features_row(*item) for item in commit.features.items()]
            database.upsert(connection, FEATURES, FEATURES_ROW, features)
            for columns, rows in _learned_values(commit):
                database.set_values(connection, EXPERIENCES, columns, rows)
            if commit.excluded:
                those = database.among(EXPERIENCES.c.number, commit.excluded)
                connection.execute(update(EXPERIENCES).where(those).values(excluded=True))
            self._resolve(connection, commit.resolved)
            number = self._label(connection, row.last_number, commit.silent)
            if number != row.last_number:
                connection.execute(update(INTAKE_STATS).values(last_number=number))
            parts = [(part, value) for part, value in commit.state.items() if value is not None]
            database.upsert(connection, STATE, _STATE_ROW, parts)
            removed = [part for part, value in commit.state.items() if value is None]
            if removed:
                connection.execute(STATE.delete().where(STATE.c.part.in_(removed)))
            if commit.commands:
                applied = [command.number for command in commit.commands]
                connection.execute(COMMANDS.delete().where(database.among(COMMANDS.c.number, applied)))
            summaries = [summary_row(summary) for summary in commit.experiments]
            database.upsert(connection, EXPERIMENTS, SUMMARY_ROW, summaries)

    def forget(self, before_s: float, learned: int, limit: int) -> int:
        same = EXPERIENCES.c.prediction_id == DECISIONS.c.prediction_id
        old = (
            select(DECISIONS.c.prediction_id)
            .select_from(
                DECISIONS.outerjoin(EXPERIENCES, same).outerjoin(REVISIONS, REVISIONS.c.number == EXPERIENCES.c.number)
            )
            .where(
                DECISIONS.c.time_s < before_s,
                func.coalesce(EXPERIENCES.c.number, 0) <= learned,
                REVISIONS.c.number.is_(None),
            )
            .order_by(DECISIONS.c.time_s)
            .limit(limit)
        )
        waiting = (FEEDBACK.c.state == FeedbackState.WAITING) & (FEEDBACK.c.time_s < before_s)
        orphaned = select(FEEDBACK.c.feedback_id).where(waiting).order_by(FEEDBACK.c.time_s).limit(limit)
        among = self._database.among
        with self._database.locked() as (connection, row):
            self._check_lead(row)
            gone = connection.scalars(old).all()
            if gone:
                for table in (FEATURES, FEEDBACK, EXPERIENCES, DECISIONS):
                    connection.execute(table.delete().where(among(table.c.prediction_id, gone)))
            connection.execute(DEAD_FEEDBACK.delete().where(DEAD_FEEDBACK.c.time_s < before_s))
            orphans = connection.scalars(orphaned).all()
            if orphans:
                connection.execute(FEEDBACK.delete().where(among(FEEDBACK.c.feedback_id, orphans)))
                connection.execute(update(INTAKE_STATS).values(waiting=row.waiting - len(orphans)))
        return len(gone) + len(orphans)

    def get_state(self, part: str) -> bytes | None:
        with self._database.reading() as connection:
            value: bytes | None = connection.scalar(select(STATE.c.value).where(STATE.c.part == part))
        return value

    def revisions(self, up_to: int, limit: int) -> Sequence[LabelRevision]:
        query = (
            select(*EXPERIENCE_COLUMNS)
            .join(DECISIONS, DECISIONS.c.prediction_id == EXPERIENCES.c.prediction_id)
            .join(REVISIONS, REVISIONS.c.number == EXPERIENCES.c.number)
            .where(REVISIONS.c.number <= up_to)
            .order_by(REVISIONS.c.number)
            .limit(limit)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [LabelRevision(former_experience(row), present_label(row), row.times) for row in rows]

    def decisions_since(self, after: int, before_s: float, limit: int) -> Sequence[tuple[int, DecisionHeader]]:
        query = (
            select(DECISIONS.c.place, *HEADER_COLUMNS)
            .where(DECISIONS.c.place > after)
            .order_by(DECISIONS.c.place)
            .limit(limit)
        )
        decisions: list[tuple[int, DecisionHeader]] = []
        with self._database.reading() as connection:
            for row in connection.execute(query):
                if row.time_s >= before_s:
                    break
                decisions.append((row.place, header_from_values(row[1:])))
        return decisions

    def _is_held(self, row: Row[Any]) -> bool:
        """Whether a lease runs. One that ends later than any could was given by a clock that was wrong then."""
        left_s: float = row.lead_until_s - row.now_s
        return 0 < left_s <= self._lease_s + _LEASE_SLACK_S

    def _hold_lock(self) -> bool:
        """Whether this store has the lock of a SQLite file's leader; there is none elsewhere."""
        if self._lock_file is None or self._lock is not None:
            return True
        try:
            self._lock = locked(self._lock_file)
        except OSError as error:
            raise StoreUnavailable(explain_os_error(error)) from error
        return self._lock is not None

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_lead(self, row: Row[Any]) -> None:
        if row.leader != self._me or row.epoch != self._epoch:
            self._epoch = 0
            raise StoreMoved


def _learned_values(commit: LeaderCommit) -> list[tuple[tuple[str, ...], list[Values]]]:
    """Columns of experiences that a commit sets, and their values with the number last.

    Most experiences get probabilities and slice at once, and then are written once.
    """
    both = [
        (probabilities_value(probabilities), commit.slices[number], number)
        for number, probabilities in commit.probabilities.items()
        if number in commit.slices
    ]
    probabilities_only = [
        (probabilities_value(probabilities), number)
        for number, probabilities in commit.probabilities.items()
        if number not in commit.slices
    ]
    slice_only = [(slice_, number) for number, slice_ in commit.slices.items() if number not in commit.probabilities]
    refused = [(json.dumps(raters), number) for number, raters in commit.refused.items()]
    outdated = [(is_outdated, number) for number, is_outdated in commit.outdated.items()]
    return [
        (("probabilities", "slice"), both),
        (("probabilities",), probabilities_only),
        (("slice",), slice_only),
        (("outdated",), outdated),
        (("refused",), refused),
    ]
