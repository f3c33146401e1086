"""When users ask, on a clock that the test turns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from plaudit.demo.request_pacing import BEHIND_THUMBS, JOB_THUMBS, SILENT_S, RequestPacing, reason_to_pause


class Clock:
    """Clock on which time passes only in sleeps, and then at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        real_sleep = asyncio.sleep

        async def sleep(duration_s: float) -> None:
            self.now_s += duration_s
            await real_sleep(0)

        monkeypatch.setattr("plaudit.demo.request_pacing.asyncio.sleep", sleep)

    def __call__(self) -> float:
        return self.now_s


async def test_requests_are_due_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pacing, due_s = RequestPacing(0.5, clock), []
    for number in range(4):
        await pacing.wait_turn(number)
        due_s.append(clock())
    assert due_s == [100.0, 100.5, 101.0, 101.5]


async def test_no_request_is_sent_while_held_and_then_all_go_on_as_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pacing = RequestPacing(0.5, clock)
    await pacing.wait_turn(0)
    pacing.set_paused(True)
    waiting = asyncio.create_task(pacing.wait_turn(1))
    for _ in range(5):
        await asyncio.sleep(0.0)
    assert not waiting.done()
    clock.now_s += 60.0
    pacing.set_paused(True)  # told again and again
    pacing.set_paused(False)
    pacing.set_paused(False)
    await waiting
    assert clock() == 160.5
    await pacing.wait_turn(2)
    assert clock() == 161.0


@pytest.mark.parametrize(
    ("phase", "taken_in", "thumbs", "wait"),
    [
        ("idle", 5_000, 5_000, ""),
        ("training", 4_000 + JOB_THUMBS - 1, 4_000 + JOB_THUMBS - 1, ""),
        ("training", 4_000 + JOB_THUMBS, 4_000 + JOB_THUMBS, "fine-tuning job"),
        ("gating", 4_000 + JOB_THUMBS, 4_000 + JOB_THUMBS, ""),
        ("idle", 5_000, 5_000 + BEHIND_THUMBS - 1, ""),
        ("idle", 5_000, 5_000 + BEHIND_THUMBS, "learner"),
    ],
)
def test_users_wait_for_who_is_slow(phase: str, taken_in: int, thumbs: int, wait: str) -> None:
    finetune = {"phase": phase, "snapshot": 4_000}
    status: dict[str, Any] = {"time_s": 50.0, "feedback": taken_in, "finetune": finetune}
    assert wait in reason_to_pause(status, thumbs, now_s=50.0)
    assert bool(wait) == bool(reason_to_pause(status, thumbs, now_s=50.0))
    assert reason_to_pause(status, thumbs, now_s=51.0 + SILENT_S) == "", "it may never come back"


def test_users_do_not_wait_for_a_learner_that_has_said_nothing_or_never_fine_tunes() -> None:
    assert reason_to_pause({}, 10_000, now_s=50.0) == ""
    assert reason_to_pause({"time_s": 50.0, "feedback": 10_000, "finetune": None}, 10_000, now_s=50.0) == ""
