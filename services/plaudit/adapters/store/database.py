"""Database of the experience store: transactions, errors, and statements about many rows as each dialect is best at.

Knows nothing about what the tables mean, but that every write first locks the one row of ``intake_stats``.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Insert,
    Row,
    Table,
    Update,
    any_,
    bindparam,
    cast,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.sql.selectable import TableValuedAlias

from plaudit.adapters import sqlite_errors
from plaudit.adapters.store.engine import create_store_engine, sqlite_file
from plaudit.adapters.store.rows import Values
from plaudit.adapters.store.schema import INTAKE_STATS
from plaudit.core.errors import StoreDamaged, StoreMoved, StoreUnavailable, UnstorableValue

_MOVE_AWAY: Final = "move it away, and the learner makes another one from the log"
_MAX_PROBLEM_CHARACTERS: Final = 500
_UNIQUE_VIOLATION: Final = "23505"
_OF_VALUES: Final = ("22", "54")
"""PostgreSQL's classes of errors that are about a value: data exceptions, and what is too long for an index."""

DialectInsert = sqlite_dialect.Insert | postgresql.Insert


class Database:
    """One database.

    Args:
        url: with the driver that is used, as of :func:`plaudit.adapters.store.engine.parsed_url`.

    Attributes:
        shared: whether several processes may write: PostgreSQL.
        file: of a SQLite database; None elsewhere.

    Raises:
        ConfigError: a driver is missing.
        StoreUnavailable: the database cannot be opened.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self.file = sqlite_file(url)
        with self.errors():
            self._engine = create_store_engine(url)
            self._writing = self._engine.execution_options(writes=True)
        self.shared = self._engine.dialect.name == "postgresql"
        self.insertion: Callable[[Table], DialectInsert]
        self.insertion = postgresql.insert if self.shared else sqlite_dialect.insert

    def close(self) -> None:
        self._engine.dispose()

    # --- transactions ------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write."""
        with self.errors(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def locked(self) -> Iterator[tuple[Connection, Row[Any]]]:
        """A transaction without other writers, and the row of ``intake_stats`` in it, with the time as ``now_s``."""
        now_s = (
            cast(func.extract("epoch", func.clock_timestamp()), Double)
            if self.shared
            else bindparam("now", time.time())
        )
        query = select(INTAKE_STATS, now_s.label("now_s")).with_for_update()
        with self.writing() as connection:
            yield connection, connection.execute(query).one()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self.errors(), self._engine.connect() as connection:
            yield connection

    # --- many rows ---------------------------------------------------------------------------------------------------

    def insert(self, connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Values]) -> None:
        """Insert rows of these columns, which are in the order of the table's."""
        self._write(connection, self.insertion(table), columns, rows)

    def upsert(self, connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Values]) -> None:
        """Insert rows of these columns, all of the table's in its order; a row that is there takes the new values."""
        statement = self.insertion(table)
        keys = [c.name for c in table.primary_key]
        fresh = {name: statement.excluded[name] for name in columns if name not in keys}
        self._write(connection, statement.on_conflict_do_update(index_elements=keys, set_=fresh), columns, rows)

    def set_values(self, connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Values]) -> None:
        """Set these columns, which are in the order of the table's, by number, which comes last in each row."""
        if not rows:
            return
        if self.shared:
            given = _unnested(table, (*columns, "number"), rows)
            of_row = table.c.number == given.c.number
            connection.execute(update(table).where(of_row).values({name: given.c[name] for name in columns}))
        else:
            of_row = table.c.number == bindparam("of_number")
            statement = update(table).where(of_row).values({name: bindparam(f"new_{name}") for name in columns})
            _execute_many(connection, statement, [*(f"new_{name}" for name in columns), "of_number"], rows)

    def among(self, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        """Condition that the column, of texts or numbers, has one of the values, of which there may be any number."""
        if self.shared:
            return column == any_(bindparam(None, list(values), type_=postgresql.ARRAY(column.type)))
        listed = func.json_each(bindparam(None, json.dumps(list(values)))).table_valued("value")
        return column.in_(select(listed.c.value))

    def _write(
        self, connection: Connection, statement: DialectInsert, columns: Sequence[str], rows: Sequence[Values]
    ) -> None:
        if not rows:
            return
        if self.shared:
            table = statement.table
            assert isinstance(table, Table)
            found = _unnested(table, columns, rows)
            connection.execute(statement.from_select(list(columns), select(*found.c)))
        else:
            _execute_many(connection, statement, columns, rows)

    # --- errors ------------------------------------------------------------------------------------------------------

    @cached_property
    def place(self) -> str:
        """The file, or the URL without its password."""
        return self._url.render_as_string(hide_password=True) if self.file is None else str(self.file)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of the driver as those of the port."""
        try:
            yield
        except IntegrityError as error:
            if _is_conflict(error):
                raise StoreMoved from error
            raise UnstorableValue(f"{self.place}: {str(error.orig).strip()[:_MAX_PROBLEM_CHARACTERS]}") from error
        except DataError as error:
            raise UnstorableValue(f"{self.place}: {str(error.orig).strip()[:_MAX_PROBLEM_CHARACTERS]}") from error
        except DBAPIError as error:
            if (getattr(error.orig, "sqlstate", None) or "")[:2] in _OF_VALUES:
                raise UnstorableValue(f"{self.place}: {str(error.orig).strip()[:_MAX_PROBLEM_CHARACTERS]}") from error
            cause = error.orig or error
            damage = StoreDamaged if sqlite_errors.is_damaged(cause) else StoreUnavailable
            raise damage(sqlite_errors.explain(self.place, cause, _MOVE_AWAY)) from error
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"{self.place}: {error}") from error


def _is_conflict(error: IntegrityError) -> bool:
    """Whether a row is there already, which another learner wrote."""
    if isinstance(error.orig, sqlite3.Error):
        return error.orig.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    return getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION


def _unnested(table: Table, columns: Sequence[str], rows: Sequence[Values]) -> TableValuedAlias:
    """The rows as a table that PostgreSQL makes of one array a column: several times as fast as row by row."""
    arrays = [
        bindparam(f"all_{name}", list(values), type_=postgresql.ARRAY(table.c[name].type))
        for name, values in zip(columns, zip(*rows, strict=True), strict=True)
    ]
    return func.unnest(*arrays).table_valued(*columns, name="given").render_derived()


def _execute_many(
    connection: Connection, statement: Insert | Update, names: Sequence[str], rows: Sequence[Values]
) -> None:
    """The rows straight to SQLite's driver, whose types they have: SQLAlchemy would look at every value of each."""
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(names))
    assert compiled.positiontup == list(names)
    connection.exec_driver_sql(str(compiled), list(rows))
