"""Findings of an audit: what is wrong with a data set, where, how bad, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]

MAX_CASES: Final = 200
"""Cases of a finding that are listed; the rest are counted."""


@dataclass(frozen=True, slots=True)
class AuditCase:
    """Rows that a finding is about.

    Attributes:
        rows: indices in the data set.
        places: file and line of each.
        text: what is told of them.
        column: the column, or the modality, that is meant; "" is the row.
        excluded: those of ``rows`` that `clean` leaves out.
    """

    rows: Sequence[int]
    places: Sequence[str]
    text: str
    column: str = ""
    excluded: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Result of one check.

    Attributes:
        check: name of the check, such as ``duplicates``.
        title: what was found, in one sentence, with the way out.
        count: number of cases, of which at most :data:`MAX_CASES` are listed.
    """

    check: str
    severity: Severity
    title: str
    count: int = 0
    cases: Sequence[AuditCase] = ()


@dataclass(frozen=True, slots=True)
class DataStatistics:
    """Sizes of a data set.

    Attributes:
        rows: number of rows by split.
        groups: number of groups by split, where there are any.
        balance: per action the number of rows by split.
        modalities: per modality the numbers of rows that have it, of distinct items, and facts about them.
        made_splits: what made the splits; "" where the data has them.
    """

    rows: Mapping[str, int]
    groups: Mapping[str, int]
    balance: Mapping[str, Mapping[str, int]]
    modalities: Mapping[str, Mapping[str, Any]]
    made_splits: str = ""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Result of an audit.

    Attributes:
        source: folder, or table, that was examined.
        findings: worst first.
        excluded: per row that `clean` leaves out the reason.
        thumbnails: per row a small picture as JPEG, of rows that findings are about.
    """

    source: str
    statistics: DataStatistics
    findings: Sequence[AuditFinding]
    excluded: Mapping[int, str] = field(default_factory=dict)
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)

    def worst(self) -> Severity | None:
        """Severity of the worst finding; None where there is none."""
        present = {finding.severity for finding in self.findings}
        order: tuple[Severity, ...] = ("error", "warning", "note")
        return next((each for each in order if each in present), None)
