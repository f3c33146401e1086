"""Markdown pages of the repository: their fenced blocks, code spans, links and anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*|\{[\w-]+\})[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)(?:\s+\"([^\"]*)\")?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the page it is on, its first line there, its language ("" if none is given) and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Link:
    page: Path
    text: str
    target: str
    title: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: [{self.text}]({self.target})"


@cache
def pages() -> tuple[Path, ...]:
    """README and its neighbours, docs/ and the examples' READMEs."""
    return (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
    )


@cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> Iterator[Block]:
    text = read(page)
    for found in _FENCE.finditer(text):
        yield Block(page, text[: found.start()].count("\n") + 2, found[1], found[2])


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> Iterator[Link]:
    text = re.sub(r"`[^`\n]*`", lambda span: span[0].replace("[", "(").replace("]", ")"), prose(page))
    for words, target, title in _LINK.findall(text):
        yield Link(page, words, target, title)


def slug(heading: str) -> str:
    """Anchor that a code host and MyST give a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("\\", ""))
    return re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(slug(heading) for heading in re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE))
