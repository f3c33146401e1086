"""The README against reality, both ways: what exists is named, what is named exists.

How the README names things:
    settings   in backticks with their table: `serving.port`, `data_dir`
    metrics    in backticks: `plaudit_serving_requests_total`
    commands   as typed: `plaudit versions`
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer.main
from prometheus_client import CollectorRegistry

from plaudit.cli.app import app
from plaudit.core.settings import Settings

ROOT = Path(__file__).parents[1]

_METRIC = re.compile(r"plaudit_(?:serving|learner)_[a-z0-9_]+")


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def code_spans(readme: str) -> set[str]:
    """What stands in backticks, outside fenced blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", readme, flags=re.DOTALL | re.MULTILINE)))


# --- settings --------------------------------------------------------------------------------------------------------


def _settings(section: type[Any], prefix: str = "") -> Iterator[str]:
    for name, annotation in get_type_hints(section).items():
        if isinstance(annotation, type) and is_dataclass(annotation):
            yield from _settings(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_named(code_spans: set[str]) -> None:
    assert sorted(set(_settings(Settings)) - code_spans) == []


def test_every_setting_named_exists(code_spans: set[str]) -> None:
    tables = {name.partition(".")[0] for name in _settings(Settings) if "." in name}
    named = {span for span in code_spans if re.fullmatch(rf"({'|'.join(sorted(tables))})\.[a-z_]+", span)}
    assert sorted(named - set(_settings(Settings))) == []


# --- metrics ---------------------------------------------------------------------------------------------------------


def _metrics() -> set[str]:
    """What a scrape shows: every class of a ``metrics`` module, made anew in a registry of its own."""
    found = set()
    for name in ("plaudit.serving.telemetry.metrics", "plaudit.learner.metrics"):
        module = importlib.import_module(name)
        registry = CollectorRegistry()
        declared: Any
        for _, declared in inspect.getmembers(module, inspect.isclass):
            if declared.__module__ == module.__name__:
                declared(registry)
        found |= {f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()}
    return found


def test_there_are_metrics() -> None:
    assert {name.split("_")[1] for name in _metrics()} == {"serving", "learner"}


def test_every_metric_is_named(code_spans: set[str]) -> None:
    assert sorted(_metrics() - code_spans) == []


def test_every_metric_named_exists(readme: str) -> None:
    assert sorted(set(_METRIC.findall(readme)) - _metrics()) == []


# --- commands --------------------------------------------------------------------------------------------------------


def _commands() -> set[str]:
    return set(typer.main.get_group(app).commands)


def test_every_command_is_named(readme: str) -> None:
    assert sorted(name for name in _commands() if not re.search(rf"\bplaudit {name}\b", readme)) == []


def test_every_command_named_exists(readme: str, code_spans: set[str]) -> None:
    fenced = "\n".join(re.findall(r"^```.*?^```", readme, flags=re.DOTALL | re.MULTILINE))
    typed = re.findall(r"^(?:\$ )?plaudit ([a-z]+)", fenced, flags=re.MULTILINE)
    typed += [span.split()[1] for span in code_spans if re.match(r"plaudit [a-z]+", span)]
    assert sorted(set(typed) - _commands()) == []


def test_every_make_target_named_exists(readme: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"\bmake ([a-z-]+)", readme)) & targets
    typed = re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", readme, flags=re.MULTILINE)
    assert sorted({a or b for a, b in typed} - targets) == []
