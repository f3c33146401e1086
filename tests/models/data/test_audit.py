"""An audit finds what was put into a data set on purpose, and little else; real sets are found to be what they say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from PIL import Image

from plaudit_models.data.audit.examine import Audit
from plaudit_models.data.audit.findings import AuditFinding, AuditReport
from plaudit_models.data.audit.neighbours import joined, near_bits, near_texts
from plaudit_models.data.audit.predictability import predictive_power
from plaudit_models.data.audit.report import exclusions, to_html, to_json
from plaudit_models.data.config import DataConfig
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.rows import Rows, read_rows
from plaudit_models.spec import AudioModality, ImageModality, Modality, ModelSpec, TextModality

PHOTO: Mapping[str, Modality] = {"photo": ImageModality(height=8, width=8)}
NOTE: Mapping[str, Modality] = {"note": TextModality(16)}
ACTIONS = ("cat", "dog")


def write(folder: Path, header: str, lines: Sequence[Sequence[object]]) -> None:
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(lines)


def audited(
    folder: Path,
    modalities: Mapping[str, Modality],
    actions: tuple[str, ...] = ACTIONS,
    config: DataConfig | None = None,
) -> tuple[Rows, AuditReport]:
    rows = read_rows(folder, ModelSpec("m", modalities, actions), config or DataConfig(ignore=["*"]))
    return rows, Audit(rows).run()


def found(report: AuditReport, check: str) -> list[AuditFinding]:
    return [finding for finding in report.findings if finding.check == check]


def cased(report: AuditReport, check: str) -> list[list[int]]:
    return [list(case.rows) for finding in found(report, check) for case in finding.cases]


def picture(seed: int, side: int = 64) -> npt.NDArray[np.uint8]:
    """Smooth random picture, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def test_copies_and_leaks_of_pictures_are_found(tmp_path: Path) -> None:
    """Of 12 pictures, 10 has the bytes of 0 (train and test), 11 is 1 as a smaller JPEG (train and val), and 9 has the
    bytes of 2, both in train."""
    for i in range(9):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    for copy, of in ((10, 0), (9, 2)):
        (tmp_path / f"{copy}.png").write_bytes((tmp_path / f"{of}.png").read_bytes())
    Image.fromarray(picture(1)).resize((48, 48)).save(tmp_path / "11.jpg", quality=60)
    names = [f"{i}.png" for i in range(11)] + ["11.jpg"]
    splits = ["train"] * 10 + ["test", "val"]
    write(
        tmp_path,
        "split,action,photo",
        [(s, ACTIONS[i % 2], n) for i, (s, n) in enumerate(zip(splits, names, strict=True))],
    )
    rows, report = audited(tmp_path, PHOTO)
    assert cased(report, "leak") == [[0, 10]]
    assert cased(report, "near_leak") == [[1, 11]]
    assert cased(report, "contradiction") == [[2, 9]]
    assert cased(report, "duplicates") == [[2, 9]]
    assert report.worst() == "error"
    assert set(report.excluded) == {0, 1}
    assert set(report.thumbnails) >= {0, 10, 1, 11}
    assert rows.split[10] == "test"


