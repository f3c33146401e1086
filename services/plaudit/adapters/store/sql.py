"""ExperienceStore in a SQL database, through SQLAlchemy Core: SQLite for one learner, PostgreSQL for any number.

Every write first locks the one row of ``intake_stats``, so writes come one after another and numbers leave no gaps.
What must not have changed since it was read is compared under that lock: the positions of a batch's partitions, and for
the leader the epoch of its lead. Knows nothing about what is learned.

Who may lead is said by a lease on the clock of PostgreSQL's server, and by a lock on a file beside a SQLite file, which
the kernel takes back from a process that ends, however it ends.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from operator import itemgetter
from typing import Any, Final, TypeVar

import numpy as np
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Insert,
    LargeBinary,
    Row,
    Select,
    String,
    Table,
    Text,
    Update,
    bindparam,
    cast,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from plaudit.adapters import sqlite_errors
from plaudit.adapters.file_lock import locked
from plaudit.adapters.store.engine import create_store_engine, parsed_url, sqlite_file
from plaudit.adapters.store.rows import (
    decision_from_payload,
    decision_row,
    experience_from_row,
    features_from_row,
    features_row,
    feedback_from_row,
    feedback_in,
    feedback_row,
    header_from_row,
    label_from_row,
    label_row,
    rater_pattern,
    stats_from_row,
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
    LABEL_COLUMNS,
    METADATA,
    POSITIONS,
    REVISIONS,
    SCHEMA,
    STATE,
    found_schema,
    migrate,
)
from plaudit.core.errors import StoreDamaged, StoreMoved, StoreUnavailable, UnstorableValue, WrongStore
from plaudit.core.events import Content, Decision, DynamicAction, Features, Feedback
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState, Label, rater_labels
from plaudit.core.host.os_errors import explain as explain_os_error
from plaudit.core.limits import LOG_GAP_S
from plaudit.core.log_time import LogTime, advanced
from plaudit.core.ports.log import Positions
from plaudit.core.ports.store import (
    ExperimentSummary,
    FeedbackStatus,
    IngestBatch,
    IntakeStats,
    LabelRevision,
    LabelUpdate,
    LeaderCommit,
    PredictionHistory,
    RaterCommand,
    StoredFeedback,
)
from plaudit_models.evaluation.raters import TrustLevel

LEAD_SUFFIX: Final = ".lead"
"""End of the name of the file beside a SQLite file that its leader has locked."""
LEASE_S: Final = 5.0
"""Time for which a leader that is not heard of stays the leader."""

_MOVE_AWAY: Final = "move it away, and the learner makes another one from the log"
_LEASE_SLACK_S: Final = 1.0
"""Time by which the server's clock may seem to go back without ending a lease."""
_IDS_PER_QUERY: Final = 500
_MIGRATED: Final = (4, 5)
"""Schemas of stores that are brought up to date when they are opened."""
_MAX_PROBLEM_CHARACTERS: Final = 500
_NOBODY: Final = "[]"
_DEAD_LETTER: Final = "its record is a dead letter"
_UNIQUE_VIOLATION: Final = "23505"
_OF_VALUES: Final = ("22", "54")
"""PostgreSQL's classes of errors that are about a value: data exceptions, and what is too long for an index."""
_STORE_ID_PART: Final = "store_id"
"""Part of the state that no learner writes: drawn when the store is made, or first opened by this release."""
_STORE_ID: Final = select(STATE.c.value).where(STATE.c.part == _STORE_ID_PART)


_T = TypeVar("_T")


