"""plaudit raters, in this process, on a learner's store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from plaudit.cli import main
from plaudit.compose.store import experience_store
from plaudit.core.ports.store import ExperienceStore, LeaderCommit
from plaudit.core.settings import Settings
from plaudit.learner.state import LearnerState
from plaudit_models.evaluation.raters import Raters

Shell = Callable[..., str]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """``shell("list", "--json")``: what `plaudit raters list --json` prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(
            sys, "argv", ["plaudit", "raters", *arguments, "--model", "tiny", "--data-dir", str(tmp_path)]
        )
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExperienceStore]:
    """A learner's, which has heard of ada and caught mallory."""
    store = experience_store(Settings(data_dir=tmp_path, model={}), "tiny")
    _, raters = Raters().admit(["ada"] * 3 + ["mallory"] * 2, cap=0.5)
    raters, _ = raters.observe(["ada"] * 2, np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.ones(2))
    store.lead()
    store.save(LeaderCommit(state={"raters": raters.set_trust_level("mallory", "quarantined").to_bytes()}))
    yield store
    store.close()


def test_the_list_says_who_counts_for_what(shell: Shell, store: ExperienceStore) -> None:
    """Ada agrees with what is beyond doubt: (1 + 0.8·4)/(1 + 4) = 0.84, reliability 0.92."""
    ada, mallory = json.loads(shell("list", "--json"))[::-1]
    assert (ada["user"], ada["n"], ada["trust_level"]) == ("ada", 1, "heard")
    assert (mallory["user"], mallory["trust_level"]) == ("mallory", "quarantined")
    assert ada["reliability"] == pytest.approx(0.92)
    assert [row["user"] for row in json.loads(shell("list", "--quarantined", "--json"))] == ["mallory"]
    table = shell("list")
    assert "mallory" in table
    assert "quarantined" in table


def test_suspects_are_listed_with_their_group(shell: Shell, store: ExperienceStore) -> None:
    """Bo is of a group of one, so only people quarantine."""
    raters = LearnerState(store).raters
    for i in range(5):
        raters, _ = raters.observe([f"user {i}"], np.ones(1), np.ones(1), np.ones(1))
    expected = np.resize([0.9, 0.1], 40)
    raters, caught = raters.observe(["bo"] * 40, 1.0 - expected, expected, np.ones(40), ["deaf"] * 40)
    assert caught == ()
    store.save(LeaderCommit(state={"raters": raters.to_bytes()}))
    (bo,) = json.loads(shell("list", "--suspected", "--json"))
    assert (bo["user"], bo["group"], bo["suspected"], bo["trust_level"]) == ("bo", "deaf", True, "heard")
    assert "heard, suspected" in shell("list", "--suspected")


def test_commands_wait_for_the_learner(shell: Shell, store: ExperienceStore) -> None:
    assert "mallory: trusted, from the learner's next batch on" in shell("release", "mallory")
    assert json.loads(shell("quarantine", "ada", "--json")) == {"user": "ada", "trust_level": "quarantined"}
    commands = store.pending_commands()
    assert [(c.user_id, c.trust_level) for c in commands] == [("mallory", "trusted"), ("ada", "quarantined")]
    store.save(LeaderCommit(commands=commands))
    assert store.pending_commands() == []
    shell("quarantine", "mallory")
    assert [(c.user_id, c.trust_level) for c in store.pending_commands()] == [("mallory", "quarantined")]