def tone(seed: int, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    """Sweeps that no other seed has, at 16 kHz."""
    rng = np.random.default_rng(seed)
    moments = np.arange(round(16_000 * seconds)) / 16_000
    sweeps = [
        np.sin(2 * np.pi * (rng.uniform(100, 6_000) + rng.uniform(-1_500, 1_500) * moments) * moments) for _ in range(5)
    ]
    envelope = np.interp(moments, np.linspace(0, seconds, 9), rng.uniform(0, 1, 9))
    return np.asarray(0.1 * np.sum(sweeps, axis=0) * envelope + 0.001 * rng.normal(size=len(moments)), np.float32)


def test_a_sound_that_was_encoded_again_is_found(tmp_path: Path) -> None:
    """Quieter, as MP3, at another rate, and with silence before it; ten others are told apart."""
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", tone(i), 16_000)
    soundfile.write(tmp_path / "again.mp3", 0.5 * tone(3), 16_000)
    soundfile.write(tmp_path / "padded.flac", np.concatenate([np.zeros(1_600, np.float32), tone(4)]), 16_000)
    names = [f"{i}.wav" for i in range(10)] + ["again.mp3", "padded.flac"]
    splits = ["train"] * 10 + ["test", "val"]
    write(
        tmp_path,
        "split,action,noise",
        [(s, ACTIONS[i % 2], n) for i, (s, n) in enumerate(zip(splits, names, strict=True))],
    )
    _, report = audited(tmp_path, {"noise": AudioModality(max_duration_s=2.0)})
    assert cased(report, "near_leak") == [[3, 10], [4, 11]]
    assert cased(report, "near") == []


def test_texts_that_differ_in_a_word_are_near_and_short_ones_are_not(tmp_path: Path) -> None:
    long = "the patient was seen in the ward on the third day after surgery and had no complaints at all"
    texts = [
        long,
        "yes",
        long.replace("third", "fourth"),
        "yes.",
        "something else altogether that nobody has written before",
    ]
    write(tmp_path, "split,action,note", [("test" if i == 2 else "train", "cat", text) for i, text in enumerate(texts)])
    _, report = audited(tmp_path, NOTE)
    assert cased(report, "near_leak") == [[0, 2]]
    assert cased(report, "leak") == []


def test_unreadable_items_and_wrong_cells_are_listed_with_their_rows(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    write(
        tmp_path,
        "split,action,photo",
        [
            ("train", "cat", "a.png"),
            ("train", "dog", "cut.png"),
            ("train", "dog", "gone.png"),
            ("train", "cow", "a.png"),
        ],
    )
    rows, report = audited(tmp_path, PHOTO)
    assert cased(report, "unreadable") == [[1], [2]]
    assert [case.places[0] for case in found(report, "unreadable")[0].cases] == [
        f"{tmp_path}/manifest.csv, line 3",
        f"{tmp_path}/manifest.csv, line 4",
    ]
    assert cased(report, "cells") == [[3]]
    listed = list(csv.DictReader(io.StringIO(exclusions(report, rows))))
    assert [line["place"].rpartition(" ")[2] for line in listed] == ["3", "4", "5"]
    assert (tmp_path / "cut.png").exists()


def test_rows_that_clean_lists_are_left_out_and_an_old_list_is_refused(tmp_path: Path) -> None:
    lines = [("train", "cat", f"text number {i % 4} is here") for i in range(6)]
    write(tmp_path, "split,action,note", lines)
    rows, report = audited(tmp_path, NOTE)
    assert set(report.excluded) == {4, 5}
    (tmp_path / "exclude.csv").write_text(exclusions(report, rows))
    config = DataConfig(exclude="exclude.csv")
    spec = ModelSpec("m", NOTE, ACTIONS)
    left = read_rows(tmp_path, spec, config)
    assert list(left.items["note"]) == [line[2] for line in lines[:4]]
    assert left.table.place(3).endswith("line 5")
    write(tmp_path, "split,action,note", lines[:4])
    with pytest.raises(InvalidData, match=r"exclude\.csv: 2 of its 2 rows are not in .*write it again"):
        read_rows(tmp_path, spec, config)


def test_groups_in_several_splits(tmp_path: Path) -> None:
    lines = [("train", "cat", "one", "ada"), ("test", "dog", "two", "ada"), ("val", "dog", "three", "bob")]
    write(tmp_path, "split,action,note,group", lines)
    _, report = audited(tmp_path, NOTE)
    (finding,) = found(report, "group_leak")
    assert finding.cases[0].text == "'ada': 1 train, 1 test"
    assert set(report.excluded) == {0}


@pytest.mark.parametrize(
    ("actions", "lines", "title"),
    [
        (ACTIONS, [("train", "cat", "a"), ("val", "dog", "b")], "All training rows have the one action 'cat'"),
        ((*ACTIONS, "emu"), [("train", "cat", "a"), ("train", "dog", "b")], "No training row has 'emu'"),
        (ACTIONS, [("val", "cat", "a"), ("val", "dog", "b")], "No row has split 'train'"),
        (
            ACTIONS,
            [("train", "cat", f"x{i}") for i in range(41)] + [("train", "dog", "b")],
            "'cat' has 41 training rows",
        ),
    ],
)
def test_balance(tmp_path: Path, actions: tuple[str, ...], lines: list[tuple[str, ...]], title: str) -> None:
    write(tmp_path, "split,action,note", lines)
    _, report = audited(tmp_path, NOTE, actions)
    assert any(finding.title.startswith(title) for finding in found(report, "balance"))


def test_a_column_and_a_file_property_that_give_the_target_away(tmp_path: Path) -> None:
    """Dogs are wider, so their files are larger; `confirmed_by` is known for cats alone; `age` says nothing."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(60):
        action = ACTIONS[int(rng.integers(2))]
        size = (40, 30) if action == "dog" else (30, 30)
        Image.fromarray(picture(i)).resize(size).save(tmp_path / f"{i}.png")
        lines.append(("train", action, f"{i}.png", "biopsy" if action == "cat" else "", rng.integers(90)))
    write(tmp_path, "split,action,photo,confirmed_by,age", lines)
    _, report = audited(tmp_path, PHOTO)
    titles = [finding.title for finding in found(report, "give_away")]
    assert [title.partition(" alone")[0] for title in titles] == [
        "column 'confirmed_by'",
        "file 'photo bytes'",
        "file 'photo width'",
    ]


def test_predictive_power_is_out_of_sample() -> None:
    """A name for each row predicts nothing; a category does; chance is near 0."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 600)
    groups = [""] * 600
    assert predictive_power([f"id{i}" for i in range(600)], labels, groups) < 0.1
    assert predictive_power([str(rng.integers(5)) for _ in labels], labels, groups) < 0.15
    assert predictive_power([f"ward {label}" for label in labels], labels, groups) == pytest.approx(1.0)
    assert predictive_power([str(10.0 * label + rng.normal()) for label in labels], labels, groups) > 0.95
    assert predictive_power(["same"] * 600, labels, groups) == 0.0


def test_wrong_labels_are_suspected(tmp_path: Path) -> None:
    """20 of 400 labels were turned round."""
    rng = np.random.default_rng(2)
    words = {"cat": ["meow", "purr", "whisker", "tabby"], "dog": ["woof", "bark", "leash", "fetch"]}
    lines, wrong = [], set(rng.choice(400, 20, replace=False).tolist())
    for i in range(400):
        action = ACTIONS[i % 2]
        text = " ".join([*rng.choice(words[action], 2), *rng.choice(["the", "one", "there", "again"], 3), f"n{i}"])
        lines.append(("train", ACTIONS[(i + 1) % 2] if i in wrong else action, text))
    write(tmp_path, "split,action,note", lines)
    _, report = audited(tmp_path, NOTE)
    suspects = {case[0] for case in cased(report, "label_noise")}
    assert len(suspects & wrong) >= 18
    assert len(suspects - wrong) <= 2


def test_a_clean_set_has_no_findings_of_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lines = [
        (
            ("train", "train", "val", "test")[i % 4],
            ACTIONS[int(rng.integers(2))],
            " ".join(rng.choice(list("abcdefgh"), 12)),
        )
        for i in range(80)
    ]
    write(tmp_path, "split,action,note", lines)
    _, report = audited(tmp_path, NOTE)
    assert [finding for finding in report.findings if finding.severity != "note"] == []


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_is_one_file_and_what_comes_from_the_data_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=https://example.org/x>"
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    lines = [("train", "cat", "a.png", evil), ("test", "dog", "a.png", evil), ("train", evil, "a.png", "")]
    write(tmp_path, "split,action,photo,group", lines)
    _, report = audited(tmp_path, PHOTO)
    page = _Tags()
    page.feed(to_html(report))
    assert "script" not in page.tags
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "&lt;script&gt;" in to_html(report)
    assert json.loads(json.dumps(to_json(report)))["worst"] == "error"


def test_progress_is_told_for_every_item(tmp_path: Path) -> None:
    write(
        tmp_path,
        "split,action,note",
        [("train", ACTIONS[i % 2], f"text {i} of a long series of texts") for i in range(30)],
    )
    told: list[tuple[str, int, int]] = []
    rows = read_rows(tmp_path, ModelSpec("m", NOTE, ACTIONS), DataConfig())
    Audit(rows, lambda stage, done, n: told.append((stage, done, n))).run()
    assert ("reading items", 30, 30) in told
    assert ("comparing note", 30, 30) in told


def test_near_bits_compares_all_pairs() -> None:
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2**64, (300, 2), dtype=np.uint64)
    bits[250] = bits[3] ^ np.array([0b111, 0], np.uint64)
    assert list(near_bits(bits, 3)) == [(3, 250)]
    assert list(near_bits(bits, 2)) == []
    assert joined([(1, 2), (5, 6), (2, 9)]) == [[1, 2, 9], [5, 6]]
    assert list(near_texts([])) == []


def test_real_sets_are_what_they_say(real_data: Path) -> None:
    """Digits by a held-out speaker: no leak. The pets' breed, and no file property, gives the label away."""
    config = DataConfig(columns={"photo": "images.zip#{file}"}, ignore=["*"])
    _, report = audited(real_data / "pets", {"photo": ImageModality(64, 64)}, config=config)
    assert [finding.title.partition(" alone")[0] for finding in found(report, "give_away")] == [
        "column 'breed'",
        "name 'photo'",
        "order 'row'",
    ]
    assert {finding.check for finding in report.findings} == {"give_away", "label_noise"}
    sounds = {"noise": AudioModality(max_duration_s=5.0)}
    config = DataConfig(columns={"noise": "{archive}#{file}"}, ignore=["*"])
    _, report = audited(real_data / "animal_sounds", sounds, config=config)
    assert found(report, "leak") + found(report, "group_leak") + found(report, "unreadable") == []
