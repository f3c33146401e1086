"""The README against reality, both ways: what exists is named, what is named exists.

How the README names things:
    settings   in backticks with their table: `serving.port`, `data_dir`
    metrics    in backticks: `plaudit_serving_requests_total`
    commands   as typed: `plaudit versions`
    modules    in a fenced tree: one line per file or folder, two spaces of indentation per level, then what it is for;
               folders end in a slash and may be given as a path (`services/plaudit/`)
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from plaudit.cli.app import app
from plaudit.core.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("services/plaudit", "models/plaudit_models")
GENERATED = {ROOT / "services/plaudit/v1", ROOT / "services/plaudit/inference"}

_METRIC = re.compile(r"plaudit_(?:serving|learner)_[a-z0-9_]+")
_TREE_LINE = re.compile(r"^(?P<indent> *)(?P<name>[\w./-]+)(?:\s{2,}|\s*$)")


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def code_spans(readme: str) -> set[str]:
    """What stands in backticks, outside fenced blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", readme, flags=re.DOTALL | re.MULTILINE)))


# --- settings --------------------------------------------------------------------------------------------------------


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_named(code_spans):
    assert sorted(set(_settings(Settings)) - code_spans) == []


def test_every_setting_named_exists(code_spans):
    tables = {name.partition(".")[0] for name in _settings(Settings) if "." in name}
    named = {span for span in code_spans if re.fullmatch(rf"({'|'.join(sorted(tables))})\.[a-z_]+", span)}
    assert sorted(named - set(_settings(Settings))) == []


# --- metrics ---------------------------------------------------------------------------------------------------------


def _metrics() -> set[str]:
    """What a scrape shows: every class of a ``metrics`` module, made anew in a registry of its own."""
    found = set()
    for package in ("plaudit.serving", "plaudit.learner"):
        module = importlib.import_module(f"{package}.metrics")
        registry = CollectorRegistry()
        for _, declared in inspect.getmembers(module, inspect.isclass):
            if declared.__module__ == module.__name__:
                declared(registry)
        found |= {f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()}
    return found


def test_there_are_metrics():
    assert {name.split("_")[1] for name in _metrics()} == {"serving", "learner"}


def test_every_metric_is_named(code_spans):
    assert sorted(_metrics() - code_spans) == []


def test_every_metric_named_exists(readme):
    assert sorted(set(_METRIC.findall(readme)) - _metrics()) == []


# --- commands --------------------------------------------------------------------------------------------------------


def _commands() -> set[str]:
    return set(typer.main.get_group(app).commands)


def test_every_command_is_named(readme):
    assert sorted(name for name in _commands() if not re.search(rf"\bplaudit {name}\b", readme)) == []


def test_every_command_named_exists(readme, code_spans):
    fenced = "\n".join(re.findall(r"^```.*?^```", readme, flags=re.DOTALL | re.MULTILINE))
    typed = re.findall(r"^(?:\$ )?plaudit ([a-z]+)", fenced, flags=re.MULTILINE)
    typed += [span.split()[1] for span in code_spans if re.match(r"plaudit [a-z]+", span)]
    assert sorted(set(typed) - _commands()) == []


def test_every_make_target_named_exists(readme):
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"\bmake ([a-z-]+)", readme)) & targets
    typed = re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", readme, flags=re.MULTILINE)
    assert sorted({a or b for a, b in typed} - targets) == []


# --- the tree --------------------------------------------------------------------------------------------------------


def _tree(text: str) -> set[str]:
    """Paths of every fenced block that lists ``services/plaudit/``."""
    paths = set()
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if not re.search(r"^ *services/plaudit/", block, flags=re.MULTILINE):
            continue
        parents: list[tuple[int, str]] = []
        for line in block.splitlines():
            match = _TREE_LINE.match(line)
            if match is None:
                continue
            indent = len(match["indent"])
            while parents and parents[-1][0] >= indent:
                parents.pop()
            path = (parents[-1][1] if parents else "") + match["name"]
            paths.add(path)
            if path.endswith("/"):
                parents.append((indent, path))
    return paths


def _modules() -> set[str]:
    """Hand-written modules; an ``__init__.py`` goes by its folder."""
    found = set()
    for root in SOURCE_ROOTS:
        for path in (ROOT / root).rglob("*.py"):
            if GENERATED.isdisjoint(path.parents) and path.name != "__init__.py":
                found.add(path.relative_to(ROOT).as_posix())
    return found


def test_every_module_is_in_the_tree(readme):
    assert sorted(_modules() - _tree(readme)) == []


def test_everything_in_the_tree_exists(readme):
    assert sorted(path for path in _tree(readme) if not (ROOT / path).exists()) == []


def test_the_tree_is_read_by_its_indentation():
    text = "```\nservices/plaudit/  all\n  core/\n    events.py  facts\n  compose.py  puts together\nMakefile\n```\n"
    assert _tree(text) == {
        "services/plaudit/",
        "services/plaudit/core/",
        "services/plaudit/core/events.py",
        "services/plaudit/compose.py",
        "Makefile",
    }
