"""ExperienceStore in a SQL database, through SQLAlchemy Core: SQLite for one learner, PostgreSQL for any number.

Every write first locks the one row of ``intake_stats``, so writes come one after another and numbers leave no gaps.
What must not have changed since it was read is compared under that lock: the positions of a batch's partitions, and for
the leader the epoch of its lead. Payloads are the log's own (wire.py), so there is one durable schema. Knows nothing
about what is learned.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    Update,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from plaudit.core.errors import ConfigError, StoreMoved, StoreUnavailable, WrongStore
from plaudit.core.events import Content, Decision, DynamicAction, Features, Feedback, Topic
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState, Label, header_of
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
from plaudit.core.wire import decode_event, encode_event
from plaudit_models.evaluation.raters import TrustLevel

SCHEMA: Final = 4
"""Of the tables below. Another one is refused: everything in them can be had again from the log."""
LEASE_S: Final = 5.0
"""How long a leader that is not heard of stays the leader."""

_IDS_PER_QUERY: Final = 500
_BUSY_TIMEOUT_S: Final = 30.0
_PATIENCE_S: Final = 10
"""How long PostgreSQL may take to answer a connection, to give the lock, or wait for a client that holds it."""

_NONE: Final = "[]"
"""No dynamic actions; those of different requests differ, so lists of them are not remembered as names are."""

_T = TypeVar("_T")

_METADATA = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")

_STANDING = Table(
    "intake_stats",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema", Integer, nullable=False),
    Column("leader", String, nullable=False),
    Column("epoch", _Number, nullable=False),
    Column("lead_until_s", Double, nullable=False),
    Column("batches", _Number, nullable=False),
    Column("last_number", _Number, nullable=False),
    Column("feedback", _Number, nullable=False),
    Column("last_feedback_id", String, nullable=False),
    Column("last_feedback_time_s", Double, nullable=False),
    Column("waiting", _Number, nullable=False),
    Column("discarded", _Number, nullable=False),
    Column("outcomes", Text, nullable=False),
)
"""One row, see ports.IntakeStats. ``epoch`` grows whenever the leader changes. ``outcomes``: JSON."""

_POSITIONS = Table(
    "positions", _METADATA, Column("partition", String, primary_key=True), Column("cursor", Text, nullable=False)
)
_DECISIONS = Table(
    "decisions",
    _METADATA,
    Column("place", _Number, primary_key=True, autoincrement=True),
    Column("prediction_id", String, nullable=False, unique=True),
    Column("time_s", Double, nullable=False, index=True),
    Column("user_id", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("action", String, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("allowed_actions", Text, nullable=False),
    Column("greedy", Boolean, nullable=False),
    Column("modalities", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("user_group", String, nullable=False, server_default=""),
    Column("dynamic_actions", Text, nullable=False, server_default=_NONE),
)
"""``payload``: the DecisionEvent without its features. The other columns repeat what is needed without the content;
``dynamic_actions``: their ids."""

_FEEDBACK = Table(
    "feedback",
    _METADATA,
    Column("feedback_id", String, primary_key=True),
    Column("prediction_id", String, nullable=False, index=True),
    Column("time_s", Double, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("batch", _Number, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("feedback_by_state", "state", "time_s"),
)
_EXPERIENCES = Table(
    "experiences",
    _METADATA,
    Column("number", _Number, primary_key=True, autoincrement=False),
    Column("prediction_id", String, nullable=False, unique=True),
    Column("rewards", Text),
    Column("weight", Double),
    Column("correction", String),
    Column("probabilities", LargeBinary),
    Column("excluded", Boolean, nullable=False),
)
"""``rewards``: JSON, action → reward; NULL once all was taken back. ``probabilities``: little-endian float64."""

_REVISIONS = Table(
    "revisions",
    _METADATA,
    Column("number", _Number, primary_key=True, autoincrement=False),
    Column("rewards", Text),
    Column("weight", Double),
    Column("correction", String),
    Column("times", Integer, nullable=False),
)
"""The label of an experience as the leader last knew it, where it has changed since."""

_FEATURES = Table(
    "features",
    _METADATA,
    Column("prediction_id", String, primary_key=True),
    Column("trunk_digest", String, primary_key=True),
    Column("embedding", LargeBinary, nullable=False),
    Column("base_logits", LargeBinary, nullable=False),
)
"""Little-endian float32."""

_STATE = Table(
    "learner_state", _METADATA, Column("part", String, primary_key=True), Column("value", LargeBinary, nullable=False)
)
"""The learner's state by part, in the encoding of learner/state.py."""

