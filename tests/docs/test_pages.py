"""The pages against the repository: limits, links, figures, names, numbers."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from support.markdown import ROOT, Link, anchors, blocks, code_spans, links, pages, prose, read
from tools import generate_docs

README = ROOT / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
GLOSSARY = ROOT / "docs/explanation/glossary.md"
BENCHMARKS = ROOT / "docs/benchmarks"
DECISIONS = sorted((ROOT / "docs/decisions").glob("0*.md"))
HISTORY = {CHANGELOG, *DECISIONS}
"""Pages that may name what is no more."""


def _for_each(chosen: Iterable[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", list(chosen), ids=lambda page: str(page.relative_to(ROOT)))


every_page = _for_each(pages())
present_pages = _for_each(page for page in pages() if page not in HISTORY)


# --- README ----------------------------------------------------------------------------------------------------------


def test_readme_keeps_its_limits() -> None:
    text = read(README)
    assert len(text.encode()) <= 6_144
    assert text.count("\n") <= 120
    assert max(map(len, text.splitlines())) <= 100


def test_readme_has_five_figures_or_more() -> None:
    assert sum(_figure(link) is not None for link in links(README)) >= 5


def test_readme_names_every_extra() -> None:
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    assert sorted(extras.keys() - {"serve-base"} - set(code_spans(README))) == []


# --- links, figures, numbers -----------------------------------------------------------------------------------------


@every_page
def test_every_link_resolves(page: Path) -> None:
    assert [str(link) for link in links(page) if not _resolves(link)] == []


def _resolves(link: Link) -> bool:
    if re.match(r"[a-z]+:", link.target):
        return True
    name, _, anchor = link.target.partition("#")
    target = (link.page.parent / name).resolve() if name else link.page
    return target.exists() and (not anchor or anchor in anchors(target))


def _figure(link: Link) -> tuple[Path, str] | None:
    """JSON file and anchor of a link into a benchmark page that names a row."""
    name, _, anchor = link.target.partition("#")
    target = (link.page.parent / name).resolve()
    return (target.with_suffix(".json"), anchor) if link.title and target.parent == BENCHMARKS else None


@every_page
def test_every_figure_equals_its_json(page: Path) -> None:
    wrong = []
    for link in links(page):
        if (figure := _figure(link)) is not None:
            tables = json.loads(figure[0].read_text(encoding="utf-8"))["tables"]
            rows = chain.from_iterable(t["rows"] for t in tables if generate_docs.anchor(t["title"]) == figure[1])
            measured = {row["id"]: row["measured"] for row in rows}
            if measured.get(link.title) != link.text:
                wrong.append(f"{link} is {measured.get(link.title)!r} in {figure[0].name}")
    assert wrong == []


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.json")), ids=lambda path: path.stem)
def test_benchmark_files_are_dated_and_complete(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", report["date"])
    assert report["command"].removeprefix("make ") in _make_targets()
    ids = [(table["id"], row["id"]) for table in report["tables"] for row in table["rows"]]
    assert len(set(ids)) == len(ids)
    assert all(row["what"] and row["measured"] for table in report["tables"] for row in table["rows"])


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_decisions_have_their_parts(path: Path) -> None:
    text = read(path)
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert re.search(r"^- Status: (accepted|superseded by \[\d+\].*)$", text, re.MULTILINE)
    assert re.search(r"^- Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE)[:3] == ["Context", "Decision", "Consequences"]


@every_page
def test_every_decision_number_is_that_of_its_link(page: Path) -> None:
    numbered = [(link, re.match(r".*decisions/(\d{4})-", link.target)) for link in links(page)]
    assert [
        str(link)
        for link, target in numbered
        if target and re.search(r"\d+", link.text) and str(int(target[1])) not in re.findall(r"\d+", link.text)
    ] == []


# --- names -----------------------------------------------------------------------------------------------------------


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", read(ROOT / "Makefile"), flags=re.MULTILINE))


@every_page
def test_every_make_target_named_exists(page: Path) -> None:
    typed = [match for span in code_spans(page) for match in re.findall(r"^(?:\w+=\S+ )?make ([a-z-]+)", span)]
    for block in blocks(page):
        typed += re.findall(r"^(?:\w+=\S+ )?make ([a-z-]+)", block.text, re.MULTILINE)
    assert sorted(set(typed) - _make_targets()) == []


@present_pages
def test_every_setting_and_metric_named_exists(page: Path) -> None:
    settings, metrics = _setting_names(), _metric_names()
    sections = "|".join({name.partition(".")[0] for name in settings if "." in name})
    named = {span.partition(" ")[0] for span in code_spans(page) if re.match(rf"({sections})\.[a-z_]+( =|$)", span)}
    counted = set(re.findall(r"\bplaudit_(?:serving|learner)_[a-z0-9_]+", read(page)))
    assert sorted(named - settings) + sorted(counted - metrics) == []


@cache
def _setting_names() -> frozenset[str]:
    return frozenset(generate_docs.setting_names())


@cache
def _metric_names() -> frozenset[str]:
    modules = generate_docs.METRIC_MODULES.values()
    return frozenset(name for module in modules for name, *_ in generate_docs.metric_families(module))


@present_pages
def test_every_path_named_exists(page: Path) -> None:
    roots = "benchmarks|deploy|docs|examples|models|proto|services|tests|tools"
    named = [span for span in code_spans(page) if re.fullmatch(rf"(?:{roots})/[\w./*-]*", span)]
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


def test_every_noun_of_core_is_in_the_glossary() -> None:
    spans = set(code_spans(GLOSSARY))
    errors = ROOT / "services/plaudit/core/errors.py"
    nouns = {
        node.name
        for path in sorted((ROOT / "services/plaudit/core").rglob("*.py"))
        for node in ast.parse(read(path)).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and path != errors
    }
    reference = prose(ROOT / "docs/reference/errors.md")
    assert sorted(nouns - spans) == []
    named = [node.name for node in ast.parse(read(errors)).body if isinstance(node, ast.ClassDef)]
    assert [name for name in named if f"`{name}`" not in reference] == []


def test_glossary_names_no_class_that_is_gone() -> None:
    spans = {
        span for span in code_spans(ROOT / "docs/explanation/glossary.md") if re.fullmatch(r"[A-Z][A-Za-z]+", span)
    }
    source = "".join(read(path) for path in (ROOT / "services/plaudit/core").rglob("*.py"))
    assert sorted(name for name in spans if not re.search(rf"^class {name}\b|^{name} =", source, re.MULTILINE)) == []
