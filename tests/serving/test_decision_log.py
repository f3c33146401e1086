"""DecisionLog: everything durable in time, no answer waits, dropped decisions are counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.errors import InvalidInput, LogUnavailable
from plaudit.core.events import Event, event_id_of
from plaudit.core.ports.log import Appended, AppendOutcome
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.telemetry.metrics import ServingMetrics
from support.builders import a_decision
from support.serving_harness import decisions

Counted = Callable[[str], float | None]
"""Value of a counter of decisions by the last word of its name."""


class MovableLog:
    """A log that is away until :meth:`come_back`.

    Attributes:
        tried: set once an append has failed.
    """

    def __init__(self) -> None:
        self.appended: list[Event] = []
        self.tried = threading.Event()
        self._there = threading.Event()

    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        if not self._there.is_set():
            self.tried.set()
            raise LogUnavailable("the disk is full")
        self.appended += events
        return [Appended(duplicate=False)] * len(events)

    def come_back(self) -> None:
        self._there.set()


class BrokenLog(MovableLog):
    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        raise ValueError("a bug")


def decision_log(log: MovableLog, metrics: ServingMetrics, *, queue_limit: int) -> DecisionLog:
    return DecisionLog(log.append, metrics, queue_limit=queue_limit)


@pytest.fixture
def counted(metrics: ServingMetrics) -> Counted:
    def count(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"plaudit_serving_decisions_{name}_total")

    return count


def test_everything_is_logged_in_order_at_close(log: SqliteLog, metrics: ServingMetrics, counted: Counted) -> None:
    queue = DecisionLog(log.append, metrics, queue_limit=1000)
    queue.start()
    made = [a_decision() for _ in range(600)]
    for decision in made:
        queue.record(decision)
    queue.close(timeout_s=30)
    assert [d.prediction_id for d in decisions(log)] == [d.prediction_id for d in made]
    assert (counted("logged"), counted("dropped")) == (600, 0)


def test_what_does_not_fit_is_dropped_and_counted(metrics: ServingMetrics, counted: Counted) -> None:
    queue = decision_log(MovableLog(), metrics, queue_limit=3)
    for _ in range(5):
        queue.record(a_decision())  # it was not started, so the queue stays full
    assert queue.waiting() == 3
    assert counted("dropped") == 2


def test_it_tries_again_until_the_log_is_back(metrics: ServingMetrics, counted: Counted) -> None:
    log = MovableLog()
    queue = decision_log(log, metrics, queue_limit=100)
    queue.start()
    made = [a_decision() for _ in range(3)]
    for decision in made:
        queue.record(decision)
    assert log.tried.wait(30)
    log.come_back()
    queue.close(timeout_s=30)
    assert log.appended == made
    assert (counted("logged"), counted("dropped")) == (3, 0)


def test_a_log_that_stays_away_does_not_hold_up_the_shutdown(metrics: ServingMetrics, counted: Counted) -> None:
    queue = decision_log(MovableLog(), metrics, queue_limit=1000)
    queue.start()
    for _ in range(600):
        queue.record(a_decision())
    queue.close(timeout_s=0)
    assert (counted("logged"), counted("dropped")) == (0, 600)


class PickyLog(MovableLog):
    """Does not take some events, and breaks down on others."""

    def __init__(self, refused: set[str], breaking: set[str]) -> None:
        super().__init__()
        self._refused = refused
        self._breaking = breaking

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:  # type: ignore[override]
        ids = [event_id_of(event) for event in events]
        if self._breaking & set(ids):
            raise ValueError("a bug that an event finds")
        self.appended += [event for event in events if event_id_of(event) not in self._refused]
        return [InvalidInput(id_, "is too large") if id_ in self._refused else Appended(False) for id_ in ids]


def test_an_event_that_the_log_does_not_take_costs_no_other(metrics: ServingMetrics, counted: Counted) -> None:
    log = PickyLog({"d3", "d11"}, {"d7"})
    queue = decision_log(log, metrics, queue_limit=100)
    for number in range(48):
        queue.record(a_decision(f"d{number}"))
    queue.start()
    queue.close(timeout_s=30)
    assert [event_id_of(event) for event in log.appended] == [f"d{n}" for n in range(48) if n not in (3, 7, 11)]
    assert (counted("logged"), counted("dropped")) == (45, 3)


def test_what_waits_for_the_log_is_not_what_was_logged_already(metrics: ServingMetrics, counted: Counted) -> None:
    """A log that goes away between the halves of a batch gets the rest again, and the first half once."""
    log = PickyLog(set(), {"d0"})
    appended, calls = log.append, list[int]()

    def append(events: Sequence[Event]) -> Sequence[AppendOutcome]:
        calls.append(len(events))
        if len(calls) == 3:
            raise LogUnavailable("away")
        return appended(events)

    queue = DecisionLog(append, metrics, queue_limit=100)
    for number in range(4):
        queue.record(a_decision(f"d{number}"))
    queue.start()
    queue.close(timeout_s=30)
    assert sorted(event_id_of(event) for event in log.appended) == ["d1", "d2", "d3"]
    assert (counted("logged"), counted("dropped")) == (3, 1)


def test_a_decision_that_loses_its_content_is_counted(metrics: ServingMetrics, counted: Counted) -> None:
    queue = DecisionLog(lambda events: [Appended(False, without_content=True)], metrics, queue_limit=9)
    queue.start()
    queue.record(a_decision())
    queue.close(timeout_s=30)
    assert (counted("logged"), counted("without_content")) == (1, 1)


def test_an_unexpected_error_costs_its_event_and_not_the_thread(metrics: ServingMetrics, counted: Counted) -> None:
    queue = decision_log(BrokenLog(), metrics, queue_limit=1000)
    queue.start()
    queue.record(a_decision())
    queue.close(timeout_s=30)
    assert counted("dropped") == 1
