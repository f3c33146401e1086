"""`plaudit serve` whose metrics can be switched off and on while it serves; prints ``{"address": …}`` when it answers.

python -m benchmarks.rollout.served CONFIG

For each line "on" or "off" on standard input it prints the processor time that the process has used so far, ns, and
from then on counts, or counts nothing. What is switched are methods of classes: objects that hold a metric are
unaffected.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram

from plaudit.cli.processes import services
from plaudit.compose.settings import load_settings
from plaudit.serving.telemetry.buffered_histogram import BufferedSeries
from plaudit.serving.telemetry.version_metrics import VersionMetrics

_NOTHING: Final = contextlib.nullcontext()


class _Mute:
    """Stand-in for a metric whose methods do nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


_MUTE: Final = _Mute()


def _nothing(self: Any, *arguments: Any, **named: Any) -> None:
    pass


def _no_time(self: Any) -> Any:
    return _NOTHING


def _mute(self: Any, *arguments: Any) -> Any:
    return _MUTE


_MUTED: Final[tuple[tuple[type, str, Callable[..., Any]], ...]] = (
    (Counter, "inc", _nothing),
    (Gauge, "inc", _nothing),
    (Gauge, "set", _nothing),
    (Histogram, "observe", _nothing),
    (Histogram, "time", _no_time),
    (BufferedSeries, "observe", _nothing),
    (VersionMetrics, "of", _mute),
    (VersionMetrics, "feedback", _mute),
)
_LOUD: Final = tuple(getattr(cls, name) for cls, name, _ in _MUTED)


def switch(on: bool) -> None:
    """Switch every metric of this process."""
    for (cls, name, mute), loud in zip(_MUTED, _LOUD, strict=True):
        setattr(cls, name, loud if on else mute)


def _run_commands() -> None:
    for line in sys.stdin:
        used_ns = time.process_time_ns()
        switch(line.strip() == "on")
        print(used_ns, flush=True)


def main() -> None:
    services.log_to_stderr()

    def report(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), flush=True)
        if event["event"] == "ready":
            threading.Thread(target=_run_commands, daemon=True).start()

    asyncio.run(services.serve(load_settings(Path(sys.argv[1])), report))


if __name__ == "__main__":
    main()
