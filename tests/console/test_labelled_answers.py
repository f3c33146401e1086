"""The labelled answers in memory, answers up to date from a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest

from plaudit.console import labelled_answers
from plaudit.console.labelled_answers import LabelledAnswers
from plaudit.core.experience import DecisionHeader, Experience, Label
from plaudit.core.ports.store import ExperienceStore, IntakeStats

SERVED = DecisionHeader("p", 1.0, "ada", 1, "cat", 0.5, ("cat", "dog"), False, ("image",))


class Experiences:
    """The methods of an ExperienceStore that the console uses, over a list."""

    def __init__(self, *rewards: float | None) -> None:
        self.rows = [_experience(number, reward) for number, reward in enumerate(rewards, start=1)]
        self.asked = 0
        self.closed = False

    def experiences(
        self, *, after: int = 0, up_to: int | None = None, limit: int | None = None
    ) -> Sequence[Experience]:
        self.asked += 1
        return self.rows[after : None if limit is None else after + limit]

    def intake_stats(self) -> IntakeStats:
        return IntakeStats(last_number=len(self.rows))

    def close(self) -> None:
        self.closed = True


def _experience(number: int, reward: float | None) -> Experience:
    return Experience(number, SERVED, None if reward is None else Label({"cat": reward}, 1.0))


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 10.0
        return self.now_s


def _labelled(open_store: Callable[[], Experiences | None], clock: Callable[[], float]) -> LabelledAnswers:
    return LabelledAnswers(cast("Callable[[], ExperienceStore | None]", open_store), clock)


def _rewards(answers: LabelledAnswers) -> list[float]:
    return [answer.reward for answer in answers.latest()]


def test_new_answers_and_changed_labels_are_seen() -> None:
    store = Experiences(1.0, 0.0)
    answers = _labelled(lambda: store, Clock())
    assert _rewards(answers) == [1.0, 0.0]
    store.rows[0] = _experience(1, 0.25)
    store.rows.append(_experience(3, None))
    store.rows.append(_experience(4, 0.75))
    assert _rewards(answers) == [0.25, 0.0, 0.75]


def test_only_the_latest_are_cached_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_answers, "CACHED", 3)
    store = Experiences(0.1, 0.2, 0.3, 0.4, 0.5)
    answers = _labelled(lambda: store, Clock())
    assert _rewards(answers) == [0.3, 0.4, 0.5]
    store.rows.append(_experience(6, 0.6))
    assert _rewards(answers) == [0.4, 0.5, 0.6]


def test_it_reads_once_a_second_however_many_look() -> None:
    store = Experiences(1.0)
    answers = _labelled(lambda: store, lambda: 5.0)
    answers.latest()
    asked = store.asked
    answers.latest()
    assert store.asked == asked


def test_it_waits_for_a_store_and_lets_it_go() -> None:
    stores: list[Experiences] = []
    answers = _labelled(lambda: stores[0] if stores else None, Clock())
    answers.close()
    assert _rewards(answers) == []
    stores.append(Experiences(1.0))
    assert _rewards(answers) == [1.0]
    answers.close()
    assert stores[0].closed
