"""Errors at the shell: one sentence on stderr and an exit code. An unexpected exception stays a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from plaudit.client import ClientError
from plaudit.core.errors import ConfigError, PlauditError
from plaudit.core.printable import printable
from plaudit_models.bundle import CorruptBundle

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


class CommandFailed(Exception):
    """A command did not succeed; the message says why and what to do."""


class MissingExtra(Exception):
    """A command needs an extra that is not installed."""


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around the imports of a command, direct or not: turns a missing module into the extra to install.

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
def exit_codes() -> Iterator[None]:
    """Print errors meant for the user as one sentence and exit with their code; raises SystemExit."""
    try:
        yield
    except (ConfigError, MissingExtra) as error:
        _exit(error, USAGE)
    except ClientError as error:
        _exit(error.message, FAILED)
    except (CommandFailed, PlauditError, CorruptBundle) as error:
        _exit(error, FAILED)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)


def _exit(problem: object, code: int) -> None:
    print(f"plaudit: {printable(str(problem))}", file=sys.stderr)
    sys.exit(code)
