"""The commands about dead letters and orphans, on a data directory with a real log and store."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.store.engine import sqlite_url
from plaudit.adapters.store.sql import SqlStore
from plaudit.core.events import DeadLetter, Decision, Features, Feedback, Thumb
from plaudit.core.experience import FeedbackState
from plaudit.core.ports.store import IngestBatch, StoredFeedback
from plaudit.core.wire import encode_event
from support.builders import NOW_S, a_decision, some_feedback
from support.shell import Shell, run_plaudit

CONFIG = """
[model]
name = "tiny"
actions = ["cat", "dog"]
[model.modalities.question]
kind = "text"
max_tokens = 8
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "plaudit.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


@pytest.fixture
def shell(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    place = ("--config", str(data_dir / "plaudit.toml"), "--data-dir", str(data_dir))
    return lambda *arguments: run_plaudit(monkeypatch, capsys, *arguments, *place)


def bury(data_dir: Path, *letters: DeadLetter) -> None:
    log = SqliteLog(data_dir / "log.sqlite")
    log.append(letters)
    log.close()


def topics(data_dir: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(data_dir / "log.sqlite") as connection:
        found = connection.execute("SELECT topic, event_id FROM events ORDER BY id").fetchall()
    connection.close()
    return [(topic, id_) for topic, id_ in found if topic != "plaudit.dead-letter"]


FINE = DeadLetter(
    "plaudit.feedback",
    "17",
    "from a newer Plaudit",
    encode_event(some_feedback("p1", Thumb(up=True), feedback_id="f1")),
    2.0,
)
CORRUPT = DeadLetter("plaudit.feedback", "18", "unreadable", b"\xff\xff", 1.0)


def test_listed_are_place_time_size_reason_and_whether_they_can_be_used(shell: Shell, data_dir: Path) -> None:
    bury(data_dir, FINE, CORRUPT)
    code, out, _ = shell("deadletter", "list", "--json")
    assert code == 0
    assert json.loads(out) == [
        {"place": "plaudit.feedback:18", "time_s": 1.0, "size_bytes": 2, "reason": "unreadable", "usable": False},
        {
            "place": "plaudit.feedback:17",
            "time_s": 2.0,
            "size_bytes": len(FINE.payload),
            "reason": "from a newer Plaudit",
            "usable": True,
        },
    ]
    _, out, _ = shell("deadletter", "list")
    assert "plaudit.feedback:18  1970-01-01 00:00:01 UTC  2      no          unreadable" in out


def test_replayed_is_what_can_be_used_by_now(shell: Shell, data_dir: Path) -> None:
    bury(data_dir, FINE, CORRUPT)
    code, out, _ = shell("deadletter", "replay", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["replayed"] == ["plaudit.feedback:17"]
    assert list(answer["left"]) == ["plaudit.feedback:18"]
    assert topics(data_dir) == [("plaudit.feedback", "f1")]
    shell("deadletter", "replay")
    assert topics(data_dir) == [("plaudit.feedback", "f1")]


def test_one_can_be_named(shell: Shell, data_dir: Path) -> None:
    other = replace(FINE, source_position="19", payload=encode_event(some_feedback("p1", feedback_id="f2")))
    bury(data_dir, FINE, other, CORRUPT)
    assert shell("deadletter", "replay", "plaudit.feedback:19")[0] == 0
    assert topics(data_dir) == [("plaudit.feedback", "f2")]
    code, out, err = shell("deadletter", "replay", "plaudit.feedback:18")
    assert code == 1
    assert "not a readable record" in out
    assert "1 of 1 cannot be used by this Plaudit either" in err
    code, _, err = shell("deadletter", "replay", "nowhere:1")
    assert code == 1
    assert "no dead letter of 'nowhere:1'" in err


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (
            a_decision("p1", features=Features("aa", np.full(2, np.nan, np.float32), np.zeros(2, np.float32))),
            "features",
        ),
        (
            a_decision("p1", user_id="a\0b"),
            "not a readable record of plaudit.decisions: user_id: 'a\\x00b' has the control character U+0000",
        ),
        (a_decision("p1", user_group="a b"), "user_group: 'a b' is not a group label"),
        (some_feedback("p1", feedback_id="f\0"), "not a readable record of plaudit.feedback: feedback_id: "),
    ],
)
def test_what_can_be_read_and_not_used_is_left(
    shell: Shell, data_dir: Path, event: Decision | Feedback, problem: str
) -> None:
    topic = "plaudit.decisions" if isinstance(event, Decision) else "plaudit.feedback"
    bury(data_dir, DeadLetter(topic, "1", "?", encode_event(event), 1.0))
    _, out, _ = shell("deadletter", "replay", "--json")
    assert json.loads(out)["left"][f"{topic}:1"].startswith(problem)
    assert topics(data_dir) == []


def test_orphans_are_listed(shell: Shell, data_dir: Path) -> None:
    store = SqlStore(sqlite_url(data_dir / "experiences.sqlite"))
    orphan = some_feedback("gone", feedback_id="f1", user_id="ada", time_s=NOW_S)
    store.save_batch(
        IngestBatch(feedback=[StoredFeedback(orphan, FeedbackState.WAITING)], new_feedback=[orphan], waiting=1)
    )
    store.close()
    code, out, _ = shell("orphans", "--json")
    assert code == 0
    assert json.loads(out) == {
        "waiting": 1,
        "orphans": [{"feedback_id": "f1", "prediction_id": "gone", "user_id": "ada", "time_s": NOW_S}],
    }
    assert "1 pieces of feedback wait" in shell("orphans")[1]
