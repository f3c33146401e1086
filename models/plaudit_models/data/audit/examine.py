"""Audit of a data set: every check in turn, from problems of cells to suspicious labels.

Notation:
    n: rows, f: features
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from plaudit_models.data.audit.findings import MAX_CASES, AuditCase, AuditFinding, AuditReport, DataStatistics, Severity
from plaudit_models.data.audit.fingerprints import Fingerprint, fingerprint, thumbnail
from plaudit_models.data.audit.neighbours import MAX_COMPARED, joined, near_bits, near_texts
from plaudit_models.data.audit.predictability import (
    MAX_NOISE_ROWS,
    feature_matrix,
    label_noise,
    predictive_power,
)
from plaudit_models.data.errors import UnusableItem
from plaudit_models.data.items import ItemReader, encoded
from plaudit_models.data.rows import LABEL_SUFFIX, Rows
from plaudit_models.preprocess import train_tokenizer
from plaudit_models.spec import AudioModality, ImageModality, TextModality

Progress = Callable[[str, int, int], None]
"""Name of the stage, steps done, steps in all."""

GIVES_AWAY: Final = 0.8
"""Predictive power from which on one property gives the target away."""

_NEAR_PICTURE_BITS: Final = 6
_NEAR_PICTURE_GREY: Final = 8.0
_NEAR_SOUND_BITS: Final = 72
_RARE: Final = 20
_MIN_ROWS: Final = 20
_ABOVE_CHANCE: Final = 0.3
_THUMBNAILS: Final = 400
_DIGITS = re.compile(r"\d+")
_AHEAD: Final = 256


class Audit:
    """Audit of the rows of a data set.

    Args:
        on_progress: called after every item.
    """

    def __init__(self, rows: Rows, on_progress: Progress = lambda stage, done, total: None) -> None:
        self._rows, self._on_progress = rows, on_progress
        # Any text can be written in bytes; what a vocabulary would be like does not matter here.
        self._reader = ItemReader(rows, train_tokenizer([], 257))
        self._findings: list[AuditFinding] = []
        self._excluded: dict[int, str] = {}
        self._shown: list[tuple[int, str]] = []
        self._prints: dict[str, dict[str, Fingerprint]] = {}

    def run(self) -> AuditReport:
        """Report of all checks."""
        self._cells()
        self._items()
        self._balance()
        self._groups()
        self._duplicates()
        self._near()
        self._give_aways()
        self._noise()
        worst: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}
        return AuditReport(
            source=str(self._rows.table.path),
            statistics=statistics(self._rows, self._prints),
            findings=sorted(self._findings, key=lambda finding: worst[finding.severity]),
            excluded=dict(sorted(self._excluded.items())),
            thumbnails=self._thumbnails(),
        )

    def measure(self) -> DataStatistics:
        """Statistics alone, without any check."""
        self._items()
        return statistics(self._rows, self._prints)

    def _find(
        self, check: str, severity: Severity, title: str, cases: Sequence[AuditCase] = (), count: int | None = None
    ) -> None:
        listed = list(cases[:MAX_CASES])
        self._findings.append(AuditFinding(check, severity, title, len(cases) if count is None else count, listed))

    def _case(self, rows: Iterable[int], text: str, column: str = "", excluded: Iterable[int] = ()) -> AuditCase:
        found = list(rows)[:_AHEAD]
        self._shown += [(row, column) for row in found[:8]]
        return AuditCase(found, [self._rows.table.place(row) for row in found], text, column, list(excluded))

    def _exclude(self, rows: Iterable[int], reason: str) -> None:
        for row in rows:
            self._excluded.setdefault(row, reason)

    def _cells(self) -> None:
        rows = self._rows
        cases = [
            AuditCase(
                [each.row],
                [each.place],
                f"{each.value[:80]!r}: {each.problem}" if each.column else each.problem,
                each.column,
            )
            for each in rows.problems
        ]
        if cases:
            self._find("cells", "error", "Cells are wrong; training refuses them", cases, rows.problem_count)
            self._exclude((each.row for each in rows.problems), "a cell is wrong")

    def _items(self) -> None:
        """Read and decode every distinct item; those that cannot be are a finding."""
        first: list[tuple[str, str, int]] = []
        for name in self._rows.spec.modalities:
            known: dict[str, int] = {}
            for row, cell in enumerate(self._rows.items[name]):
                if cell:
                    known.setdefault(cell, row)
            first += [(name, cell, row) for cell, row in known.items()]
            self._prints[name] = {}
        broken: dict[tuple[str, str], str] = {}

        def examine(item: tuple[str, str, int]) -> Fingerprint | str:
            try:
                return fingerprint(self._rows, self._reader, item[2], item[0])
            except UnusableItem as error:
                return str(error)

        waiting = iter(first)
        with ThreadPoolExecutor(self._rows.config.workers, thread_name_prefix="audit") as threads:
            done = 0
            while block := list(islice(waiting, _AHEAD)):
                for (name, cell, _), found in zip(block, threads.map(examine, block), strict=True):
                    if isinstance(found, str):
                        broken[name, cell] = found
                    else:
                        self._prints[name][cell] = found
                    done += 1
                    self._on_progress("reading items", done, len(first))
        cases = []
        for name, cells in self._rows.items.items():
            for row, cell in enumerate(cells):
                if (name, cell) in broken:
                    cases.append(self._case([row], f"{cell[:80]!r}: {broken[name, cell]}", name, [row]))
        if cases:
            self._find("unreadable", "error", "Items cannot be read; training would stop at them", cases)
            self._exclude((case.rows[0] for case in cases), "an item cannot be read")

    def _balance(self) -> None:
        rows = self._rows
        counts = {split: Counter[int]() for split in ("train", "val", "test")}
        for split, target in zip(rows.split, rows.target, strict=True):
            if target is not None and split in counts:
                counts[split].update(target.shares.keys())
        train, actions = counts["train"], rows.spec.actions
        if not sum(train.values()):
            self._find("balance", "error", "No row has split 'train'; training has nothing to learn from")
            return
        if len(train) < 2:
            only = actions[next(iter(train))]
            self._find("balance", "error", f"All training rows have the one action {only!r}; add rows of others")
            return
        never = [action for i, action in enumerate(actions) if not train[i]]
        if never:
            shown = ", ".join(map(repr, never[:20]))
            title = f"No training row has {shown}: the model knows nothing of it until feedback teaches it; add rows"
            self._find("balance", "warning", title, count=len(never))
        for split in ("val", "test"):
            if not counts[split]:
                self._find("balance", "error" if split == "val" else "note", f"No row has split {split!r}")
        rarest, most = min(train.items(), key=lambda pair: pair[1]), train.most_common(1)[0]
        if most[1] > _RARE * rarest[1]:
            self._find(
                "balance",
                "warning",
                f"{actions[most[0]]!r} has {most[1]} training rows and {actions[rarest[0]]!r} has {rarest[1]}: "
                "judge by balanced accuracy, and give rare rows a weight",
            )

    def _groups(self) -> None:
        of: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row, (group, split) in enumerate(zip(self._rows.group, self._rows.split, strict=True)):
            if group:
                of[group][split].append(row)
        cases = []
        for group, splits in of.items():
            if len(splits) > 1:
                sizes = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
                shown = [rows[0] for rows in splits.values()]
                cases.append(self._case(shown, f"{group!r}: {sizes}", self._rows.config.group))
                self._exclude(splits.get("train", ()), f"group {group!r} is in another split, too")
        if cases:
            title = "Groups are in several splits: the test knows them; without a column for splits they stay together"
            self._find("group_leak", "error", title, cases)

    def _duplicates(self) -> None:
        """Rows with the same content, and items with the same content in different splits."""
        rows = self._rows
        digests = [
            {name: self._digest(name, cells[row]) for name, cells in rows.items.items() if cells[row]}
            for row in range(len(rows))
        ]
        same: defaultdict[tuple[tuple[str, bytes], ...], list[int]] = defaultdict(list)
        for row, each in enumerate(digests):
            if each and all(each.values()):
                same[tuple(each.items())].append(row)
        twice, contradicting, leaking = [], [], []
        in_leaks: set[int] = set()
        for copies in same.values():
            if len(copies) < 2:
                continue
            targets = {rows.target_text(row) for row in copies}
            splits = {rows.split[row] for row in copies}
            if len(targets) > 1:
                contradicting.append(self._case(copies, f"called {', '.join(sorted(targets))}"))
            if len(splits) > 1:
                dropped = self._drop_from_train(copies, "its content is in another split, too")
                leaking.append(self._case(copies, f"in {', '.join(sorted(splits))}", excluded=dropped))
                in_leaks.update(copies)
            else:
                extra = copies[1:] if len(targets) == 1 else []
                self._exclude(extra, "it is a copy of an earlier row")
                twice.append(self._case(copies, f"{len(copies)} times in {rows.split[copies[0]]}", excluded=extra))
        if leaking:
            self._find(
                "leak", "error", "Rows with the same content are in several splits: accuracy is overstated", leaking
            )
        if contradicting:
            self._find("contradiction", "error", "Rows with the same content have different targets", contradicting)
        if twice:
            self._find("duplicates", "warning", "Rows with the same content are there several times", twice)
        self._shared_items(digests, in_leaks)

    def _shared_items(self, digests: Sequence[Mapping[str, bytes]], in_leaks: set[int]) -> None:
        for name, modality in self._rows.spec.modalities.items():
            if len(self._rows.spec.modalities) == 1:
                return
            of: defaultdict[bytes, list[int]] = defaultdict(list)
            for row, each in enumerate(digests):
                if each.get(name):
                    of[each[name]].append(row)
            cases = []
            for shared in of.values():
                splits = {self._rows.split[row] for row in shared}
                if len(splits) > 1 and not set(shared) <= in_leaks:
                    one_each = [
                        next(row for row in shared if self._rows.split[row] == split) for split in sorted(splits)
                    ]
                    cases.append(self._case(one_each, f"in {', '.join(sorted(splits))}", name))
            if cases:
                is_file = isinstance(modality, ImageModality | AudioModality)
                title = f"Items of {name!r} are in several splits"
                self._find("shared_items", "error" if is_file else "note", title, cases)

    def _digest(self, name: str, cell: str) -> bytes:
        found = self._prints[name].get(cell)
        return found.content if found is not None else b""

    def _drop_from_train(self, copies: Sequence[int], reason: str) -> list[int]:
        """Rows that `clean` takes out, so that what is measured on stays whole: those of train, or else of val."""
        for split in ("train", "val"):
            dropped = [row for row in copies if self._rows.split[row] == split]
            if dropped:
                self._exclude(dropped, reason)
                return dropped
        return []

    def _near(self) -> None:
        for name in self._rows.spec.modalities:
            first: dict[bytes, int] = {}
            for row, cell in enumerate(self._rows.items[name]):
                if cell and (digest := self._digest(name, cell)):
                    first.setdefault(digest, row)
            items = list(first.values())
            if len(items) > MAX_COMPARED:
                title = f"Only {MAX_COMPARED} of {len(items)} items of {name!r} were compared with each other"
                self._find("near", "note", title)
                items = items[:MAX_COMPARED]
            groups = joined([(items[i], items[j]) for i, j in self._near_pairs(name, items)])
            leaking, within = [], []
            for group in groups:
                splits = {self._rows.split[row] for row in group}
                if len(splits) > 1:
                    dropped = self._drop_from_train(group, f"its {name} is nearly one of another split")
                    leaking.append(self._case(group, f"in {', '.join(sorted(splits))}", name, dropped))
                else:
                    within.append(self._case(group, f"{len(group)} in {next(iter(splits))}", name))
            if leaking:
                title = f"Items of {name!r} are nearly the same as items of other splits"
                self._find("near_leak", "warning", title, leaking)
            if within:
                self._find("near", "note", f"Items of {name!r} are nearly the same", within)

    def _near_pairs(self, name: str, items: Sequence[int]) -> list[tuple[int, int]]:
        """Pairs of numbers in ``items``."""
        prints = [self._prints[name][self._rows.items[name][row]] for row in items]
        stage = f"comparing {name}"
        self._on_progress(stage, 0, len(items))
        modality = self._rows.spec.modalities[name]
        if isinstance(modality, TextModality):
            done = iter(range(1, len(items) + 1))
            return list(
                near_texts([each.text for each in prints], lambda: self._on_progress(stage, next(done), len(items)))
            )
        places = [i for i, each in enumerate(prints) if each.bits is not None]
        if not places:
            return []
        bits = np.stack([found for i in places if (found := prints[i].bits) is not None])
        most = _NEAR_PICTURE_BITS if isinstance(modality, ImageModality) else _NEAR_SOUND_BITS
        pairs = [(places[i], places[j]) for i, j in near_bits(bits, most)]
        self._on_progress(stage, len(items), len(items))
        return [(i, j) for i, j in pairs if _look_alike(prints[i], prints[j])]

    def _give_aways(self) -> None:
        rows = self._rows
        known = [i for i, target in enumerate(rows.target) if target is not None]
        if len(known) < _MIN_ROWS:
            return
        labels = np.array([target.best for target in rows.target if target is not None], np.int64)
        groups = [rows.group[i] for i in known]
        inputs = {column for name, columns in rows.sources.items() if len(columns) > 1 for column in columns}
        properties = dict(self._properties())
        for number, ((kind, name), values) in enumerate(properties.items(), 1):
            self._on_progress("looking for give-aways", number, len(properties))
            power = predictive_power([values[i] for i in known], labels, groups)
            if power < GIVES_AWAY:
                continue
            is_input = kind == "column" and name in inputs
            way_out = {
                "column": "never make it an input" if not is_input else "leave it out of data.columns",
                "file": "make the files alike before the model learns this instead",
                "name": "it is no input; see that the split is not made by it",
                "order": "it is no input; rows are drawn in another order",
                "missing": "the model will learn what is missing instead of what is there",
            }[kind]
            told: Severity = "note" if kind in ("name", "order") else "error" if is_input else "warning"
            title = (
                f"{kind} {name!r} alone gives the target away ({power:.0%} of the way from chance to always): {way_out}"
            )
            self._find("give_away", told, title)

    def _properties(self) -> Iterable[tuple[tuple[str, str], list[str]]]:
        """Properties of every row that should say nothing about its target, as text."""
        rows = self._rows
        config = rows.config
        texts = {
            column
            for name, modality in rows.spec.modalities.items()
            if isinstance(modality, TextModality)
            for column in rows.sources[name]
        }
        pointers = {column for columns in rows.sources.values() if len(columns) == 1 for column in columns} - texts
        meant = {
            rows.target_column,
            config.split,
            config.group,
            config.user,
            config.slice,
            config.weight,
            *texts,
            *pointers,
        }
        for column, cells in rows.table.columns.items():
            if column not in meant and not column.endswith(LABEL_SUFFIX):
                yield ("column", column), cells
        for name, modality in rows.spec.modalities.items():
            cells = list(rows.items[name])
            if any(cells) and not all(cells):
                yield ("missing", name), ["yes" if cell else "no" for cell in cells]
            if isinstance(modality, TextModality):
                continue
            facts = [found.facts if (found := self._prints[name].get(cell)) is not None else {} for cell in cells]
            for fact in sorted({fact for each in facts for fact in each}):
                yield ("file", f"{name} {fact}"), [str(each.get(fact, "")) for each in facts]
            if isinstance(modality, ImageModality | AudioModality):
                yield ("name", name), [_DIGITS.sub("", PurePosixPath(cell).stem.rpartition("#")[2]) for cell in cells]
        yield ("order", "row"), [str(row) for row in range(len(rows))]

    def _noise(self) -> None:
        rows = self._rows
        chosen = [i for i in range(len(rows)) if rows.target[i] is not None and i not in self._excluded]
        if len(chosen) > MAX_NOISE_ROWS:
            chosen = chosen[:: -(-len(chosen) // MAX_NOISE_ROWS)]
        labels = np.array([target.best for i in chosen if (target := rows.target[i]) is not None], np.int64)
        if len(chosen) < _MIN_ROWS or len(np.unique(labels)) < 2:
            return
        self._on_progress("looking for wrong labels", 0, 1)
        dense, texts = [], []
        for name, modality in rows.spec.modalities.items():
            prints = [self._prints[name].get(rows.items[name][i]) for i in chosen]
            if isinstance(modality, TextModality):
                texts.append([each.text if each is not None else "" for each in prints])
                continue
            size = max(
                (len(each.features) for each in prints if each is not None and each.features is not None), default=0
            )
            if size:
                block = np.zeros((len(chosen), size), np.float32)
                for i, each in enumerate(prints):
                    if each is not None and each.features is not None:
                        block[i, : len(each.features)] = each.features
                dense.append(block)
        if not dense and not texts:
            return
        noise = label_noise(feature_matrix(dense, texts), labels, [rows.group[i] for i in chosen])
        self._on_progress("looking for wrong labels", 1, 1)
        if noise.accuracy < noise.chance + _ABOVE_CHANCE * (1.0 - noise.chance):
            title = f"Cheap features tell actions apart too badly ({noise.accuracy:.0%}) to say which labels look wrong"
            self._find("label_noise", "note", title)
            return
        actions = rows.spec.actions
        cases = [
            self._case(
                [chosen[i]], f"{rows.target_text(chosen[i])!r}, and looks like {actions[other]!r} ({margin:.2f})"
            )
            for i, other, margin in noise.suspects
        ]
        if cases:
            title = (
                f"Labels look wrong to a model of cheap features that is right in {noise.accuracy:.0%}: look at them"
            )
            self._find("label_noise", "note", title, cases)

    def _thumbnails(self) -> dict[int, bytes]:
        pictures = [n for n, each in self._rows.spec.modalities.items() if isinstance(each, ImageModality)]
        made: dict[int, bytes] = {}
        for row, column in self._shown:
            if row in made or len(made) >= _THUMBNAILS:
                continue
            for name in sorted(pictures, key=lambda name: name != column):
                cell = self._rows.items[name][row]
                if cell not in self._prints[name]:
                    continue
                try:
                    content: Any = self._reader.content(cell, name)
                    data = content if isinstance(content, bytes) else encoded(content, self._rows.spec.modalities[name])
                    made[row] = thumbnail(data)
                    break
                except UnusableItem:
                    continue
        return made


def _look_alike(one: Fingerprint, other: Fingerprint) -> bool:
    """False where a hash has found two pictures that are not alike after all."""
    if one.sketch is None or other.sketch is None:
        return True
    difference = np.abs(one.sketch.astype(np.int16) - other.sketch.astype(np.int16))
    return float(difference.mean()) <= _NEAR_PICTURE_GREY


def statistics(rows: Rows, prints: Mapping[str, Mapping[str, Fingerprint]]) -> DataStatistics:
    """Sizes of a data set, of the items that were read."""
    balance: dict[str, Counter[str]] = {action: Counter() for action in rows.spec.actions}
    for split, target in zip(rows.split, rows.target, strict=True):
        for action in target.shares if target is not None else ():
            balance[rows.spec.actions[action]][split] += 1
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for split, group in zip(rows.split, rows.group, strict=True):
        if group:
            groups[split].add(group)
    modalities: dict[str, dict[str, Any]] = {}
    for name, cells in rows.items.items():
        found = prints.get(name, {})
        modalities[name] = {
            "kind": rows.spec.modalities[name].kind,
            "rows": sum(map(bool, cells)),
            "distinct": len(set(filter(None, cells))),
            **_facts([each.facts for each in found.values()]),
        }
    return DataStatistics(
        rows=dict(Counter(rows.split)),
        groups={split: len(names) for split, names in groups.items()},
        balance={action: dict(counts) for action, counts in balance.items()},
        modalities=modalities,
        made_splits=rows.made_splits,
    )


def _facts(facts: Sequence[Mapping[str, float | str]]) -> dict[str, Any]:
    """Least, middle and largest value of each number; counts of each word."""
    told: dict[str, Any] = {}
    for name in sorted({name for each in facts for name in each}):
        values = [each[name] for each in facts if name in each]
        numbers = [value for value in values if isinstance(value, float)]
        if numbers:
            low, middle, high = np.percentile(numbers, [0, 50, 100])
            told[name] = {"least": float(low), "median": float(middle), "most": float(high)}
        else:
            told[name] = dict(Counter(map(str, values)).most_common(10))
    return told
