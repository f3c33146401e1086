"""Fixtures of the loop tests; the world itself is in tests/support/loop_world.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.loop_world import World


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """A world with version 1 live; its head is refreshed as soon as there is anything new, and it does not fine-tune,
    unless settings say otherwise.
    """
    worlds: list[World] = []

    def make(settings: dict[str, dict[str, Any]] | None = None, *, live: bool = True, **fields: Any) -> World:
        defaults: dict[str, dict[str, Any]] = {
            "learner": {"batch": 1, "max_wait_s": 0.001},
            "finetune": {"enabled": False},
        }
        merged = {
            name: defaults.get(name, {}) | (settings or {}).get(name, {}) for name in {*defaults, *(settings or {})}
        }
        world = World(tmp_path, settings=merged, **fields)
        if live:
            world.first_version()
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.close()
