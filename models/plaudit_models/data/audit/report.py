"""Report of an audit as JSON, as one page of HTML without scripts or addresses, and as the list that `clean` writes."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, Final

from plaudit_models.data.audit.findings import AuditCase, AuditFinding, AuditReport
from plaudit_models.data.rows import Rows, row_keys

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .7rem;text-align:left;border-bottom:1px solid #ddd}
.error{border-left:5px solid #b00020}.warning{border-left:5px solid #c77700}.note{border-left:5px solid #888}
section{padding:.1rem 1rem;margin:1rem 0;background:#fafafa}li{margin:.3rem 0}
code{font-size:13px;overflow-wrap:anywhere}
img{max-height:96px;vertical-align:middle;margin:2px}.bar{background:#4a7;height:.7rem;display:block;min-width:1px}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}section{background:#222}td,th{border-color:#444}}
"""
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MAX_SHOWN: Final = 50


def to_json(report: AuditReport) -> dict[str, Any]:
    """Report as JSON, without its pictures."""
    return {
        "source": report.source,
        "worst": report.worst(),
        "statistics": asdict(report.statistics),
        "findings": [
            {**asdict(finding), "cases": [_case_json(case) for case in finding.cases]} for finding in report.findings
        ],
        "excluded": len(report.excluded),
    }


def _case_json(case: AuditCase) -> dict[str, Any]:
    return {
        "rows": list(case.rows),
        "places": list(case.places),
        "column": case.column,
        "text": case.text,
        "excluded": list(case.excluded),
    }


def to_html(report: AuditReport) -> str:
    """Report as one page; everything that comes from the data is escaped."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">',
        "<meta name=viewport content='width=device-width'>",
        f"<title>Data set {escape(report.source)}</title><style>{_STYLE}</style>",
        f"<h1>Data set</h1><p><code>{escape(report.source)}</code></p>",
        _statistics(report),
        "<h2>Findings</h2>",
        *(_finding(finding, report.thumbnails) for finding in report.findings),
    ]
    if not report.findings:
        parts.append("<p>Nothing was found.</p>")
    return "\n".join(parts)


def _statistics(report: AuditReport) -> str:
    counted = report.statistics
    splits = list(counted.rows)
    made = f"<p>{escape(counted.made_splits)}</p>" if counted.made_splits else ""
    sizes = _table(["split", "rows", "groups"], [[s, counted.rows[s], counted.groups.get(s, "")] for s in splits])
    most = max((sum(each.values()) for each in counted.balance.values()), default=1) or 1
    actions = sorted(counted.balance, key=lambda action: -sum(counted.balance[action].values()))
    lines = [_bar(action, counted.balance[action], splits, most) for action in actions[:200]]
    head = "".join(f"<th>{escape(split)}</th>" for split in splits)
    facts = [[name, fact, _fact(value)] for name, each in counted.modalities.items() for fact, value in each.items()]
    return (
        f"{made}{sizes}<h2>Actions</h2><table><tr><th>action</th>{head}<th></th></tr>{''.join(lines)}</table>"
        f"<h2>Modalities</h2>{_table(['modality', 'property', 'value'], facts)}"
    )


def _bar(action: str, counts: Mapping[str, int], splits: Sequence[str], most: int) -> str:
    cells = "".join(f"<td>{counts.get(split, 0)}</td>" for split in splits)
    width = 100 * sum(counts.values()) / most
    bar = f"<td style='width:20rem'><span class=bar style='width:{width:.1f}%'></span></td>"
    return f"<tr><td>{escape(action)}</td>{cells}{bar}</tr>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} {part:g}" if isinstance(part, float) else f"{key} {part}" for key, part in value.items()
        )
    return str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _finding(finding: AuditFinding, thumbnails: Mapping[int, bytes]) -> str:
    cases = []
    for case in finding.cases[:_MAX_SHOWN]:
        pictures = "".join(
            f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(thumbnails[row]).decode()}'>"
            for row in case.rows[:8]
            if row in thumbnails
        )
        column = f" <b>{escape(case.column)}</b>" if case.column else ""
        places = "; ".join(escape(place) for place in case.places[:8])
        more = f" and {len(case.places) - 8} more" if len(case.places) > 8 else ""
        cases.append(f"<li>{pictures}{column} {escape(case.text)}<br><code>{places}{more}</code></li>")
    rest = finding.count - len(cases)
    more = f"<p>and {rest} more</p>" if cases and rest > 0 else ""
    count = f" ({finding.count})" if finding.count else ""
    return (
        f"<section class={finding.severity}><h3>{finding.severity}: {escape(finding.title)}{count}</h3>"
        f"<ul>{''.join(cases)}</ul>{more}</section>"
    )


def exclusions(report: AuditReport, rows: Rows) -> str:
    """List of the rows to leave out, as CSV; ``data.exclude`` takes it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["key", "place", "reason"])
    keys = row_keys(rows.table)
    for row, reason in report.excluded.items():
        writer.writerow([keys[row], rows.table.place(row), reason])
    return file.getvalue()
