"""Ledger with marks: the same answers as from reading all of it, whatever its lines and its index went through."""

from __future__ import annotations

import json
import os
import random
import sys
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest

from plaudit.adapters.registry import ledger as module
from plaudit.adapters.registry.ledger import Ledger
from plaudit.core.rollout import Rollout


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINES_PER_MARK", 4)
    monkeypatch.setattr(module, "_SAVE_EVERY", 2)


def line(generation: int, live: int | None, **fields: object) -> str:
    """As the release before wrote it, which knew of no marks."""
    return json.dumps(asdict(Rollout("tiny", generation, live=live)) | fields) + "\n"


def expected(lines: list[str]) -> list[Rollout]:
    """Rollouts that took effect: a line takes the place of all before it of its generation or a later one."""
    rollouts: list[Rollout] = []
    for each in lines:
        try:
            made = Rollout(**json.loads(each))
            rollouts = [rollout for rollout in rollouts if rollout.generation < made.generation] + [made]
        except (ValueError, TypeError):
            continue
    return rollouts


def check(ledger: Ledger, rollouts: list[Rollout], rng: random.Random) -> None:
    present = rollouts[-1].generation
    for after in (0, rng.randrange(present + 1), present):
        assert list(ledger.after(after, present)) == [each for each in rollouts if each.generation > after]
    for version in (1, rng.randrange(1, 60), 60):
        first = next((each for each in rollouts if each.live is not None and each.live >= version), None)
        assert ledger.first_live(version, present) == first


@pytest.mark.parametrize("seed", range(30))
def test_answers_are_those_of_all_lines(tmp_path: Path, short_blocks: None, seed: int) -> None:
    """Lines in the order of some history: refreshes, returns to old versions, writers that died before their line took
    effect, lines cut short, junk, and a rollout that was put back from a backup. One ledger follows all the time, one
    is opened anew with the saved marks, one without.
    """
    rng = random.Random(seed)
    file = tmp_path / "ledger.jsonl"
    following = Ledger(tmp_path)
    lines: list[str] = []
    generation = newest = 0
    for _ in range(rng.randrange(20, 150)):
        kind = rng.random()
        if kind < 0.05 and generation > 3:
            generation = rng.randrange(1, generation)  # put back
        elif kind < 0.15:
            newest += 1
            lines.append(line(generation + 1, newest, reason="died"))
        elif kind < 0.2:
            lines.append(line(generation + 1, newest)[: rng.randrange(5, 60)] + "\n")
        elif kind < 0.25:
            lines.append(rng.choice(["\n", "junk\n", "[]\n", "{}\n", '{"modell": 3}\n', "\x00" * 50 + "\n"]))
        newest += rng.random() < 0.5
        generation += 1
        live = newest if rng.random() < 0.8 else rng.choice([None, *range(1, newest + 1)])
        lines.append(line(generation, live or None))
        if rng.random() < 0.3:
            file.write_text("".join(lines))
            check(following, expected(lines), rng)
    file.write_text("".join(lines))
    check(following, expected(lines), rng)
    check(Ledger(tmp_path), expected(lines), rng)
    (tmp_path / "ledger.index").unlink(missing_ok=True)
    check(Ledger(tmp_path), expected(lines), rng)