_COMMANDS = Table(
    "rater_commands",
    _METADATA,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("user_id", String, nullable=False),
    Column("trust_level", String, nullable=False),
    sqlite_autoincrement=True,
)
"""Commands of operators that are not applied yet."""

_EXPERIMENTS = Table(
    "experiment_summaries",
    _METADATA,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False, index=True),
    Column("details", Text, nullable=False),
)
"""``details``: JSON."""

_ADDED: Final = (_DECISIONS.c.user_group, _DECISIONS.c.dynamic_actions)
"""Columns that tables of this schema may lack still. They have defaults, so that who does not know them can write."""

_SERVED_COLUMNS = [c for c in _DECISIONS.columns if c.name not in ("place", "payload")]
_JUDGEMENT = ("rewards", "weight", "correction")


class SqlStore:
    """See :class:`plaudit.core.ports.store.ExperienceStore`.

    On SQLite whoever asks to lead leads, and the one before is told that it was replaced. On PostgreSQL the leader
    holds a lease on the server's clock.

    Args:
        url: a SQLAlchemy database URL; :func:`sqlite_url` makes one for a file. Tables are made if they are not there.
        lease_s: how long a leader that is not heard of stays the leader.

    Raises:
        ConfigError: the URL is none, or of a database that is not supported.
        StoreUnavailable: the database cannot be opened.
        WrongStore: its tables are of another version of Plaudit.
    """

    def __init__(self, url: str, *, lease_s: float = LEASE_S) -> None:
        self._url = _parsed(url)
        self._lease_s = lease_s
        self._me = uuid.uuid4().hex
        self._epoch = 0
        self._asked_s = -lease_s
        with self._errors():
            self._engine = _engine(self._url)
            self._writing = self._engine.execution_options(writes=True)
        self._shared = self._engine.dialect.name == "postgresql"
        inserts: dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]]
        inserts = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        self._insert_or_update = inserts[self._engine.dialect.name]
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    # --- what learners take in ---------------------------------------------------------------------------------------

    def positions(self) -> Positions:
        with self._reading() as connection:
            return {row.partition: row.cursor for row in connection.execute(select(_POSITIONS))}

    def take_in(self, arrivals: IngestBatch) -> None:
        with self._locked() as (connection, row):
            found = {
                row.partition: row.cursor
                for row in connection.execute(
                    select(_POSITIONS).where(_POSITIONS.c.partition.in_(list(arrivals.positions)))
                )
            }
            if any(found.get(name) != arrivals.since.get(name) for name in arrivals.positions):
                raise StoreMoved
            self._insert(connection, _DECISIONS, [_decision_row(d) for d in arrivals.decisions])
            features = {d.prediction_id: d.features for d in arrivals.decisions if d.features is not None}
            self._upsert(connection, _FEATURES, [_features_row(*item) for item in features.items()])
            intake_stats = _standing(row)
            batch = intake_stats.batches + 1
            self._upsert(connection, _FEEDBACK, [_feedback_row(kept) | {"batch": batch} for kept in arrivals.feedback])
            number = self._judge(connection, intake_stats.last_number, arrivals.judged)
            positions = [{"partition": name, "cursor": cursor} for name, cursor in arrivals.positions.items()]
            self._upsert(connection, _POSITIONS, positions)
            latest = arrivals.arrived[-1].feedback_id if arrivals.arrived else intake_stats.last_feedback_id
            connection.execute(
                update(_STANDING).values(
                    batches=batch,
                    last_number=number,
                    feedback=intake_stats.feedback + len(arrivals.arrived),
                    last_feedback_id=latest,
                    last_feedback_time_s=max(
                        [intake_stats.last_feedback_time_s, *(f.time_s for f in arrivals.arrived)]
                    ),
                    waiting=intake_stats.waiting + arrivals.waiting,
                    discarded=intake_stats.discarded
                    + sum(kept.state == FeedbackState.DISCARDED for kept in arrivals.feedback),
                    outcomes=json.dumps(Counter(intake_stats.outcomes) + Counter(arrivals.outcomes)),
                )
            )

    def intake_stats(self) -> IntakeStats:
        with self._reading() as connection:
            return _standing(connection.execute(select(_STANDING)).one())

    # --- what the leader saves ---------------------------------------------------------------------------------------

    def lead(self) -> bool:
        leads = self._epoch > 0
        if leads and time.monotonic() - self._asked_s < self._lease_s / 3:
            return True
        with self._locked() as (connection, row):
            if row.leader != self._me:
                if self._shared and row.lead_until_s > row.now_s:
                    self._epoch = 0
                    return False
                if not self._shared and leads:
                    raise StoreMoved("it is in SQLite, which is for one: stop one of them, or set store.url")
            epoch = row.epoch if row.leader == self._me and leads else row.epoch + 1
            until_s = row.now_s + self._lease_s
            connection.execute(update(_STANDING).values(leader=self._me, epoch=epoch, lead_until_s=until_s))
        self._epoch = epoch
        self._asked_s = time.monotonic()
        return True

    def save(self, changes: LeaderCommit) -> None:
        with self._locked() as (connection, row):
            self._check_lead(row)
            self._upsert(connection, _FEATURES, [_features_row(*item) for item in changes.features.items()])
            self._note(connection, changes.probabilities)
            for numbers in _chunks(changes.excluded):
                those = _EXPERIENCES.c.number.in_(numbers)
                connection.execute(update(_EXPERIENCES).where(those).values(excluded=True))
            self._resolve(connection, changes.resolved)
            number = self._judge(connection, row.last_number, changes.silent)
            if number != row.last_number:
                connection.execute(update(_STANDING).values(last_number=number))
            parts = [{"part": part, "value": value} for part, value in changes.state.items() if value is not None]
            self._upsert(connection, _STATE, parts)
            removed = [part for part, value in changes.state.items() if value is None]
            if removed:
                connection.execute(_STATE.delete().where(_STATE.c.part.in_(removed)))
            for commands in _chunks(changes.commands):
                applied = _COMMANDS.c.number.in_([command.number for command in commands])
                connection.execute(_COMMANDS.delete().where(applied))
            self._upsert(connection, _EXPERIMENTS, [_summary_row(summary) for summary in changes.experiments])

    def forget(self, before_s: float, learned: int, limit: int) -> int:
        same = _EXPERIENCES.c.prediction_id == _DECISIONS.c.prediction_id
        old = (
            select(_DECISIONS.c.prediction_id)
            .select_from(
                _DECISIONS.outerjoin(_EXPERIENCES, same).outerjoin(
                    _REVISIONS, _REVISIONS.c.number == _EXPERIENCES.c.number
                )
            )
            .where(
                _DECISIONS.c.time_s < before_s,
                func.coalesce(_EXPERIENCES.c.number, 0) <= learned,
                _REVISIONS.c.number.is_(None),
            )
            .order_by(_DECISIONS.c.time_s)
            .limit(limit)
        )
        waiting = (_FEEDBACK.c.state == FeedbackState.WAITING) & (_FEEDBACK.c.time_s < before_s)
        orphaned = select(_FEEDBACK.c.feedback_id).where(waiting).order_by(_FEEDBACK.c.time_s).limit(limit)
        with self._locked() as (connection, row):
            self._check_lead(row)
            gone = list(connection.scalars(old))
            for ids in _chunks(gone):
                for table in (_FEATURES, _FEEDBACK, _EXPERIENCES, _DECISIONS):
                    connection.execute(table.delete().where(table.c.prediction_id.in_(ids)))
            orphans = list(connection.scalars(orphaned))
            for ids in _chunks(orphans):
                connection.execute(_FEEDBACK.delete().where(_FEEDBACK.c.feedback_id.in_(ids)))
            if orphans:
                connection.execute(update(_STANDING).values(waiting=row.waiting - len(orphans)))
        return len(gone) + len(orphans)

    # --- what anybody reads ------------------------------------------------------------------------------------------

    def get_state(self, part: str) -> bytes | None:
        with self._reading() as connection:
            value: bytes | None = connection.scalar(select(_STATE.c.value).where(_STATE.c.part == part))
        return value

    def put_command(self, user_id: str, trust_level: TrustLevel) -> None:
        with self._locked() as (connection, _):
            connection.execute(_COMMANDS.insert().values(user_id=user_id, trust_level=trust_level))

    def pending_commands(self) -> Sequence[RaterCommand]:
        with self._reading() as connection:
            rows = connection.execute(select(_COMMANDS).order_by(_COMMANDS.c.number))
            return [RaterCommand(row.number, row.user_id, row.trust_level) for row in rows]

    def histories(self, prediction_ids: Sequence[str]) -> Mapping[str, PredictionHistory]:
        decisions: dict[str, DecisionHeader] = {}
        feedback: dict[str, list[StoredFeedback]] = defaultdict(list)
        experiences: dict[str, Experience] = {}
        with self._reading() as connection:
            for ids in _chunks(prediction_ids):
                for row in connection.execute(select(*_SERVED_COLUMNS).where(_DECISIONS.c.prediction_id.in_(ids))):
                    decisions[row.prediction_id] = _served(row)
                for row in connection.execute(select(_FEEDBACK).where(_FEEDBACK.c.prediction_id.in_(ids))):
                    feedback[row.prediction_id].append(_kept(row))
                for row in connection.execute(select(_EXPERIENCES).where(_EXPERIENCES.c.prediction_id.in_(ids))):
                    experiences[row.prediction_id] = _experience(row, decisions[row.prediction_id], _judgement(row))
        return {
            id_: PredictionHistory(decisions.get(id_), feedback.get(id_, []), experiences.get(id_))
            for id_ in prediction_ids
        }

    def feedback(self, feedback_ids: Sequence[str]) -> Mapping[str, StoredFeedback]:
        with self._reading() as connection:
            return {
                row.feedback_id: _kept(row)
                for ids in _chunks(feedback_ids)
                for row in connection.execute(select(_FEEDBACK).where(_FEEDBACK.c.feedback_id.in_(ids)))
            }

    def feedback_status(self, feedback_id: str) -> FeedbackStatus | None:
        query = (
            select(*(_FEEDBACK.c[name] for name in ("state", "time_s", "reason", "batch")), _EXPERIENCES.c.excluded)
            .outerjoin(_EXPERIENCES, _EXPERIENCES.c.prediction_id == _FEEDBACK.c.prediction_id)
            .where(_FEEDBACK.c.feedback_id == feedback_id)
        )
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return FeedbackStatus(FeedbackState(row.state), row.time_s, row.reason, row.batch, bool(row.excluded))

    def experiment_summary(self, version: int) -> ExperimentSummary | None:
        of_version = _EXPERIMENTS.c.version == version
        query = select(_EXPERIMENTS).where(of_version).order_by(_EXPERIMENTS.c.generation.desc()).limit(1)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else ExperimentSummary(row.generation, row.version, json.loads(row.details))

    def orphans(self, limit: int) -> Sequence[Feedback]:
        waiting = _FEEDBACK.c.state == FeedbackState.WAITING
        query = select(_FEEDBACK).where(waiting).order_by(_FEEDBACK.c.time_s).limit(limit)
        with self._reading() as connection:
            return [_kept(row).feedback for row in connection.execute(query)]

    def silent(self, after: int, before_s: float, limit: int) -> Sequence[tuple[int, DecisionHeader]]:
        query = (
            select(_DECISIONS.c.place, *_SERVED_COLUMNS)
            .where(_DECISIONS.c.place > after)
            .order_by(_DECISIONS.c.place)
            .limit(limit)
        )
        found: list[tuple[int, DecisionHeader]] = []
        with self._reading() as connection:
            for row in connection.execute(query):
                if row.time_s >= before_s:
                    break
                found.append((row.place, _served(row)))
        return found

    def experiences(
        self,
        *,
        after: int = 0,
        up_to: int | None = None,
        limit: int | None = None,
        user_id: str | None = None,
    ) -> Sequence[Experience]:
        query = (
            select(*_EXPERIENCE_COLUMNS)
            .join(_DECISIONS, _DECISIONS.c.prediction_id == _EXPERIENCES.c.prediction_id)
            .outerjoin(_REVISIONS, _REVISIONS.c.number == _EXPERIENCES.c.number)
            .where(_EXPERIENCES.c.number > after)
            .order_by(_EXPERIENCES.c.number)
            .limit(limit)
        )
        if up_to is not None:
            query = query.where(_EXPERIENCES.c.number <= up_to)
        if user_id is not None:
            query = query.where(_DECISIONS.c.user_id == user_id)
        with self._reading() as connection:
            return [
                _experience(row, _served(row), _judgement(row) if row.times is None else _judgement(row, "was_"))
                for row in connection.execute(query)
            ]

    def revisions(self, up_to: int, limit: int) -> Sequence[LabelRevision]:
        query = (
            select(*_EXPERIENCE_COLUMNS)
            .join(_DECISIONS, _DECISIONS.c.prediction_id == _EXPERIENCES.c.prediction_id)
            .join(_REVISIONS, _REVISIONS.c.number == _EXPERIENCES.c.number)
            .where(_REVISIONS.c.number <= up_to)
            .order_by(_REVISIONS.c.number)
            .limit(limit)
        )
        with self._reading() as connection:
            return [
                LabelRevision(_experience(row, _served(row), _judgement(row, "was_")), _judgement(row), row.times)
                for row in connection.execute(query)
            ]

    def features(self, prediction_ids: Sequence[str], trunk_digest: str) -> Mapping[str, Features]:
        same_trunk = _FEATURES.c.trunk_digest == trunk_digest
        with self._reading() as connection:
            return {
                row.prediction_id: _features(row)
                for ids in _chunks(prediction_ids)
                for row in connection.execute(
                    select(_FEATURES).where(same_trunk, _FEATURES.c.prediction_id.in_(ids)),
                )
            }

    def contents(self, prediction_ids: Sequence[str]) -> Mapping[str, Mapping[str, Content]]:
        return {decision.prediction_id: decision.content for decision in self._decisions(prediction_ids)}

    def dynamic_actions(self, prediction_ids: Sequence[str]) -> Mapping[str, Sequence[DynamicAction]]:
        return {decision.prediction_id: decision.dynamic_actions for decision in self._decisions(prediction_ids)}

    def close(self) -> None:
        self._engine.dispose()

    # --- how ---------------------------------------------------------------------------------------------------------

    def _decisions(self, prediction_ids: Sequence[str]) -> list[Decision]:
        with self._reading() as connection:
            return [
                _decision(row.payload)
                for ids in _chunks(prediction_ids)
                for row in connection.execute(
                    select(_DECISIONS.c.payload).where(_DECISIONS.c.prediction_id.in_(ids)),
                )
            ]

    def _prepare(self) -> None:
        """Make the tables, or see that they are ours."""
        with self._errors(), self._writing.begin() as connection:
            if self._shared:  # several learners may start at once, and CREATE TABLE IF NOT EXISTS is not enough then
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("plaudit"))))
            tables = set(inspect(connection).get_table_names())
            if "intake_stats" not in tables and tables & {"decisions", "experiences", "memory"}:
                raise WrongStore(self._place, 1, SCHEMA)
            _METADATA.create_all(connection)
            _add_columns(connection)
            first = {c.name: "" if isinstance(c.type, String) else 0 for c in _STANDING.columns}
            first |= {"id": 1, "schema": SCHEMA, "outcomes": "{}"}
            connection.execute(self._insert_or_update(_STANDING).values(first).on_conflict_do_nothing())
            found = connection.scalar(select(_STANDING.c.schema))
            if found != SCHEMA:
                raise WrongStore(self._place, int(found or 0), SCHEMA)

    def _check_lead(self, row: Row[Any]) -> None:
        if row.leader != self._me or row.epoch != self._epoch:
            self._epoch = 0 if self._shared else self._epoch
            raise StoreMoved

    def _judge(self, connection: Connection, last_number: int, judged: Sequence[LabelUpdate]) -> int:
        """Make and change experiences; returns the number of the last one there is."""
        fresh = [one for one in judged if one.before is None]
        rows = [
            _judgement_row(one.label)
            | {"number": number, "prediction_id": one.prediction_id, "probabilities": None, "excluded": False}
            for number, one in enumerate(fresh, last_number + 1)
        ]
        self._insert(connection, _EXPERIENCES, rows)
        changed = [(one.before, one.label) for one in judged if one.before is not None]
        if changed:
            insertion = self._insert_or_update(_REVISIONS)
            known = insertion.on_conflict_do_update(index_elements=["number"], set_={"times": _REVISIONS.c.times + 1})
            connection.execute(known, [_judgement_row(b.label) | {"number": b.number, "times": 1} for b, _ in changed])
            values: dict[str, Any] = {name: bindparam(f"now_{name}") for name in _JUDGEMENT}
            statement = update(_EXPERIENCES).where(_EXPERIENCES.c.number == bindparam("n")).values(values)
            rows = [
                {"n": before.number} | {f"now_{name}": value for name, value in _judgement_row(now).items()}
                for before, now in changed
            ]
            _update_each(connection, statement, rows)
        return last_number + len(fresh)

    def _resolve(self, connection: Connection, resolved: Sequence[LabelRevision]) -> None:
        """What has changed again since it was read stays, as a revision of what is learned now."""
        if not resolved:
            return
        this = _REVISIONS.c.number == bindparam("n")
        known = [{"n": r.experience.number, "t": r.times} for r in resolved]
        _update_each(connection, _REVISIONS.delete().where(this, _REVISIONS.c.times == bindparam("t")), known)
        values: dict[str, Any] = {name: bindparam(f"now_{name}") for name in _JUDGEMENT}
        rows = [
            {"n": r.experience.number} | {f"now_{name}": value for name, value in _judgement_row(r.label).items()}
            for r in resolved
        ]
        _update_each(connection, update(_REVISIONS).where(this).values(values), rows)

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
        statement: sqlite.Insert | postgresql.Insert | None = None,
    ) -> None:
        """Many rows at once; ``statement`` says what to do about those that are there."""
        if not rows:
            return
        statement = self._insert_or_update(table) if statement is None else statement
        if self._shared:
            found = _unnested({name: table.c[name].type for name in rows[0]}, rows)
            connection.execute(statement.from_select(list(rows[0]), select(*found.c)))
        else:
            _execute_many(connection, statement, rows)

    def _note(self, connection: Connection, probabilities: Mapping[int, tuple[float, ...]]) -> None:
        rows = [{"n": n, "noted": np.array(p, "<f8").tobytes()} for n, p in probabilities.items()]
        if self._shared and rows:
            found = _unnested({"n": BigInteger(), "noted": LargeBinary()}, rows)
            noting = update(_EXPERIENCES).where(_EXPERIENCES.c.number == found.c.n).values(probabilities=found.c.noted)
            connection.execute(noting)
        else:
            this = _EXPERIENCES.c.number == bindparam("n")
            if rows:
                noting = update(_EXPERIENCES).where(this).values(probabilities=bindparam("noted"))
                _execute_many(connection, noting, rows)

    @contextmanager
    def _locked(self) -> Iterator[tuple[Connection, Row[Any]]]:
        """A transaction that no other writer is in, and the standing as it is then, with the time as ``now_s``."""
        now_s = (
            cast(func.extract("epoch", func.clock_timestamp()), Double)
            if self._shared
            else bindparam("now", time.time())
        )
        query = select(_STANDING, now_s.label("now_s")).with_for_update()
        with self._errors(), self._writing.begin() as connection:
            yield connection, connection.execute(query).one()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @property
    def _place(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise StoreMoved from error
        except DBAPIError as error:
            raise StoreUnavailable(f"{self._place}: {str(error.orig).strip()}") from error
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"{self._place}: {error}") from error


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _parsed(url: str) -> URL:
    """The URL with the driver we use. The message never shows what was given: there may be a password in it."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            "store.url: is no database URL; it should look like postgresql://user:password@host:5432/plaudit"
        ) from error
    dialect = parsed.get_backend_name()
    if dialect == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if dialect != "sqlite":
        raise ConfigError(f"store.url: {dialect} is not supported; use sqlite or postgresql")
    return parsed


def _engine(url: URL) -> Engine:
    """The only place that knows what each database needs."""
    if url.get_backend_name() == "postgresql":
        patience_ms = _PATIENCE_S * 1000
        settings = f"-c lock_timeout={patience_ms} -c idle_in_transaction_session_timeout={patience_ms}"
        arguments = {
            "connect_timeout": _PATIENCE_S,
            "tcp_user_timeout": patience_ms,
            "keepalives_idle": _PATIENCE_S,
            "options": settings,
        }
        try:
            return create_engine(url, hide_parameters=True, connect_args=arguments)
        except ModuleNotFoundError as error:
            raise ConfigError(
                "store.url: PostgreSQL needs the extra postgres: pip install 'plaudit[postgres]'"
            ) from error
    engine = create_engine(url, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, see below
        connection.execute(f"PRAGMA busy_timeout = {round(_BUSY_TIMEOUT_S * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the last commits, and with them the positions: they are then learned again from the log.
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # One that will write must have the lock before it reads, as FOR UPDATE has it elsewhere.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _add_columns(connection: Connection) -> None:
    """Tables that were made before a column was: the rows that are there get its default."""
    for column in _ADDED:
        if column.name not in {found["name"] for found in inspect(connection).get_columns(column.table.name)}:
            what = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {what}")


def _unnested(types: Mapping[str, TypeEngine[Any]], rows: Sequence[Mapping[str, Any]]) -> TableValuedAlias:
    """The rows as a table that PostgreSQL makes of one array a column: several times as fast as row by row."""
    arrays = [
        bindparam(f"all_{name}", [row[name] for row in rows], type_=postgresql.ARRAY(type_))
        for name, type_ in types.items()
    ]
    return func.unnest(*arrays).table_valued(*types, name="given").render_derived()


def _update_each(connection: Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def _execute_many(connection: Connection, statement: Insert | Update, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows straight to SQLite's driver, whose types they have: SQLAlchemy would look at every value of each."""
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(rows[0]))
    assert compiled.positiontup is not None
    place = itemgetter(*compiled.positiontup)
    connection.exec_driver_sql(str(compiled), [place(row) for row in rows])


