"""One parser under fuzz: what it is given to begin with, and what must hold of whatever it is given."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

MAX_PROCESSOR_S: Final = 0.25
"""Processor time of one input of at most ``max_bytes``, as for an encoded picture or sound."""
MAX_GROWTH_BYTES: Final = 64 * 2**20
"""Memory by which one input may raise the peak of the process."""


class Wrong(AssertionError):
    """Broken promise of a parser, in one sentence."""


@dataclass(frozen=True)
class Parser:
    """A parser with its oracle.

    Attributes:
        seeds: real inputs, from which others are made.
        check: parses an input; True if it was taken, False if it was refused as the parser's documentation says.
            Raises anything else: a finding.
        max_bytes: longest input that is made.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], bool]
    max_bytes: int = 4_096

    def __str__(self) -> str:
        return self.name


def execute(parser: Parser, data: bytes) -> bool:
    """One input within its bounds of time and memory. Raises Wrong, or what the parser raised."""
    peak_bytes, began_s = _peak_bytes(), time.thread_time()
    taken = parser.check(data)
    took_s, grown_bytes = time.thread_time() - began_s, _peak_bytes() - peak_bytes
    if took_s > MAX_PROCESSOR_S:
        raise Wrong(f"{len(data)} bytes took {took_s:.2f} s of processor time")
    if grown_bytes > MAX_GROWTH_BYTES:
        raise Wrong(f"{len(data)} bytes took {grown_bytes // 2**20} MiB")
    return taken


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def must(holds: bool, problem: str) -> None:
    """Raises Wrong unless it holds."""
    if not holds:
        raise Wrong(problem)