@pytest.mark.parametrize("damage", ["empty", "half", "one byte", "of other lines", "a folder"])
def test_marks_that_are_wrong_are_made_again(tmp_path: Path, short_blocks: None, damage: str) -> None:
    lines = [line(n, n) for n in range(1, 50)]
    (tmp_path / "ledger.jsonl").write_text("".join(lines))
    assert Ledger(tmp_path).first_live(30, 49) == Rollout("tiny", 30, live=30)
    index = tmp_path / "ledger.index"
    saved = index.read_bytes()
    match damage:
        case "empty":
            index.write_bytes(b"")
        case "half":
            index.write_bytes(saved[: len(saved) // 2])
        case "one byte":
            index.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
        case "of other lines":
            lines = [line(n, n, reason="another history") for n in range(1, 50)]
            (tmp_path / "ledger.jsonl").write_text("".join(lines))
        case "a folder":
            index.unlink()
            index.mkdir()
    check(Ledger(tmp_path), expected(lines), random.Random(0))


def test_a_ledger_that_is_put_back_is_followed(tmp_path: Path, short_blocks: None) -> None:
    """A backup is copied over it: shorter at first, then longer than before, under a name that stays."""
    lines = [line(n, n) for n in range(1, 50)]
    file = tmp_path / "ledger.jsonl"
    file.write_text("".join(lines))
    following = Ledger(tmp_path)
    check(following, expected(lines), random.Random(0))
    lines = [line(n, 1) for n in range(1, 20)]
    file.write_text("".join(lines))
    check(following, expected(lines), random.Random(0))
    lines = [line(n, 2, reason="longer") for n in range(1, 60)]
    file.write_text("".join(lines))
    check(following, expected(lines), random.Random(0))
    file.unlink()
    assert (list(following.after(0, 100)), following.first_live(1, 100)) == ([], None)


def test_a_line_that_is_being_written_waits(tmp_path: Path, short_blocks: None) -> None:
    whole = [line(n, n) for n in range(1, 10)]
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(tmp_path)
    for cut in (1, 30, len(whole[-1]) - 1):
        file.write_text("".join(whole[:-1]) + whole[-1][:cut])
        assert [each.generation for each in ledger.after(0, 9)] == list(range(1, 9))
    file.write_text("".join(whole))
    assert [each.generation for each in ledger.after(0, 9)] == list(range(1, 10))


def test_a_line_of_sixteen_mebibytes_is_read(tmp_path: Path) -> None:
    """Reasons had no bound once (THREATS H8), and such ledgers stay readable."""
    lines = [line(1, 1), line(2, 2, reason="é" * 2**20), line(3, 3)]
    (tmp_path / "ledger.jsonl").write_text("".join(lines))
    assert [len(each.reason) for each in Ledger(tmp_path).after(0, 3)] == [0, 2**20, 0]


def test_one_line_without_an_end_is_not_taken_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROLLOUT_BYTES", 1_000)
    lines = [line(1, 1), "x" * 5_500 + "\n", line(2, 2)]
    (tmp_path / "ledger.jsonl").write_text("".join(lines))
    assert [each.generation for each in Ledger(tmp_path).after(0, 2)] == [1, 2]


def test_memory_does_not_grow_with_the_ledger(tmp_path: Path) -> None:
    """20,000 rollouts are 4.5 MB of lines; the marks of them, 8 KB."""
    (tmp_path / "ledger.jsonl").write_text("".join(line(n, n) for n in range(1, 20_001)))
    ledger = Ledger(tmp_path)
    tracemalloc.start()
    assert ledger.first_live(15_000, 20_000) is not None
    assert sum(1 for _ in ledger.after(19_000, 20_000)) == 1_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 400_000


def test_a_process_that_dies_while_it_saves_marks_loses_nothing(tmp_path: Path, short_blocks: None) -> None:
    """Killed before each step that touches the file system, as by kill -9, while another one appends."""
    lines = [line(n, n) for n in range(1, 40)]
    file = tmp_path / "ledger.jsonl"
    deaths = 0
    for step in range(1_000):
        file.write_text("".join(lines))
        child = os.fork()
        if child == 0:
            left = step

            def die(event: str, args: object) -> None:
                nonlocal left
                if event.startswith(("open", "os.")):
                    if left == 0:
                        os._exit(9)
                    left -= 1

            sys.addaudithook(die)
            Ledger(tmp_path).first_live(1, 39)
            os._exit(0)
        with file.open("a") as appended:
            appended.write(line(40, 41))
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        deaths += died
        check(Ledger(tmp_path), expected([*lines, line(40, 41)]), random.Random(step))
        if not died:
            break
    assert deaths >= 3
