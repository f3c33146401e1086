"""Databases that the experience store can be in: URLs and connections. Only this module knows what each one needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from plaudit.adapters.wal import use_wal
from plaudit.core.errors import ConfigError

_BUSY_TIMEOUT_S: Final = 30.0
_CACHE_KIB: Final = 64 * 1024
_CHECKPOINT_PAGES: Final = 8_000
"""Pages after which SQLite moves the write-ahead log into the file: a page that is written often is moved once."""
_SERVER_TIMEOUT_S: Final = 10
"""Longest time that PostgreSQL may take to answer a connection or to give the lock, or waits for an idle client that
holds it."""


def sqlite_url(path: Path) -> URL:
    """URL of a file, whatever characters its path has: ``%``, ``?`` and ``#`` mean something in a URL that is text."""
    return URL.create("sqlite", database=str(path))


def sqlite_file(url: URL) -> Path | None:
    """File of a SQLite database; None: it is in memory, or no SQLite database."""
    database = url.database or ":memory:"
    if url.get_backend_name() != "sqlite" or database == ":memory:" or database.startswith("file:"):
        return None
    return Path(database)


def parsed_url(url: str | URL) -> URL:
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


def create_store_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        timeout_ms = _SERVER_TIMEOUT_S * 1000
        settings = f"-c lock_timeout={timeout_ms} -c idle_in_transaction_session_timeout={timeout_ms}"
        arguments = {
            "connect_timeout": _SERVER_TIMEOUT_S,
            "tcp_user_timeout": timeout_ms,
            "keepalives_idle": _SERVER_TIMEOUT_S,
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
        use_wal(connection, _BUSY_TIMEOUT_S)
        # A power cut may lose the last commits, and with them the positions: they are then learned again from the log.
        connection.execute("PRAGMA synchronous = NORMAL")
        # Ids are random: without the inner pages of their indexes in memory, every row costs reads of the file.
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # One that will write must have the lock before it reads, as FOR UPDATE has it elsewhere.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine
