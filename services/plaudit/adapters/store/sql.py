"""ExperienceStore in a SQL database, through SQLAlchemy Core: SQLite for one learner, PostgreSQL for any number.

Every write first locks the one row of ``intake_stats``, so writes come one after another and numbers leave no gaps.
What must not have changed since it was read is compared under that lock: the positions of a batch's partitions, and for
the leader the epoch of its lead. Knows nothing about what is learned.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import String, func, select
from sqlalchemy.engine import URL

from plaudit.adapters.store.database import Database
from plaudit.adapters.store.engine import parsed_url
from plaudit.adapters.store.ingest import SqlIngest
from plaudit.adapters.store.leader import SqlLeader
from plaudit.adapters.store.readers import SqlReaders
from plaudit.adapters.store.schema import (
    COMMANDS,
    INTAKE_STATS,
    METADATA,
    MIGRATED,
    SCHEMA,
    STATE,
    STORE_ID_PART,
    found_schema,
    migrate,
)
from plaudit.core.errors import WrongStore
from plaudit.core.ports.store import RaterCommand
from plaudit_models.evaluation.raters import TrustLevel

LEASE_S: Final = 5.0
"""Time for which a leader that is not heard of stays the leader."""


class SqlStore(SqlIngest, SqlLeader, SqlReaders):
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
        database = Database(parsed_url(url))
        SqlLeader.__init__(self, database, lease_s)
        try:
            _prepare(database)
        except BaseException:
            self.close()
            raise

    def put_command(self, user_id: str, trust_level: TrustLevel) -> None:
        with self._database.locked() as (connection, _):
            connection.execute(COMMANDS.insert().values(user_id=user_id, trust_level=trust_level))

    def pending_commands(self) -> Sequence[RaterCommand]:
        with self._database.reading() as connection:
            rows = connection.execute(select(COMMANDS).order_by(COMMANDS.c.number))
            return [RaterCommand(row.number, row.user_id, row.trust_level) for row in rows]

    @property
    def exclusive(self) -> bool:
        return not self._database.shared

    def close(self) -> None:
        self._release_lock()
        self._database.close()


def _prepare(database: Database) -> None:
    """Make the tables, or check that those there are of this version."""
    with database.writing() as connection:
        if database.shared:  # several learners may start at once, and CREATE TABLE IF NOT EXISTS is not enough then
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("plaudit"))))
        found = found_schema(connection)
        if found not in (None, *MIGRATED, SCHEMA):
            raise WrongStore(database.place, found, SCHEMA)
        METADATA.create_all(connection)
        if found in MIGRATED:
            migrate(connection, found)
        first: dict[str, Any] = {c.name: "" if isinstance(c.type, String) else 0 for c in INTAKE_STATS.columns}
        first |= {"id": 1, "schema": SCHEMA, "outcomes": "{}"}
        connection.execute(database.insertion(INTAKE_STATS).values(first).on_conflict_do_nothing())
        drawn = {"part": STORE_ID_PART, "value": uuid.uuid4().hex.encode()}
        connection.execute(database.insertion(STATE).values(drawn).on_conflict_do_nothing())
