"""ExperienceStore in a SQL database, through SQLAlchemy Core: SQLite by default, anything with an upsert otherwise.

One writer, held to by compare-and-set on the number of saves; any number of readers. Payloads are the log's own
(wire.py), so there is one durable schema. Knows nothing about what is learned.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from plaudit.core.errors import StoreMoved, StoreUnavailable
from plaudit.core.events import Content, Decision, Features, Feedback, Topic
from plaudit.core.experience import Experience, FeedbackState, Judgement, Served, served
from plaudit.core.ports import Changes, Cursor, History, Kept
from plaudit.core.wire import decode_event, encode_event

_IDS_PER_QUERY: Final = 500
_BUSY_TIMEOUT_S: Final = 30.0
_CURSOR: Final = "cursor"
_SAVES: Final = "saves"

_METADATA = MetaData()

_DECISIONS = Table(
    "decisions",
    _METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),
    Column("prediction_id", String, nullable=False, unique=True),
    Column("time_s", Double, nullable=False),
    Column("user_id", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("action", String, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("allowed_actions", Text, nullable=False),
    Column("greedy", Boolean, nullable=False),
    Column("modalities", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
"""``payload``: the DecisionEvent without its features. The other columns repeat what is needed without the content."""

_FEEDBACK = Table(
    "feedback",
    _METADATA,
    Column("feedback_id", String, primary_key=True),
    Column("prediction_id", String, nullable=False, index=True),
    Column("time_s", Double, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("feedback_by_state", "state", "time_s"),
)
_EXPERIENCES = Table(
    "experiences",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("prediction_id", String, nullable=False, unique=True),
    Column("rewards", Text),
    Column("weight", Double),
    Column("correction", String),
    Column("probabilities", LargeBinary),
    Column("set_aside", Boolean, nullable=False),
)
"""``rewards``: JSON, action → reward; NULL once all was taken back. ``probabilities``: little-endian float64."""

_FEATURES = Table(
    "features",
    _METADATA,
    Column("prediction_id", String, primary_key=True),
    Column("trunk_digest", String, primary_key=True),
    Column("embedding", LargeBinary, nullable=False),
    Column("base_logits", LargeBinary, nullable=False),
)
"""Little-endian float32."""

_MEMORY = Table(
    "memory", _METADATA, Column("key", String, primary_key=True), Column("value", LargeBinary, nullable=False)
)
"""The log cursor, and what the learner remembers between steps: reward states, counters, comparison, jobs."""

_SERVED_COLUMNS = [c for c in _DECISIONS.columns if c.name not in ("place", "payload")]


class SqlStore:
    """See :class:`plaudit.core.ports.ExperienceStore`.

    Args:
        url: a SQLAlchemy database URL; :func:`sqlite_url` makes one for a file. Tables are made if they are not there.

    Raises:
        StoreUnavailable: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        with _store_errors():
            self._engine = _engine(url)
            _METADATA.create_all(self._engine)
        inserts: dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]]
        inserts = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        self._insert_or_update = inserts[self._engine.dialect.name]
        with _store_errors(), self._engine.begin() as connection:
            first = self._insert_or_update(_MEMORY).values(key=_SAVES, value=b"0")
            connection.execute(first.on_conflict_do_nothing())
        self._saves = 0

    def cursor(self) -> Cursor:
        saves = self.recall(_SAVES)
        saved = self.recall(_CURSOR)
        self._saves = int(saves or b"0")
        return "" if saved is None else saved.decode()

    def recall(self, key: str) -> bytes | None:
        with self._reading() as connection:
            value: bytes | None = connection.scalar(select(_MEMORY.c.value).where(_MEMORY.c.key == key))
        return value

    def save(self, changes: Changes) -> None:
        with _store_errors(), self._engine.begin() as connection:
            self._count_save(connection)
            _insert(connection, _DECISIONS, [_decision_row(d) for d in changes.decisions])
            features = {d.prediction_id: d.features for d in changes.decisions if d.features is not None}
            self._upsert(connection, _FEATURES, [_features_row(*item) for item in features.items()])
            self._upsert(connection, _FEATURES, [_features_row(*item) for item in changes.features.items()])
            self._upsert(connection, _FEEDBACK, [_feedback_row(kept) for kept in changes.feedback])
            self._upsert(connection, _EXPERIENCES, [_experience_row(e) for e in changes.experiences])
            if changes.set_aside_after is not None:
                beyond = _EXPERIENCES.c.number > changes.set_aside_after
                connection.execute(update(_EXPERIENCES).where(beyond).values(set_aside=True))
            kept = {key: value for key, value in changes.memory.items() if value is not None}
            if changes.cursor is not None:
                kept[_CURSOR] = changes.cursor.encode()
            self._upsert(connection, _MEMORY, [{"key": key, "value": value} for key, value in kept.items()])
            forgotten = [key for key, value in changes.memory.items() if value is None]
            connection.execute(_MEMORY.delete().where(_MEMORY.c.key.in_(forgotten)))
        self._saves += 1

    def histories(self, prediction_ids: Sequence[str]) -> Mapping[str, History]:
        decisions: dict[str, Served] = {}
        feedback: dict[str, list[Kept]] = defaultdict(list)
        experiences: dict[str, Experience] = {}
        with self._reading() as connection:
            for ids in _chunks(prediction_ids):
                for row in connection.execute(select(*_SERVED_COLUMNS).where(_DECISIONS.c.prediction_id.in_(ids))):
                    decisions[row.prediction_id] = _served(row)
                for row in connection.execute(select(_FEEDBACK).where(_FEEDBACK.c.prediction_id.in_(ids))):
                    feedback[row.prediction_id].append(_kept(row))
                for row in connection.execute(select(_EXPERIENCES).where(_EXPERIENCES.c.prediction_id.in_(ids))):
                    experiences[row.prediction_id] = _experience(row, decisions[row.prediction_id])
        return {id_: History(decisions.get(id_), feedback.get(id_, []), experiences.get(id_)) for id_ in prediction_ids}

    def feedback(self, feedback_ids: Sequence[str]) -> Mapping[str, Kept]:
        with self._reading() as connection:
            return {
                row.feedback_id: _kept(row)
                for ids in _chunks(feedback_ids)
                for row in connection.execute(select(_FEEDBACK).where(_FEEDBACK.c.feedback_id.in_(ids)))
            }

    def orphans(self, limit: int) -> Sequence[Feedback]:
        waiting = _FEEDBACK.c.state == FeedbackState.WAITING
        query = select(_FEEDBACK).where(waiting).order_by(_FEEDBACK.c.time_s).limit(limit)
        with self._reading() as connection:
            return [_kept(row).feedback for row in connection.execute(query)]

    def silent(self, after: int, before_s: float, limit: int) -> Sequence[tuple[int, Served]]:
        query = (
            select(_DECISIONS.c.place, *_SERVED_COLUMNS)
            .where(_DECISIONS.c.place > after)
            .order_by(_DECISIONS.c.place)
            .limit(limit)
        )
        found: list[tuple[int, Served]] = []
        with self._reading() as connection:
            for row in connection.execute(query):
                if row.time_s >= before_s:
                    break
                found.append((row.place, _served(row)))
        return found

    def experiences(
        self, *, after: int = 0, up_to: int | None = None, limit: int | None = None
    ) -> Sequence[Experience]:
        query = (
            select(*_EXPERIENCES.columns, *(c for c in _SERVED_COLUMNS if c.name != "prediction_id"))
            .join(_DECISIONS, _DECISIONS.c.prediction_id == _EXPERIENCES.c.prediction_id)
            .where(_EXPERIENCES.c.number > after)
            .order_by(_EXPERIENCES.c.number)
            .limit(limit)
        )
        if up_to is not None:
            query = query.where(_EXPERIENCES.c.number <= up_to)
        with self._reading() as connection:
            return [_experience(row, _served(row)) for row in connection.execute(query)]

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
        columns = (_DECISIONS.c.prediction_id, _DECISIONS.c.payload)
        with self._reading() as connection:
            return {
                row.prediction_id: _decision(row.payload).content
                for ids in _chunks(prediction_ids)
                for row in connection.execute(select(*columns).where(_DECISIONS.c.prediction_id.in_(ids)))
            }

    def close(self) -> None:
        self._engine.dispose()

    def _count_save(self, connection: Connection) -> None:
        """Comes first: it takes the write lock, and whoever finds another's save there has changed nothing yet."""
        mine = (_MEMORY.c.key == _SAVES) & (_MEMORY.c.value == str(self._saves).encode())
        counted = update(_MEMORY).where(mine).values(value=str(self._saves + 1).encode())
        if connection.execute(counted).rowcount != 1:
            raise StoreMoved

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        statement = self._insert_or_update(table)
        keys = [c.name for c in table.primary_key]
        fresh = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=fresh), rows)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _store_errors(), self._engine.connect() as connection:
            yield connection


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _engine(url: str) -> Engine:
    """The only place that knows what SQLite needs."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # we begin transactions ourselves, see below
            connection.execute(f"PRAGMA busy_timeout = {round(_BUSY_TIMEOUT_S * 1000)}")
            connection.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last commits, and with them the cursor: they are then learned again from the log.
            connection.execute("PRAGMA synchronous = NORMAL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    return engine


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreUnavailable(str(error)) from error


def _insert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(insert(table), rows)


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """Databases limit how many parameters a query may have."""
    return (ids[start : start + _IDS_PER_QUERY] for start in range(0, len(ids), _IDS_PER_QUERY))


# --- rows ------------------------------------------------------------------------------------------------------------


def _decision_row(decision: Decision) -> dict[str, Any]:
    header = served(decision)
    return {
        "prediction_id": header.prediction_id,
        "time_s": header.time_s,
        "user_id": header.user_id,
        "version": header.version,
        "action": header.action,
        "propensity": header.propensity,
        "allowed_actions": json.dumps(header.allowed_actions),
        "greedy": header.greedy,
        "modalities": json.dumps(header.modalities),
        "payload": encode_event(replace(decision, features=None)),
    }


def _served(row: Row[Any]) -> Served:
    return Served(
        prediction_id=row.prediction_id,
        time_s=row.time_s,
        user_id=row.user_id,
        version=row.version,
        action=row.action,
        propensity=row.propensity,
        allowed_actions=tuple(json.loads(row.allowed_actions)),
        greedy=row.greedy,
        modalities=tuple(json.loads(row.modalities)),
    )


def _decision(payload: bytes) -> Decision:
    decision = decode_event(Topic.DECISIONS, payload)
    assert isinstance(decision, Decision)
    return decision


def _feedback_row(kept: Kept) -> dict[str, Any]:
    return {
        "feedback_id": kept.feedback.feedback_id,
        "prediction_id": kept.feedback.prediction_id,
        "time_s": kept.feedback.time_s,
        "state": kept.state.value,
        "reason": kept.reason,
        "payload": encode_event(kept.feedback),
    }


def _kept(row: Row[Any]) -> Kept:
    feedback = decode_event(Topic.FEEDBACK, row.payload)
    assert isinstance(feedback, Feedback)
    return Kept(feedback, FeedbackState(row.state), row.reason)


def _experience_row(experience: Experience) -> dict[str, Any]:
    judgement, probabilities = experience.judgement, experience.probabilities
    return {
        "number": experience.number,
        "prediction_id": experience.served.prediction_id,
        "rewards": None if judgement is None else json.dumps(judgement.rewards),
        "weight": None if judgement is None else judgement.weight,
        "correction": None if judgement is None else judgement.correction,
        "probabilities": None if probabilities is None else np.array(probabilities, "<f8").tobytes(),
        "set_aside": experience.set_aside,
    }


def _experience(row: Row[Any], decision: Served) -> Experience:
    judgement = None
    if row.rewards is not None:
        judgement = Judgement(json.loads(row.rewards), row.weight, row.correction)
    probabilities = None
    if row.probabilities is not None:
        probabilities = tuple(np.frombuffer(row.probabilities, "<f8").tolist())
    return Experience(row.number, decision, judgement, probabilities, row.set_aside)


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
