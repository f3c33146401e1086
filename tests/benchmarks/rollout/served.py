"""`plaudit serve` with its metrics, or with metrics that count nothing; prints ``{"address": …}`` when it answers.

python -m benchmarks.rollout.served CONFIG [mute]
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from plaudit.cli import services
from plaudit.core.settings import load_settings
from plaudit.serving import metrics as declared


class _Mute:
    """Whatever is done to it, it does nothing."""

    def labels(self, *values: Any, **named: Any) -> _Mute:
        return self

    def time(self) -> _Mute:
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def inc(self, amount: float = 1) -> None:
        pass

    def observe(self, amount: float) -> None:
        pass

    def set(self, value: float) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        """What is used seldom."""
        return lambda *arguments, **named: None


class Muted(declared.ServingMetrics):
    """The same metrics, declared, that are never touched."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        for name, value in list(vars(self).items()):
            if isinstance(value, MetricWrapperBase):
                setattr(self, name, _Mute())


def main() -> None:
    if sys.argv[2:] == ["mute"]:
        declared.ServingMetrics = Muted  # type: ignore[misc]

    services.log_to_stderr()

    def report(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    asyncio.run(services.serve(load_settings(Path(sys.argv[1])), report))


if __name__ == "__main__":
    main()
