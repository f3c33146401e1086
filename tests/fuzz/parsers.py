"""All parsers under fuzz, by the module that declares them. Imports those only when asked, as they import much."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from fuzz.parser import Parser

_MODULES: Final = ("records", "containers", "files", "requests")


def all_parsers() -> Mapping[str, Parser]:
    """Parsers by name."""
    return {parser.name: parser for module in _MODULES for parser in import_module(f"fuzz.{module}").PARSERS}


def find(name: str) -> Parser:
    """Parser of a name, with no more imported than it takes. Raises StopIteration if there is none."""
    modules = (import_module(f"fuzz.{module}") for module in _MODULES)
    found: Parser = next(parser for module in modules for parser in module.PARSERS if parser.name == name)
    return found
