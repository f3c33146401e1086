"""Seats of a folder: one process each, and what they are called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.core.errors import LogUnavailable

TAKES_A_SLOT = (
    "import sys; from pathlib import Path; from plaudit.adapters.log.process_slot import ProcessSlot; "
    "slot = ProcessSlot(Path(sys.argv[1])); "
)


def test_every_process_has_a_slot_and_a_name_of_its_own(tmp_path: Path) -> None:
    slots = [ProcessSlot(tmp_path), ProcessSlot(tmp_path), ProcessSlot(tmp_path / "elsewhere")]
    assert [slot.number for slot in slots] == [0, 1, 0]
    assert len({slot.name() for slot in slots}) == 3
    for slot in slots:
        slot.release()


def test_the_next_owner_of_a_slot_has_the_name_of_the_one_before(tmp_path: Path) -> None:
    slot = ProcessSlot(tmp_path)
    name = slot.name()
    assert slot.name() == name
    slot.release()
    slot.release()
    after = ProcessSlot(tmp_path)
    assert (after.number, after.name()) == (0, name)
    after.release()


def test_kill_9_frees_the_slot(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKES_A_SLOT + "print(slot.name(), flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        beside = ProcessSlot(tmp_path)
        assert beside.number == 1
        other.kill()
        other.wait()
    after = ProcessSlot(tmp_path)
    assert (after.number, after.name()) == (0, name)
    after.release()
    beside.release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnavailable, match="file"):
        ProcessSlot(tmp_path / "file")
