"""The learner's status file: what a terminal view or a person wants to see at a glance, replaced atomically.

Not a record: nothing reads it back, and it may be deleted at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from plaudit.core.job_run import write_json

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
            write_json(self.path, report())
