"""Each parser under fuzz with its seeds, with what was found before, and with a few inputs made of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from field.fuzz import mutated
from fuzz.__main__ import PARSERS, executions_of_all_runs
from fuzz.parser import Parser, execute
from fuzz.requests import close

FOUND: Final = sorted((Path(__file__).parent / "found").glob("*-*"))
"""Inputs that broke a promise once, as PARSER-CHECKSUM."""


@pytest.fixture(autouse=True, scope="module")
def nothing_goes_on() -> Iterator[None]:
    """The server and the honest client of the calls would go on beside all tests that come after."""
    yield
    close()


@pytest.mark.parametrize("parser", PARSERS.values(), ids=str)
def test_seeds_and_what_is_made_of_them(parser: Parser) -> None:
    seeds = [*parser.seeds()]
    assert seeds
    taken = [execute(parser, data) for data in seeds]
    assert any(taken), "none of the seeds is taken, so that nothing beyond the first check is reached"
    rng = random.Random(1)
    whole = [data for data in seeds if data]
    for _ in range(30):
        execute(parser, mutated(rng.choice(whole), whole, rng)[: parser.max_bytes])


@pytest.mark.parametrize("found", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_mended(found: Path) -> None:
    execute(PARSERS[found.name.rpartition("-")[0]], found.read_bytes())


def test_every_parser_has_been_fuzzed() -> None:
    assert executions_of_all_runs().keys() == PARSERS.keys()