def _chunks(ids: Sequence[_T]) -> Iterable[Sequence[_T]]:
    """Databases limit how many parameters a query may have."""
    return (ids[start : start + _IDS_PER_QUERY] for start in range(0, len(ids), _IDS_PER_QUERY))


# --- rows ------------------------------------------------------------------------------------------------------------


def _decision_row(decision: Decision) -> dict[str, Any]:
    header = header_of(decision)
    return {
        "prediction_id": header.prediction_id,
        "time_s": header.time_s,
        "user_id": header.user_id,
        "version": header.version,
        "action": header.action,
        "propensity": header.propensity,
        "allowed_actions": _listed(header.allowed_actions),
        "greedy": header.greedy,
        "modalities": _listed(header.modalities),
        "payload": encode_event(replace(decision, features=None)),
        "user_group": header.user_group,
        "dynamic_actions": json.dumps(header.dynamic_actions) if header.dynamic_actions else _NONE,
    }


def _served(row: Row[Any]) -> DecisionHeader:
    return DecisionHeader(
        prediction_id=row.prediction_id,
        time_s=row.time_s,
        user_id=row.user_id,
        version=row.version,
        action=row.action,
        propensity=row.propensity,
        allowed_actions=_names(row.allowed_actions),
        greedy=row.greedy,
        modalities=_names(row.modalities),
        user_group=row.user_group,
        dynamic_actions=tuple(json.loads(row.dynamic_actions)) if row.dynamic_actions != _NONE else (),
    )


