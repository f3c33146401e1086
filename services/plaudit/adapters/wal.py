"""Write-ahead logging of SQLite files, switched on by whichever connection is first while the others wait.

SQLite answers some conflicts about the journal mode at once, whatever the busy timeout says.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Final

_PAUSE_S: Final = 0.01


def use_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Raises sqlite3.OperationalError: another connection has kept the file locked for all of ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return
