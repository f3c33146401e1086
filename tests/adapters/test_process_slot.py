"""Seats of a folder: one process each, and what they are called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.core.errors import LogUnavailable

SITS = (
    "import sys; from pathlib import Path; from plaudit.adapters.log.process_slot import ProcessSlot; "
    "seat = ProcessSlot(Path(sys.argv[1])); "
)


def test_every_process_has_a_slot_and_a_name_of_its_own(tmp_path: Path) -> None:
    seats = [ProcessSlot(tmp_path), ProcessSlot(tmp_path), ProcessSlot(tmp_path / "elsewhere")]
    assert [seat.number for seat in seats] == [0, 1, 0]
    assert len({seat.name() for seat in seats}) == 3
    for seat in seats:
        seat.leave()


def test_whoever_sits_down_next_has_the_name_of_the_one_before(tmp_path: Path) -> None:
    seat = ProcessSlot(tmp_path)
    name = seat.name()
    assert seat.name() == name
    seat.leave()
    seat.leave()
    after = ProcessSlot(tmp_path)
    assert (after.number, after.name()) == (0, name)
    after.leave()


def test_kill_9_frees_the_slot(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SITS + "print(seat.name(), flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        beside = ProcessSlot(tmp_path)
        assert beside.number == 1
        other.kill()
        other.wait()
    after = ProcessSlot(tmp_path)
    assert (after.number, after.name()) == (0, name)
    after.leave()
    beside.leave()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnavailable, match="file"):
        ProcessSlot(tmp_path / "file")