@lru_cache(maxsize=1024)
def _listed(names: tuple[str, ...]) -> str:
    return json.dumps(names)


@lru_cache(maxsize=1024)
def _names(listed: str) -> tuple[str, ...]:
    return tuple(json.loads(listed))


def _decision(payload: bytes) -> Decision:
    decision = decode_event(Topic.DECISIONS, payload)
    assert isinstance(decision, Decision)
    return decision


def _feedback_row(kept: StoredFeedback) -> dict[str, Any]:
    return {
        "feedback_id": kept.feedback.feedback_id,
        "prediction_id": kept.feedback.prediction_id,
        "time_s": kept.feedback.time_s,
        "state": kept.state.value,
        "reason": kept.reason,
        "payload": encode_event(kept.feedback),
    }


def _kept(row: Row[Any]) -> StoredFeedback:
    feedback = decode_event(Topic.FEEDBACK, row.payload)
    assert isinstance(feedback, Feedback)
    return StoredFeedback(feedback, FeedbackState(row.state), row.reason)


_EXPERIENCE_COLUMNS = [
    *_EXPERIENCES.columns,
    *(c for c in _SERVED_COLUMNS if c.name != "prediction_id"),
    *(_REVISIONS.c[name].label(f"was_{name}") for name in _JUDGEMENT),
    _REVISIONS.c.times,
]


