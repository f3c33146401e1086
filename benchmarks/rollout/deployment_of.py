"""A deployment with versions to change between, for the rollout benchmarks, and `plaudit serve` processes in front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.ports.registry import ModelRegistry
from support import builders
from support.deployment import PLAUDIT, Service, deployed


def deployed_with_two(folder: Path, extra: str = "") -> tuple[Path, ModelRegistry]:
    """Version 1 live, and version 2 with another trunk."""
    config = deployed(folder)
    config.write_text(config.read_text(encoding="utf-8") + extra, encoding="utf-8")
    registry = model_registry(load_settings(config))
    builders.tiny_bundle(folder / "two", seed=2, prefer="fish")
    registry.publish(folder / "two")
    return config, registry


@contextmanager
def serving(config: Path, replicas: int) -> Iterator[Sequence[tuple[str, str]]]:
    """Address and metrics address of each of several services of one deployment."""
    with ExitStack() as stack:
        addresses = []
        for _ in range(replicas):
            service = Service([*PLAUDIT, "serve", "--config", str(config), "--json"])
            stack.callback(service.kill)
            ready = service.event(event="ready")
            addresses.append((ready["address"], ready["metrics"]))
        yield addresses
