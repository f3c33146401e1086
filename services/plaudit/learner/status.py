"""The learner's status file: what a terminal view or a person wants to see at a glance, replaced atomically.

Not a record: no learner depends on it, and it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from plaudit.core.job_run import read_json, write_json

STATUS: Final = "learner-status.json"

_INTERVAL_S: Final = 0.5


@dataclass(eq=False)
class StatusFile:
    path: Path
    _written_s: float = field(default=-_INTERVAL_S, init=False)

    def write(self, report: Callable[[], Mapping[str, Any]]) -> None:
        """Write what ``report`` says, unless that was done a moment ago."""
        now_s = time.monotonic()
        if now_s - self._written_s >= _INTERVAL_S:
            self._written_s = now_s
            self._replace(report())

    def write_problem(self, problem: str, now_s: float, again_in_s: float | None) -> None:
        """Add to the last report what the learner cannot go on without; the next report takes it away.

        Args:
            now_s: UTC seconds since the epoch.
            again_in_s: time until the next attempt; None: the learner has ended over it.
        """
        last = read_status(self.path) or {}
        since_s = last.get("problem", {}).get("since_s", now_s)
        found = {"text": problem, "since_s": since_s, "time_s": now_s, "again_in_s": again_in_s}
        self._written_s = -_INTERVAL_S
        self._replace(last | {"problem": found})

    def _replace(self, report: Mapping[str, Any]) -> None:
        """Write the file, if that is possible: a full disk has the learner wait for what it must save, not for this."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, report)


def read_status(path: Path) -> dict[str, Any] | None:
    """The latest report; None if there is none, or no readable one."""
    try:
        status = read_json(path)
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None