class SqlStore:
    """See :class:`plaudit.core.ports.store.ExperienceStore`.

    Args:
        url: a SQLAlchemy database URL; engine.py makes one for a file. Tables are made if they are not there.
        lease_s: time for which a leader that is not heard of stays the leader.

    Raises:
        ConfigError: the URL is malformed, or of a database that is not supported.
        StoreUnavailable: the database cannot be opened.
        StoreDamaged: the file is no database, or a damaged one.
        WrongStore: its tables are of another version of Plaudit.
    """

    def __init__(self, url: str | URL, *, lease_s: float = LEASE_S) -> None:
        self._url = parsed_url(url)
        self._lease_s = lease_s
        self._me = uuid.uuid4().hex
        self._epoch = 0
        self._asked_s = -lease_s
        file = sqlite_file(self._url)
        self._lock_file = None if file is None else file.with_name(file.name + LEAD_SUFFIX)
        self._lock: int | None = None
        with self._errors():
            self._engine = create_store_engine(self._url)
            self._writing = self._engine.execution_options(writes=True)
        self._shared = self._engine.dialect.name == "postgresql"
        inserts: dict[str, Callable[[Table], sqlite_dialect.Insert | postgresql.Insert]]
        inserts = {"sqlite": sqlite_dialect.insert, "postgresql": postgresql.insert}
        self._insert_or_update = inserts[self._engine.dialect.name]
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    # --- IngestStore -------------------------------------------------------------------------------------------------

    def positions(self) -> Positions:
        with self._reading() as connection:
            return {row.partition: row.cursor for row in connection.execute(select(POSITIONS))}

    def save_batch(self, batch: IngestBatch) -> None:
        with self._locked() as (connection, row):
            of_batch = POSITIONS.c.partition.in_(list(batch.positions))
            saved = {row.partition: row.cursor for row in connection.execute(select(POSITIONS).where(of_batch))}
            if any(saved.get(name) != batch.since.get(name) for name in batch.positions):
                raise StoreMoved
            self._insert(connection, DECISIONS, [decision_row(d) for d in batch.decisions])
            features = {d.prediction_id: d.features for d in batch.decisions if d.features is not None}
            self._upsert(connection, FEATURES, [features_row(*item) for item in features.items()])
            stats = stats_from_row(row)
            number = stats.batches + 1
            self._upsert(connection, FEEDBACK, [feedback_row(stored) | {"batch": number} for stored in batch.feedback])
            dead = [asdict(each) | {"batch": number} for each in batch.dead_feedback]
            self._upsert(connection, DEAD_FEEDBACK, dead)
            last_number = self._label(connection, stats.last_number, batch.labels)
            positions = [{"partition": name, "cursor": cursor} for name, cursor in batch.positions.items()]
            self._upsert(connection, POSITIONS, positions)
            latest = batch.new_feedback[-1].feedback_id if batch.new_feedback else stats.last_feedback_id
            ahead_s = batch.clock_s + LOG_GAP_S
            times_s = [feedback.time_s for feedback in batch.new_feedback if feedback.time_s <= ahead_s]
            latest_s = max([stats.last_feedback_time_s, *times_s])
            before = LogTime(stats.log_time_s, stats.log_gap_to_s)
            log_time = advanced(before, [*(d.time_s for d in batch.decisions), *times_s], batch.clock_s)
            discarded = sum(stored.state == FeedbackState.DISCARDED for stored in batch.feedback)
            connection.execute(
                update(INTAKE_STATS).values(
                    batches=number,
                    last_number=last_number,
                    feedback=stats.feedback + len(batch.new_feedback),
                    last_feedback_id=latest,
                    last_feedback_time_s=latest_s,
                    waiting=stats.waiting + batch.waiting,
                    discarded=stats.discarded + discarded,
                    outcomes=json.dumps(Counter(stats.outcomes) + Counter(batch.outcomes)),
                    log_time_s=log_time.time_s,
                    log_gap_to_s=log_time.gap_to_s,
                )
            )

    def intake_stats(self) -> IntakeStats:
        with self._reading() as connection:
            stats = stats_from_row(connection.execute(select(INTAKE_STATS)).one())
            return replace(stats, store_id=(connection.scalar(_STORE_ID) or b"").decode())

    # --- LeaderStore -------------------------------------------------------------------------------------------------

    def lead(self) -> bool:
        leads = self._epoch > 0
        if leads and time.monotonic() - self._asked_s < self._lease_s / 3:
            return True
        if not self._hold_lock():
            return False
        with self._locked() as (connection, row):
            if row.leader != self._me and (leads or (self._shared and self._is_held(row))):
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
            if leads and self._shared:
                with self._locked() as (connection, row):
                    if row.leader == self._me:
                        connection.execute(update(INTAKE_STATS).values(lead_until_s=row.now_s))
        finally:
            self._release_lock()

    def save(self, commit: LeaderCommit) -> None:
        with self._locked() as (connection, row):
            self._check_lead(row)
            self._upsert(connection, FEATURES, [features_row(*item) for item in commit.features.items()])
            self._save_values(connection, "probabilities", LargeBinary(), _encoded(commit.probabilities))
            self._save_values(connection, "slice", String(), commit.slices)
            self._save_values(connection, "outdated", Boolean(), commit.outdated)
            refused = {number: json.dumps(raters) for number, raters in commit.refused.items()}
            self._save_values(connection, "refused", Text(), refused)
            for numbers in _chunks(commit.excluded):
                those = EXPERIENCES.c.number.in_(numbers)
                connection.execute(update(EXPERIENCES).where(those).values(excluded=True))
            self._resolve(connection, commit.resolved)
            number = self._label(connection, row.last_number, commit.silent)
            if number != row.last_number:
                connection.execute(update(INTAKE_STATS).values(last_number=number))
            parts = [{"part": part, "value": value} for part, value in commit.state.items() if value is not None]
            self._upsert(connection, STATE, parts)
            removed = [part for part, value in commit.state.items() if value is None]
            if removed:
                connection.execute(STATE.delete().where(STATE.c.part.in_(removed)))
            for commands in _chunks(commit.commands):
                applied = COMMANDS.c.number.in_([command.number for command in commands])
                connection.execute(COMMANDS.delete().where(applied))
            self._upsert(connection, EXPERIMENTS, [summary_row(summary) for summary in commit.experiments])

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
        with self._locked() as (connection, row):
            self._check_lead(row)
            gone = list(connection.scalars(old))
            for ids in _chunks(gone):
                for table in (FEATURES, FEEDBACK, EXPERIENCES, DECISIONS):
                    connection.execute(table.delete().where(table.c.prediction_id.in_(ids)))
            connection.execute(DEAD_FEEDBACK.delete().where(DEAD_FEEDBACK.c.time_s < before_s))
            orphans = list(connection.scalars(orphaned))
            for ids in _chunks(orphans):
                connection.execute(FEEDBACK.delete().where(FEEDBACK.c.feedback_id.in_(ids)))
            if orphans:
                connection.execute(update(INTAKE_STATS).values(waiting=row.waiting - len(orphans)))
        return len(gone) + len(orphans)

    # --- readers -----------------------------------------------------------------------------------------------------

    def get_state(self, part: str) -> bytes | None:
        with self._reading() as connection:
            value: bytes | None = connection.scalar(select(STATE.c.value).where(STATE.c.part == part))
        return value

    def put_command(self, user_id: str, trust_level: TrustLevel) -> None:
        with self._locked() as (connection, _):
            connection.execute(COMMANDS.insert().values(user_id=user_id, trust_level=trust_level))

    def pending_commands(self) -> Sequence[RaterCommand]:
        with self._reading() as connection:
            rows = connection.execute(select(COMMANDS).order_by(COMMANDS.c.number))
            return [RaterCommand(row.number, row.user_id, row.trust_level) for row in rows]

    def histories(self, prediction_ids: Sequence[str]) -> Mapping[str, PredictionHistory]:
        decisions: dict[str, DecisionHeader] = {}
        feedback: dict[str, list[StoredFeedback]] = defaultdict(list)
        experiences: dict[str, Experience] = {}
        with self._reading() as connection:
            for row in _select_in(connection, select(*HEADER_COLUMNS), DECISIONS.c.prediction_id, prediction_ids):
                decisions[row.prediction_id] = header_from_row(row)
            for row in _select_in(connection, select(FEEDBACK), FEEDBACK.c.prediction_id, prediction_ids):
                feedback[row.prediction_id].append(feedback_from_row(row))
            for row in _select_in(connection, select(EXPERIENCES), EXPERIENCES.c.prediction_id, prediction_ids):
                header = decisions[row.prediction_id]
                experiences[row.prediction_id] = experience_from_row(row, header, label_from_row(row))
        return {
            id_: PredictionHistory(decisions.get(id_), feedback.get(id_, []), experiences.get(id_))
            for id_ in prediction_ids
        }

    def feedback(self, feedback_ids: Sequence[str]) -> Mapping[str, StoredFeedback]:
        with self._reading() as connection:
            rows = _select_in(connection, select(FEEDBACK), FEEDBACK.c.feedback_id, feedback_ids)
            return {row.feedback_id: feedback_from_row(row) for row in rows}

    def feedback_status(self, feedback_id: str) -> FeedbackStatus | None:
        query = (
            select(
                *(FEEDBACK.c[name] for name in ("state", "time_s", "reason", "batch", "payload")),
                EXPERIENCES.c.excluded,
                EXPERIENCES.c.refused,
                _STORE_ID.scalar_subquery().label("store_id"),
            )
            .outerjoin(EXPERIENCES, EXPERIENCES.c.prediction_id == FEEDBACK.c.prediction_id)
            .where(FEEDBACK.c.feedback_id == feedback_id)
        )
        dead = select(DEAD_FEEDBACK).where(DEAD_FEEDBACK.c.feedback_id == feedback_id)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                letter = connection.execute(dead).one_or_none()
                if letter is None:
                    return None
                reason = f"{_DEAD_LETTER}: {letter.reason}"
                return FeedbackStatus(FeedbackState.DISCARDED, letter.time_s, reason, letter.batch)
        state, store_id = FeedbackState(row.state), (row.store_id or b"").decode()
        refused = json.loads(row.refused or _NOBODY)
        excluded = bool(row.excluded) or (bool(refused) and feedback_in(row.payload).user_id in refused)
        return FeedbackStatus(state, row.time_s, row.reason, row.batch, excluded, store_id)

    def experiment_summary(self, version: int) -> ExperimentSummary | None:
        of_version = EXPERIMENTS.c.version == version
        query = select(EXPERIMENTS).where(of_version).order_by(EXPERIMENTS.c.generation.desc()).limit(1)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else ExperimentSummary(row.generation, row.version, json.loads(row.details))

    def orphans(self, limit: int) -> Sequence[Feedback]:
        waiting = FEEDBACK.c.state == FeedbackState.WAITING
        query = select(FEEDBACK).where(waiting).order_by(FEEDBACK.c.time_s).limit(limit)
        with self._reading() as connection:
            return [feedback_from_row(row).feedback for row in connection.execute(query)]

    def decisions_since(self, after: int, before_s: float, limit: int) -> Sequence[tuple[int, DecisionHeader]]:
        query = (
            select(DECISIONS.c.place, *HEADER_COLUMNS)
            .where(DECISIONS.c.place > after)
            .order_by(DECISIONS.c.place)
            .limit(limit)
        )
        decisions: list[tuple[int, DecisionHeader]] = []
        with self._reading() as connection:
            for row in connection.execute(query):
                if row.time_s >= before_s:
                    break
                decisions.append((row.place, header_from_row(row)))
        return decisions

    def experiences(
        self,
        *,
        after: int = 0,
        up_to: int | None = None,
        limit: int | None = None,
        rater: str | None = None,
        slice: str | None = None,
    ) -> Sequence[Experience]:
        query = (
            select(*EXPERIENCE_COLUMNS)
            .join(DECISIONS, DECISIONS.c.prediction_id == EXPERIENCES.c.prediction_id)
            .outerjoin(REVISIONS, REVISIONS.c.number == EXPERIENCES.c.number)
            .where(EXPERIENCES.c.number > after)
            .order_by(EXPERIENCES.c.number)
            .limit(limit)
        )
        if up_to is not None:
            query = query.where(EXPERIENCES.c.number <= up_to)
        if rater is not None:
            named = [
                table.c.raters.contains(rater_pattern(rater), autoescape=True) for table in (EXPERIENCES, REVISIONS)
            ]
            unnamed = EXPERIENCES.c.raters.is_(None) | (REVISIONS.c.rewards.is_not(None) & REVISIONS.c.raters.is_(None))
            query = query.where(or_(*named, unnamed & (DECISIONS.c.user_id == rater)))
        if slice is not None:
            query = query.where(EXPERIENCES.c.slice == slice)
        with self._reading() as connection:
            rows = connection.execute(query)
            return [_former_experience(row) for row in rows if rater is None or _is_rated_by(row, rater)]

    def revisions(self, up_to: int, limit: int) -> Sequence[LabelRevision]:
        query = (
            select(*EXPERIENCE_COLUMNS)
            .join(DECISIONS, DECISIONS.c.prediction_id == EXPERIENCES.c.prediction_id)
            .join(REVISIONS, REVISIONS.c.number == EXPERIENCES.c.number)
            .where(REVISIONS.c.number <= up_to)
            .order_by(REVISIONS.c.number)
            .limit(limit)
        )
        with self._reading() as connection:
            rows = connection.execute(query)
            return [LabelRevision(_former_experience(row), label_from_row(row), row.times) for row in rows]

    def features(self, prediction_ids: Sequence[str], trunk_digest: str) -> Mapping[str, Features]:
        query = select(FEATURES).where(FEATURES.c.trunk_digest == trunk_digest)
        with self._reading() as connection:
            rows = _select_in(connection, query, FEATURES.c.prediction_id, prediction_ids)
            return {row.prediction_id: features_from_row(row) for row in rows}

    def contents(self, prediction_ids: Sequence[str]) -> Mapping[str, Mapping[str, Content]]:
        return {decision.prediction_id: decision.content for decision in self._decisions(prediction_ids)}

    def dynamic_actions(self, prediction_ids: Sequence[str]) -> Mapping[str, Sequence[DynamicAction]]:
        return {decision.prediction_id: decision.dynamic_actions for decision in self._decisions(prediction_ids)}

    @property
    def exclusive(self) -> bool:
        return not self._shared

    def close(self) -> None:
        self._release_lock()
        self._engine.dispose()

    # --- internals ---------------------------------------------------------------------------------------------------

    def _decisions(self, prediction_ids: Sequence[str]) -> list[Decision]:
        with self._reading() as connection:
            rows = _select_in(connection, select(DECISIONS.c.payload), DECISIONS.c.prediction_id, prediction_ids)
            return [decision_from_payload(row.payload) for row in rows]

    def _prepare(self) -> None:
        """Make the tables, or check that those there are of this version."""
        with self._errors(), self._writing.begin() as connection:
            if self._shared:  # several learners may start at once, and CREATE TABLE IF NOT EXISTS is not enough then
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("plaudit"))))
            found = found_schema(connection)
            if found not in (None, *_MIGRATED, SCHEMA):
                raise WrongStore(self._place, found, SCHEMA)
            METADATA.create_all(connection)
            if found in _MIGRATED:
                migrate(connection, found)
            first = {c.name: "" if isinstance(c.type, String) else 0 for c in INTAKE_STATS.columns}
            first |= {"id": 1, "schema": SCHEMA, "outcomes": "{}"}
            connection.execute(self._insert_or_update(INTAKE_STATS).values(first).on_conflict_do_nothing())
            drawn = {"part": _STORE_ID_PART, "value": uuid.uuid4().hex.encode()}
            connection.execute(self._insert_or_update(STATE).values(drawn).on_conflict_do_nothing())

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

    def _label(self, connection: Connection, last_number: int, updates: Sequence[LabelUpdate]) -> int:
        """Make and change experiences; returns the number of the last one."""
        fresh = [each for each in updates if each.before is None]
        rows = [
            label_row(each.label)
            | {
                "number": number,
                "prediction_id": each.prediction_id,
                "probabilities": None,
                "excluded": False,
                "slice": "",
                "outdated": False,
                "refused": _NOBODY,
            }
            for number, each in enumerate(fresh, last_number + 1)
        ]
        self._insert(connection, EXPERIENCES, rows)
        changed = [(each.before, each.label) for each in updates if each.before is not None]
        if changed:
            insertion = self._insert_or_update(REVISIONS)
            known = insertion.on_conflict_do_update(index_elements=["number"], set_={"times": REVISIONS.c.times + 1})
            connection.execute(known, [label_row(b.label) | {"number": b.number, "times": 1} for b, _ in changed])
            _set_labels(connection, EXPERIENCES, {before.number: label for before, label in changed})
        return last_number + len(fresh)

    def _resolve(self, connection: Connection, resolved: Sequence[LabelRevision]) -> None:
        """Remove the revisions. One that changed again since it was read stays, with the label that is learned now."""
        if resolved:
            unchanged = (REVISIONS.c.number == bindparam("n")) & (REVISIONS.c.times == bindparam("t"))
            read = [{"n": each.experience.number, "t": each.times} for each in resolved]
            connection.execute(REVISIONS.delete().where(unchanged), read)
            _set_labels(connection, REVISIONS, {each.experience.number: each.label for each in resolved})

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        statement = self._insert_or_update(table)
        keys = [c.name for c in table.primary_key]
        fresh = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
        self._insert(connection, table, rows, statement.on_conflict_do_update(index_elements=keys, set_=fresh))

    def _insert(
        self,
        connection: Connection,
        table: Table,
        rows: Sequence[Mapping[str, Any]],
        statement: sqlite_dialect.Insert | postgresql.Insert | None = None,
    ) -> None:
        """Insert many rows at once; ``statement`` handles conflicts with rows that are there."""
        if not rows:
            return
        statement = self._insert_or_update(table) if statement is None else statement
        if self._shared:
            found = _unnested({name: table.c[name].type for name in rows[0]}, rows)
            connection.execute(statement.from_select(list(rows[0]), select(*found.c)))
        else:
            _execute_many(connection, statement, rows)

    def _save_values(
        self, connection: Connection, column: str, kind: TypeEngine[Any], values: Mapping[int, object]
    ) -> None:
        """Set one column of experiences, by number."""
        rows = [{"n": number, "value": value} for number, value in values.items()]
        if rows and self._shared:
            given = _unnested({"n": BigInteger(), "value": kind}, rows)
            of_row = EXPERIENCES.c.number == given.c.n
            connection.execute(update(EXPERIENCES).where(of_row).values({column: given.c["value"]}))
        elif rows:
            of_row = EXPERIENCES.c.number == bindparam("n")
            _execute_many(connection, update(EXPERIENCES).where(of_row).values({column: bindparam("value")}), rows)

    @contextmanager
    def _locked(self) -> Iterator[tuple[Connection, Row[Any]]]:
        """A transaction without other writers, and the row of ``intake_stats`` in it, with the time as ``now_s``."""
        now_s = (
            cast(func.extract("epoch", func.clock_timestamp()), Double)
            if self._shared
            else bindparam("now", time.time())
        )
        query = select(INTAKE_STATS, now_s.label("now_s")).with_for_update()
        with self._errors(), self._writing.begin() as connection:
            yield connection, connection.execute(query).one()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @property
    def _place(self) -> str:
        """The file, or the URL without its password."""
        file = sqlite_file(self._url)
        return self._url.render_as_string(hide_password=True) if file is None else str(file)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            if _is_conflict(error):
                raise StoreMoved from error
            raise UnstorableValue(f"{self._place}: {str(error.orig).strip()[:_MAX_PROBLEM_CHARACTERS]}") from error
        except DataError as error:
            raise UnstorableValue(f"{self._place}: {str(error.orig).strip()[:_MAX_PROBLEM_CHARACTERS]}") from error
        except DBAPIError as error:
            if (getattr(error.orig, "sqlstate", None) or "")[:2] in _OF_VALUES:
                raise UnstorableValue(f"{self._place}: {str(error.orig).strip()[:_MAX_PROBLEM_CHARACTERS]}") from error
            cause = error.orig or error
            damage = StoreDamaged if sqlite_errors.is_damaged(cause) else StoreUnavailable
            raise damage(sqlite_errors.explain(self._place, cause, _MOVE_AWAY)) from error
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"{self._place}: {error}") from error


