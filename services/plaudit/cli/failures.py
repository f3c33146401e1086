"""Errors at the shell: one sentence on stderr and an exit code. An unexpected exception stays a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from plaudit.client import ClientError
from plaudit.core.errors import ConfigError, LogDamaged, LogUnavailable, PlauditError, StoreDamaged, Unavailable
from plaudit.core.host.os_errors import explain, is_explained
from plaudit.core.text.printable import printable
from plaudit_models.bundle import CorruptBundle

FAILED: Final = 1
USAGE: Final = 2
UNFIT: Final = 78
"""A service ended over something that starting it again will not mend; EX_CONFIG of sysexits.h."""
INTERRUPTED: Final = 130
OUTPUT_GONE: Final = 141
"""Nobody reads the output any more; as of a process that SIGPIPE ends."""


_STDOUT: Final = 1


class CommandFailed(Exception):
    """A command did not succeed; the message says why and what to do."""


class Unfit(CommandFailed):
    """A service cannot run on what it finds, and starting it again will not help."""


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
def lasting_problems() -> Iterator[None]:
    """Around a service: tells apart what may pass, which keeps its class, and what will not.

    Raises:
        Unfit: a file is damaged, or of another release.
    """
    try:
        yield
    except (LogDamaged, StoreDamaged) as error:
        raise Unfit(problem_text(error)) from error
    except (ConfigError, Unavailable):
        raise
    except (PlauditError, CorruptBundle) as error:
        raise Unfit(str(error)) from error
    except MemoryError as error:
        raise Unfit(f"memory does not suffice ({error}); `plaudit doctor` says what the learner needs") from error


@contextmanager
def exit_codes() -> Iterator[None]:
    """Print errors meant for the user as one sentence and exit with their code; raises SystemExit."""
    try:
        yield
    except (ConfigError, MissingExtra) as error:
        _exit(error, USAGE)
    except ClientError as error:
        _exit(error.message, FAILED)
    except Unfit as error:
        _exit(error, UNFIT)
    except (CommandFailed, PlauditError, CorruptBundle) as error:
        _exit(problem_text(error), FAILED)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)
    except BrokenPipeError:
        drop_output()
        sys.exit(OUTPUT_GONE)
    except OSError as error:
        if not is_explained(error):
            raise
        _exit(explain(error), FAILED)


def problem_text(error: Exception) -> str:
    """The message for an operator: without what is meant for clients, who may send an event again."""
    if isinstance(error, OSError):
        return explain(error)
    return error.problem if isinstance(error, LogUnavailable) else str(error)


def drop_output() -> None:
    """Have everything that is still printed go nowhere: nobody reads it."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDOUT)
        os.close(nowhere)


def _exit(problem: object, code: int) -> None:
    with suppress(OSError):
        print(f"plaudit: {printable(str(problem))}", file=sys.stderr)
    sys.exit(code)
