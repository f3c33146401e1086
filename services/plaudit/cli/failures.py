"""What an exception means at the shell: one sentence on stderr and an exit code. The unexpected stays a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from plaudit.client import ClientError
from plaudit.core.errors import ConfigError, PlauditError
from plaudit_models.bundle import CorruptBundle

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


class Failed(Exception):
    """A command did not succeed; the message says why and what to do."""


class MissingExtra(Exception):
    """A command needs an extra that is not installed."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around what a command imports, wherever it does: turns a missing module into the extra to install.

    Raises:
        MissingExtra: a third-party module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("plaudit", "plaudit_models"):
            raise
        raise MissingExtra(
            f"{error.name} is missing; this command needs the extra {name}: pip install 'plaudit[{name}]'"
        ) from error


@contextmanager
def as_exit_codes() -> Iterator[None]:
    """Raises SystemExit in place of every error that is meant for the user."""
    try:
        yield
    except (ConfigError, MissingExtra) as error:
        _leave(error, USAGE)
    except ClientError as error:
        _leave(error.message, FAILED)
    except (Failed, PlauditError, CorruptBundle) as error:
        _leave(error, FAILED)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)


def _leave(problem: object, code: int) -> None:
    print(f"plaudit: {problem}", file=sys.stderr)
    sys.exit(code)
