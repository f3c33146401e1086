"""Version cards: sections of a manifest for people, as Markdown, and the differences between two versions.

Manifests are read as JSON gives them, so that a registry and a client of the service can show them alike. Fields that
a manifest lacks, because an older release or another tool wrote it, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from plaudit_models.bundle import HEAD_GOLDEN, TRUNK, TRUNK_GOLDEN

Raw = Mapping[str, Any]

KINDS: Final[Mapping[str, str]] = {
    "pretrained": "trained on labelled data",
    "head": "head refreshed from feedback",
    "finetuned": "weights fine-tuned on feedback",
    "imported": "imported",
}


@dataclass(frozen=True, slots=True)
class CardTable:
    """``rows`` have as many cells as ``header``."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """``facts`` are names with their values; ``remarks`` are sentences."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[CardTable] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """Field with different values; None where a version does not have it."""

    field: str
    before: str | None
    after: str | None


def sections(manifest: Raw) -> list[Section]:
    """Sections of the manifest; those without content are left out."""
    made = [Section(title, *make(manifest)) for title, make in _SECTIONS]
    return [section for section in made if section.facts or section.tables or section.remarks]


def card(manifest: Raw) -> str:
    """Sections of the manifest as Markdown."""
    name = manifest.get("spec", {}).get("name", "a model")
    kind = KINDS.get(manifest.get("kind", ""), "a version")
    lines = [f"# {name}", "", f"{kind.capitalize()}. {manifest.get('reason', '')}".rstrip()]
    for section in sections(manifest):
        lines += ["", f"## {section.title}", ""]
        lines += [f"- {name}: {value}" for name, value in section.facts]
        for table in section.tables:
            lines += ["", *_markdown(table)] if section.facts or table is not section.tables[0] else _markdown(table)
        lines += [f"- {remark}" for remark in section.remarks]
    return "\n".join(lines) + "\n"


def differences(before: Raw, after: Raw) -> list[Difference]:
    """Differences field by field, in the order of the sections, files last."""
    ours, theirs = dict(_fields(before)), dict(_fields(after))
    titles = [title for title, _ in _SECTIONS]
    both = sorted(dict.fromkeys([*ours, *theirs]), key=lambda place: titles.index(place[0]))
    return [
        Difference(name, ours.get((title, name)), theirs.get((title, name)))
        for title, name in both
        if ours.get((title, name)) != theirs.get((title, name))
    ]


def ancestry(version: int, parents: Mapping[int, int | None]) -> list[int]:
    """Version and its ancestors, newest first, as far back as ``parents`` (by version) goes."""
    chain = [version]
    while (parent := parents.get(chain[-1])) is not None:
        chain.append(parent)
    return chain


def size_words(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"


# --- sections --------------------------------------------------------------------------------------------------------

_Content = tuple[Sequence[tuple[str, str]], Sequence[CardTable], Sequence[str]]
"""Facts, tables and remarks."""


def _identity(manifest: Raw) -> _Content:
    files = manifest.get("files", {})
    facts = [
        ("kind", f"{manifest['kind']} ({KINDS[manifest['kind']]})" if manifest.get("kind") in KINDS else None),
        ("parent", f"version {manifest['parent']}" if manifest.get("parent") else "none"),
        ("made", _time(manifest.get("created_at_s"))),
        ("why", manifest.get("reason") or None),
        ("digest", manifest.get("digest")),
        ("trunk", files.get(TRUNK, {}).get("sha256")),
        ("golden digest of the trunk", files.get(TRUNK_GOLDEN, {}).get("sha256")),
        ("golden digest of the head", files.get(HEAD_GOLDEN, {}).get("sha256")),
        ("size", size_words(sum(each["size_bytes"] for each in files.values())) if files else None),
        ("exploration floor", _maybe(manifest.get("floor"))),
    ]
    return _known(facts), (), ()


def _contract(manifest: Raw) -> _Content:
    spec = manifest.get("spec", {})
    facts = [(name, _modality(fields)) for name, fields in spec.get("modalities", {}).items()]
    actions = spec.get("actions", [])
    if actions:
        shown = ", ".join(actions[:_ACTIONS_SHOWN]) + (", …" if len(actions) > _ACTIONS_SHOWN else "")
        facts.append(("actions", f"{len(actions)}: {shown}"))
    return facts, (), ()


def _data(manifest: Raw) -> _Content:
    data = dict(manifest.get("data", {}))
    rows = data.pop("rows", {})
    facts = _plain_facts(data, _DATA_WORDS)
    facts += [(f"labelled rows ({split})", _value(count)) for split, count in rows.items()]
    return facts, (), ()


def _metrics(manifest: Raw) -> _Content:
    metrics = manifest.get("metrics", {})
    facts = _plain_facts(metrics, _METRIC_WORDS)
    accuracy, without = metrics.get("accuracy"), metrics.get("without", {})
    if not accuracy:
        return facts, (), ()
    columns = {"right": accuracy} | {f"without {name}": each for name, each in without.items()}
    groups = [*accuracy.get("by_group", {})]
    rows = [["all", *(_percent(each.get("overall")) for each in columns.values())]]
    rows += [[group, *(_percent(each.get("by_group", {}).get(group)) for each in columns.values())] for group in groups]
    return facts, [CardTable(["slice", *columns], rows)], ()


def _reward_model(manifest: Raw) -> _Content:
    report = manifest.get("metrics", {}).get("reward_model", {})
    if not report:
        return (), (), ()
    facts = [(word, _value(report[name])) for name, word in _REWARD_WORDS.items() if name in report]
    bins = zip(report["predicted"], report["observed"], report["count"], strict=True)
    rows = [[f"{predicted:.2f}", f"{observed:.2f}", str(count)] for predicted, observed, count in bins]
    # Older manifests have no uncertainty.
    quarters = zip(*(report.get(name, ()) for name in _UNCERTAINTY), strict=True)
    unsure = [[f"{sigma:.3f}", f"{error:.3f}", f"{noise:.3f}", str(n)] for sigma, error, noise, n in quarters]
    tables = [
        CardTable(["predicted reward", "observed", "n"], rows),
        CardTable(["uncertainty", "mean error", "if predictions were exact", "n"], unsure),
    ]
    return facts, [table for table in tables if table.rows], ()


def _gate(manifest: Raw) -> _Content:
    gate = manifest.get("gate", {})
    if not gate:
        return (), (), ()
    facts = [
        ("verdict", gate.get("verdict")),
        ("gain in reward", f"{gate['gain']:+.3f} ({gate['lower']:+.3f} to {gate['upper']:+.3f})"),
        ("evidence for a gain", f"e = {_value(gate['e_value_gain'])}"),
        ("evidence for harm", f"e = {_value(gate['e_value_harm'])}"),
        ("decisions counted", f"{gate['n']}, worth {gate['effective_n']:.0f} unweighted ones"),
        ("left out by the cap on users", _maybe(gate.get("capped"))),
        ("raters", _maybe(gate.get("raters"))),
    ]
    rows = [
        [part["name"], str(part["n"]), f"{part['gain']:+.3f}", _value(part["e_value_harm"]), _value(part["threshold"])]
        for part in gate.get("slices", [])
    ]
    tables = [CardTable(["slice", "n", "gain", "evidence for harm", "proof"], rows)] if rows else []
    return _known(facts), tables, list(gate.get("reasons", []))


def _files(manifest: Raw) -> _Content:
    files = manifest.get("files", {}).items()
    return [(name, f"{each['sha256'][:16]} ({size_words(each['size_bytes'])})") for name, each in files], (), ()


_SECTIONS: Final[Sequence[tuple[str, Callable[[Raw], _Content]]]] = (
    ("What it is", _identity),
    ("What it takes and gives", _contract),
    ("What it learned from", _data),
    ("What was measured", _metrics),
    ("The reward model it was trained with", _reward_model),
    ("At the gate", _gate),
    ("Files", _files),
)
_ACTIONS_SHOWN: Final = 20
_UNCERTAINTY: Final = ("sigma", "error", "error_expected", "sigma_count")
_REWARD_WORDS: Final[Mapping[str, str]] = {
    "trained_on": "experiences trained on",
    "steps": "steps",
    "duration_s": "duration_s",
    "slope": "calibrated by a slope of",
    "intercept": "and an intercept of",
    "held_out": "measured on",
    "log_loss": "log loss",
    "parent_log_loss": "log loss of the parent's beliefs",
    "calibration_error": "expected calibration error",
    "sigma_mean": "uncertainty, mean standard deviation",
}
_METRIC_WORDS: Final[Mapping[str, str]] = {
    "kl_to_parent_nats": "mean KL from its parent, in nats",
    "kl_nats": "mean KL from the head before it, in nats",
    "pessimism": "standard deviations taken off rewards",
    "sample_staleness_max_steps": "steps behind a sample was, at most",
}
_DATA_WORDS: Final[Mapping[str, str]] = {
    "feedback": "signals taken in",
    "experiences": "experiences",
    "outdated_experiences": "experiences from before users changed what they want",
    "drifts": "such changes found",
    "trained_on": "experiences trained on",
    "thumbs_and_ratings": "thumbs and ratings among them",
    "corrections": "corrections among them",
    "preferences": "preferences among them",
    "with_dynamic_actions": "between dynamic actions among them",
    "first_experience": "from experience number",
    "served_by_versions": "versions that served them",
    "versions_behind_mean": "versions behind, on average",
    "versions_behind_max": "versions behind, at most",
    "oldest_time_s": "the oldest served",
    "too_stale": "left out as too stale",
    "unusable": "left out without content or a known action",
    "last_experience": "up to experience number",
    "last_feedback_id": "up to feedback",
    "last_feedback_time_s": "up to feedback of",
    "raters": "raters",
    "cursor": "log read up to",
    "run": "run",
    "folder": "labelled data",
}


def _modality(fields: Raw) -> str:
    sizes = ", ".join(f"{name} {_value(value)}" for name, value in fields.items() if name not in ("kind", "required"))
    return f"{fields.get('kind')} ({sizes})" + (", required" if fields.get("required") else "")


# --- words -----------------------------------------------------------------------------------------------------------


def _fields(manifest: Raw) -> Iterator[tuple[tuple[str, str], str]]:
    """Fields as ((section, name), value), without remarks; a row of a table is one value."""
    for section in sections(manifest):
        for name, value in section.facts:
            yield (section.title, name), value
        for table in section.tables:
            for row in table.rows:
                cells = zip(table.header[1:], row[1:], strict=True)
                yield (section.title, row[0]), ", ".join(f"{column} {cell}" for column, cell in cells)


def _known(facts: Sequence[tuple[str, str | None]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in facts if value is not None]


def _plain_facts(fields: Raw, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Fields with a single value, under their words."""
    single = {k: v for k, v in fields.items() if v is not None and not isinstance(v, Mapping | list)}
    return [
        (words.get(name, name), (_time(value) or "") if name.endswith("time_s") else _value(value))
        for name, value in single.items()
    ]


def _maybe(value: Any) -> str | None:
    return None if value is None else _value(value)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list():
            return "×".join(str(part) for part in value)
        case _:
            return str(value)


def _percent(share: Any) -> str:
    return "–" if share is None else f"{share:.1%}"


def _time(time_s: Any) -> str | None:
    if time_s is None:
        return None
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError, TypeError):  # no calendar has it, and nothing may end on that
        return f"{time_s} s"


def _markdown(table: CardTable) -> list[str]:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
