"""`plaudit data`: what it prints, writes and exits with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from support.shell import Shell, run_plaudit

SETTINGS = """
[model]
name = "pets"
actions = ["cat", "dog"]
modalities.note.kind = "text"
"""
CLEAN = ("train,cat,purr,a", "train,dog,woof,b", "val,cat,meow,c", "test,dog,growl,d")
COPY = ("train,dog,growl,e",)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """``shell("check", "set")`` in a folder with settings and the empty folder ``set``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plaudit.toml").write_text(SETTINGS)
    (tmp_path / "set").mkdir()
    return partial(run_plaudit, monkeypatch, capsys, "data")


def write(folder: Path, *lines: str) -> None:
    (folder / "set/manifest.csv").write_text("\n".join(["split,action,note,group", *lines]))


def test_check_of_a_sound_set_ends_with_0(shell: Shell, tmp_path: Path) -> None:
    write(tmp_path, *CLEAN)
    done = shell("check", "set")
    assert done.code == 0, done.err
    assert "rows: train 2 (2 groups), val 1 (1 groups), test 1 (1 groups)" in done.out
    assert "✓ nothing was found" in done.out


def test_check_ends_with_1_for_an_error_and_says_where(shell: Shell, tmp_path: Path) -> None:
    write(tmp_path, *CLEAN, *COPY, "train,cow,moo,f")
    done = shell("check", "set", "--html", "report.html")
    assert done.code == 1
    assert "✗ Rows with the same content are in several splits: accuracy is overstated (1)" in done.out
    assert "manifest.csv, line 5; set/manifest.csv, line 6: in test, train" in done.out
    assert "line 7, action: 'cow': is not an action of 'pets'" in done.out
    assert "&#x27;cow&#x27;" in (tmp_path / "report.html").read_text()


def test_check_as_json(shell: Shell, tmp_path: Path) -> None:
    write(tmp_path, *CLEAN, *COPY)
    done = shell("check", "set", "--json")
    report = json.loads(done.out)
    assert (done.code, report["worst"], report["excluded"]) == (1, "error", 1)
    assert [finding["check"] for finding in report["findings"]] == ["leak"]


def test_warnings_count_where_they_are_asked_for(shell: Shell, tmp_path: Path) -> None:
    write(tmp_path, *CLEAN, "train,cat,purr,a")
    assert shell("check", "set").code == 0
    assert shell("check", "set", "--strict").code == 1


def test_stats(shell: Shell, tmp_path: Path) -> None:
    write(tmp_path, *CLEAN)
    done = shell("stats", "set", "--json")
    assert json.loads(done.out)["balance"] == {"cat": {"train": 1, "val": 1}, "dog": {"train": 1, "test": 1}}
    assert "dog: train 1, test 1" in shell("stats", "set").out


def test_clean_writes_a_list_that_the_next_check_obeys(shell: Shell, tmp_path: Path) -> None:
    write(tmp_path, *CLEAN, *COPY)
    before = (tmp_path / "set/manifest.csv").read_bytes()
    done = shell("clean", "set", "--output", "set/exclude.csv")
    assert done.code == 0, done.err
    assert "1 of 5 rows are listed in set/exclude.csv; nothing was deleted" in done.out
    assert (tmp_path / "set/manifest.csv").read_bytes() == before
    (tmp_path / "plaudit.toml").write_text(SETTINGS + '[data]\nexclude = "exclude.csv"\n')
    assert shell("check", "set").code == 0


def test_a_folder_without_a_manifest(shell: Shell) -> None:
    done = shell("check", "set")
    assert done.code == 1
    assert done.err.startswith("plaudit: set/manifest.csv: there is none")
