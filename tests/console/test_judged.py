"""The judged answers in memory, kept up to date from a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest

from plaudit.console import judged
from plaudit.console.judged import Judged, last_number
from plaudit.core.experience import DecisionHeader, Experience, Label
from plaudit.core.ports.store import ExperienceStore

SERVED = DecisionHeader("p", 1.0, "ada", 1, "cat", 0.5, ("cat", "dog"), False, ("image",))


class Experiences:
    """The one method of an ExperienceStore that the console uses, over a list."""

    def __init__(self, *rewards: float | None) -> None:
        self.rows = [_experience(number, reward) for number, reward in enumerate(rewards, start=1)]
        self.asked = 0
        self.closed = False

    def experiences(
        self, *, after: int = 0, up_to: int | None = None, limit: int | None = None
    ) -> Sequence[Experience]:
        self.asked += 1
        return self.rows[after : None if limit is None else after + limit]

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


def _judged(open_store: Callable[[], Experiences | None], clock: Callable[[], float]) -> Judged:
    return Judged(cast("Callable[[], ExperienceStore | None]", open_store), clock)


def _rewards(kept: Judged) -> list[float]:
    return [one.reward for one in kept.latest()]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 1000])
def test_the_last_number_is_found(n: int) -> None:
    store = Experiences(*[1.0] * n)
    assert last_number(cast("ExperienceStore", store)) == n
    assert store.asked < 30


def test_new_answers_and_changed_labels_are_seen() -> None:
    store = Experiences(1.0, 0.0)
    kept = _judged(lambda: store, Clock())
    assert _rewards(kept) == [1.0, 0.0]
    store.rows[0] = _experience(1, 0.25)
    store.rows.append(_experience(3, None))
    store.rows.append(_experience(4, 0.75))
    assert _rewards(kept) == [0.25, 0.0, 0.75]


def test_only_the_latest_are_kept_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "KEPT", 3)
    store = Experiences(0.1, 0.2, 0.3, 0.4, 0.5)
    kept = _judged(lambda: store, Clock())
    assert _rewards(kept) == [0.3, 0.4, 0.5]
    store.rows.append(_experience(6, 0.6))
    assert _rewards(kept) == [0.4, 0.5, 0.6]


def test_it_reads_once_a_second_however_many_look() -> None:
    store = Experiences(1.0)
    kept = _judged(lambda: store, lambda: 5.0)
    kept.latest()
    asked = store.asked
    kept.latest()
    assert store.asked == asked


def test_it_waits_for_a_store_and_lets_it_go() -> None:
    stores: list[Experiences] = []
    kept = _judged(lambda: stores[0] if stores else None, Clock())
    kept.close()
    assert _rewards(kept) == []
    stores.append(Experiences(1.0))
    assert _rewards(kept) == [1.0]
    kept.close()
    assert stores[0].closed
