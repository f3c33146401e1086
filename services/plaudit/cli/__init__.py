"""The ``plaudit`` command: from the shell to the rest, with errors of one sentence and meaningful exit codes.

Exit codes: 0 success, 1 it failed, 2 the command line or a setting is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys

_NEEDED = frozenset({"pydantic", "pydantic_settings", "rich", "typer"})


def main() -> None:
    """The entry point of the distribution and of ``python -m plaudit``."""
    try:
        from plaudit.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        print(
            f"plaudit: {error.name} is missing; the shell commands need the extra cli: pip install 'plaudit[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    run()