def _is_conflict(error: IntegrityError) -> bool:
    """Whether a row is there already, which another learner wrote."""
    if isinstance(error.orig, sqlite3.Error):
        return error.orig.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    return getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION


def _former_experience(row: Row[Any]) -> Experience:
    """Experience of a row of EXPERIENCE_COLUMNS, with the label before its revision, if it has one."""
    return experience_from_row(row, header_from_row(row), label_from_row(row, "" if row.times is None else "was_"))


def _is_rated_by(row: Row[Any], rater: str) -> bool:
    """Whether the label of a row of EXPERIENCE_COLUMNS, or the one before its revision, is from this rater too."""
    labels = (label_from_row(row, prefix) for prefix in ("", "was_"))
    return any(each.rater == rater for label in labels for each in rater_labels(label, row.user_id))


def _unnested(types: Mapping[str, TypeEngine[Any]], rows: Sequence[Mapping[str, Any]]) -> TableValuedAlias:
    """The rows as a table that PostgreSQL makes of one array a column: several times as fast as row by row."""
    arrays = [
        bindparam(f"all_{name}", [row[name] for row in rows], type_=postgresql.ARRAY(type_))
        for name, type_ in types.items()
    ]
    return func.unnest(*arrays).table_valued(*types, name="given").render_derived()