def _judgement_row(label: Label | None) -> dict[str, Any]:
    if label is None:
        return dict.fromkeys(_JUDGEMENT)
    return {
        "rewards": json.dumps(label.rewards),
        "weight": label.weight,
        "correction": label.correction,
    }


def _judgement(row: Row[Any], prefix: str = "") -> Label | None:
    rewards, weight, correction = (getattr(row, prefix + name) for name in _JUDGEMENT)
    return None if rewards is None else Label(json.loads(rewards), weight, correction)


def _experience(row: Row[Any], decision: DecisionHeader, label: Label | None) -> Experience:
    probabilities = None
    if row.probabilities is not None:
        probabilities = tuple(np.frombuffer(row.probabilities, "<f8").tolist())
    return Experience(row.number, decision, label, probabilities, row.excluded)


def _summary_row(summary: ExperimentSummary) -> dict[str, Any]:
    return {
        "generation": summary.generation,
        "version": summary.version,
        "details": json.dumps(summary.details),
    }


def _standing(row: Row[Any]) -> IntakeStats:
    return IntakeStats(
        batches=row.batches,
        last_number=row.last_number,
        feedback=row.feedback,
        last_feedback_id=row.last_feedback_id,
        last_feedback_time_s=row.last_feedback_time_s,
        waiting=row.waiting,
        discarded=row.discarded,
        outcomes=json.loads(row.outcomes),
    )


def _features_row(prediction_id: str, features: Features) -> dict[str, Any]:
    return {
        "prediction_id": prediction_id,
        "trunk_digest": features.trunk_digest,
        "embedding": features.embedding.astype("<f4").tobytes(),
        "base_logits": features.base_logits.astype("<f4").tobytes(),
    }


def _features(row: Row[Any]) -> Features:
    return Features(
        trunk_digest=row.trunk_digest,
        embedding=np.frombuffer(row.embedding, "<f4"),
        base_logits=np.frombuffer(row.base_logits, "<f4"),
    )
