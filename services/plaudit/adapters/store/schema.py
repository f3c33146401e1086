"""Tables of the experience store, and whether those of a database are of this version."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    select,
    text,
    update,
)

SCHEMA: Final = 6
"""Version of the tables below. An older one than 4 is refused: everything in them can be had again from the log."""

MIGRATED: Final = (4, 5)
"""Schemas of stores that are brought up to date when they are opened."""
STORE_ID_PART: Final = "store_id"
"""Part of the state that no learner writes: drawn when the store is made, or first opened by this release."""

METADATA = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")


def _label() -> list[Column[Any]]:
    """Columns of a label. ``rewards``: JSON, action → reward; NULL once all was retracted. ``raters``: JSON, a row per
    rater with its part of the label, or only the id of a single one; NULL: all of it is the asker's."""
    return [Column("rewards", Text), Column("weight", Double), Column("correction", String), Column("raters", Text)]


INTAKE_STATS = Table(
    "intake_stats",
    METADATA,
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
    Column("log_time_s", Double, nullable=False, server_default="0"),
    Column("log_gap_to_s", Double, nullable=False, server_default="0"),
)
"""One row: counts (:class:`plaudit.core.ports.store.IntakeStats`), and the leader. ``epoch`` grows whenever the leader
changes. ``outcomes``: JSON."""

POSITIONS = Table(
    "positions", METADATA, Column("partition", String, primary_key=True), Column("cursor", Text, nullable=False)
)
DECISIONS = Table(
    "decisions",
    METADATA,
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
    Column("user_group", String, nullable=False),
    Column("dynamic_actions", Text, nullable=False),
)
"""``payload``: the DecisionEvent without its features. The other columns repeat what is needed without the content;
``dynamic_actions``: their ids."""

FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("feedback_id", String, primary_key=True),
    Column("prediction_id", String, nullable=False, index=True),
    Column("time_s", Double, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("batch", _Number, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("feedback_by_state", "state", "time_s"),
)
DEAD_FEEDBACK = Table(
    "dead_feedback",
    METADATA,
    Column("feedback_id", String, primary_key=True),
    Column("time_s", Double, nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("batch", _Number, nullable=False),
)
"""Feedback whose records became dead letters."""

EXPERIENCES = Table(
    "experiences",
    METADATA,
    Column("number", _Number, primary_key=True, autoincrement=False),
    Column("prediction_id", String, nullable=False, unique=True),
    *_label(),
    Column("probabilities", LargeBinary),
    Column("excluded", Boolean, nullable=False),
    Column("slice", String, nullable=False),
    Column("outdated", Boolean, nullable=False),
    Column("refused", Text, nullable=False),
    Index("experiences_by_slice", "slice", "number"),
)
"""``probabilities``: little-endian float64. ``refused``: JSON, ids of raters."""
NOBODY: Final = "[]"
"""``refused`` where nobody is."""

REVISIONS = Table(
    "label_revisions",
    METADATA,
    Column("number", _Number, primary_key=True, autoincrement=False),
    *_label(),
    Column("times", Integer, nullable=False),
)
"""The label of an experience as the leader last knew it, where it has changed since."""

FEATURES = Table(
    "features",
    METADATA,
    Column("prediction_id", String, primary_key=True),
    Column("trunk_digest", String, primary_key=True),
    Column("embedding", LargeBinary, nullable=False),
    Column("base_logits", LargeBinary, nullable=False),
)
"""Little-endian float32."""

STATE = Table(
    "learner_state", METADATA, Column("part", String, primary_key=True), Column("value", LargeBinary, nullable=False)
)
"""The learner's state by part, in the encoding of learner/state.py."""

COMMANDS = Table(
    "rater_commands",
    METADATA,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("user_id", String, nullable=False),
    Column("trust_level", String, nullable=False),
    sqlite_autoincrement=True,
)
"""Commands of operators that are not applied yet."""

EXPERIMENTS = Table(
    "experiment_summaries",
    METADATA,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False, index=True),
    Column("details", Text, nullable=False),
)
"""``details``: JSON."""

LABEL_COLUMNS: Final = ("rewards", "weight", "correction", "raters")
HEADER_COLUMNS: Final = [
    DECISIONS.c[name]
    for name in (
        *("prediction_id", "time_s", "user_id", "version", "action", "propensity", "allowed_actions"),
        *("greedy", "modalities", "user_group", "dynamic_actions"),
    )
]
EXPERIENCE_VALUES: Final = [
    EXPERIENCES.c[name]
    for name in ("number", "probabilities", "excluded", "slice", "outdated", "refused", *LABEL_COLUMNS)
]
EXPERIENCE_COLUMNS: Final = [
    *EXPERIENCE_VALUES,
    *HEADER_COLUMNS,
    *(REVISIONS.c[name].label(f"was_{name}") for name in LABEL_COLUMNS),
    REVISIONS.c.times,
]
"""An experience with its decision and its revision, if it has one."""


def migrate(connection: Connection, found: int) -> None:
    """Tables of schema 4 or 5 → 6. Experiences that are learned by then belong to no slice (4), and all that was said
    of them is the asker's."""
    added: list[tuple[Column[Any], str | None]] = [
        (EXPERIENCES.c.refused, NOBODY),
        (EXPERIENCES.c.raters, None),
        (REVISIONS.c.raters, None),
    ]
    if found < 5:
        added += [
            (INTAKE_STATS.c.log_time_s, "0"),
            (INTAKE_STATS.c.log_gap_to_s, "0"),
            (EXPERIENCES.c.slice, ""),
            (EXPERIENCES.c.outdated, "0"),
        ]
    for column, default in added:
        kind = column.type.compile(connection.dialect)
        definition = f"{column.name} {kind}" + ("" if default is None else f" NOT NULL DEFAULT '{default}'")
        connection.execute(text(f"ALTER TABLE {column.table.name} ADD COLUMN {definition}"))
    for index in EXPERIENCES.indexes:
        index.create(connection, checkfirst=True)
    connection.execute(update(INTAKE_STATS).values(schema=SCHEMA))


def found_schema(connection: Connection) -> int | None:
    """Version of the tables that are there; None if there are none."""
    tables = set(inspect(connection).get_table_names())
    if INTAKE_STATS.name in tables:
        return connection.scalar(select(INTAKE_STATS.c.schema))
    if "standing" in tables:  # of schema 3
        return 3
    return 1 if tables & {"decisions", "experiences", "memory"} else None