def _set_labels(connection: Connection, table: Table, labels: Mapping[int, Label | None]) -> None:
    """Set the label columns of rows by number, at least one."""
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in LABEL_COLUMNS}
    rows = [{"n": n} | {f"new_{name}": v for name, v in label_row(label).items()} for n, label in labels.items()]
    connection.execute(update(table).where(table.c.number == bindparam("n")).values(values), rows)


def _encoded(probabilities: Mapping[int, tuple[float, ...]]) -> dict[int, bytes]:
    return {number: np.array(values, "<f8").tobytes() for number, values in probabilities.items()}


def _execute_many(connection: Connection, statement: Insert | Update, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows straight to SQLite's driver, whose types they have: SQLAlchemy would look at every value of each."""
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(rows[0]))
    assert compiled.positiontup is not None
    place = itemgetter(*compiled.positiontup)
    connection.exec_driver_sql(str(compiled), [place(row) for row in rows])


def _select_in(
    connection: Connection, query: Select[Any], column: Column[str], ids: Sequence[str]
) -> Iterator[Row[Any]]:
    """Rows of the query whose column has one of the ids."""
    for some in _chunks(ids):
        yield from connection.execute(query.where(column.in_(some)))


def _chunks(ids: Sequence[_T]) -> Iterable[Sequence[_T]]:
    """Databases limit how many parameters a query may have."""
    return (ids[start : start + _IDS_PER_QUERY] for start in range(0, len(ids), _IDS_PER_QUERY))
