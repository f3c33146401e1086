"""The rounds: one fault each at a random moment, then all services must catch up; at the end, everything is counted.

A fault ends when what was killed has been started again, what was paused goes on, the network is quick again. From
there, recovery lasts until something new is acknowledged, and the learner has taken in all that was up to then.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from benchmarks.measure import Measure
from faults.load import Users
from faults.world import World
from plaudit.core.events import Feedback
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from support.loop_recount import everything, recount

RECOVERY_S: Final = 10.0
GIVE_UP_S: Final = 120.0
_LOOK_S: Final = 0.05
_CALM_S: Final = 1.0
_JOB_S: Final = 3.0
"""Approximate duration of a job."""
_SLOW_S: Final = 0.3
"""Each way; three requests and answers take longer than an append may."""


@contextlib.contextmanager
def _service_killed(world: World, rng: random.Random) -> Iterator[None]:
    world.service.kill()
    yield
    world.start_service()


@contextlib.contextmanager
def _learner_killed(world: World, rng: random.Random) -> Iterator[None]:
    world.learner.kill()
    yield
    world.start_learner()


@contextlib.contextmanager
def _both_killed(world: World, rng: random.Random) -> Iterator[None]:
    with _service_killed(world, rng), _learner_killed(world, rng):
        yield


@contextlib.contextmanager
def _broker_killed(world: World, rng: random.Random) -> Iterator[None]:
    world.broker.kill()
    yield
    world.broker.start()


@contextlib.contextmanager
def _broker_paused(world: World, rng: random.Random) -> Iterator[None]:
    world.broker.pause()
    time.sleep(rng.uniform(0.5, 3.0))
    yield
    world.broker.resume()


@contextlib.contextmanager
def _network_slow(world: World, rng: random.Random) -> Iterator[None]:
    world.proxy.delay_s = _SLOW_S
    time.sleep(rng.uniform(1.0, 3.0))
    yield
    world.proxy.delay_s = 0.0


@contextlib.contextmanager
def _service_killed_in_outage(world: World, rng: random.Random) -> Iterator[None]:
    """With a spool that is not empty, which the next one hands on."""
    with _broker_paused(world, rng), _service_killed(world, rng):
        yield


@contextlib.contextmanager
def _job_killed(world: World, rng: random.Random) -> Iterator[None]:
    """Recovered when the learner knows; it starts another one when one is due."""
    _wait(world, lambda: world.kill_job(rng.uniform(0.0, _JOB_S)), "no job was due")
    yield


Fault = Callable[[World, random.Random], contextlib.AbstractContextManager[None]]

FAULTS: Final[Mapping[str, tuple[float, Fault]]] = {
    "service-killed": (3, _service_killed),
    "learner-killed": (3, _learner_killed),
    "both-killed": (1, _both_killed),
    "broker-killed": (2, _broker_killed),
    "broker-paused": (2, _broker_paused),
    "network-slow": (1, _network_slow),
    "service-killed-in-outage": (1, _service_killed_in_outage),
    "job-killed": (2, _job_killed),
}
"""Faults by name, each with its relative frequency."""


@dataclass
class Outcome:
    """Counts at the end.

    Attributes:
        recovered_s: durations of the recoveries, by fault.
        lost: acknowledged feedback that is not in the log, or not in the learner's store.
        twice: experiences more than a recount of the log finds.
        missing: experiences fewer.
        same_sums: whether the reward state is what the recount makes.
        jobs: fine-tuning jobs by how they ended.
    """

    recovered_s: dict[str, list[float]] = field(default_factory=dict)
    acknowledged: int = 0
    predictions: int = 0
    failures: int = 0
    lost: int = 0
    twice: int = 0
    missing: int = 0
    same_sums: bool = False
    jobs: Counter[str] = field(default_factory=Counter)
    orphans: int = 0
    repeated: int = 0

    def measures(self) -> list[Measure]:
        took_s = sorted(each for per_fault in self.recovered_s.values() for each in per_fault)
        rounds = ", ".join(f"{len(each)} × {name}" for name, each in self.recovered_s.items())
        users = (
            f"of {self.acknowledged}; {self.predictions} predictions, {self.failures} calls failed and were repeated"
        )
        log = f"{self.repeated} records of feedback are in the log again; {self.orphans} lost their decision"
        slowest = ", ".join(f"{name} {max(each):.1f}" for name, each in self.recovered_s.items())
        return [
            Measure("rounds", len(took_s), note=rounds),
            Measure("acknowledged feedback lost", self.lost, 0, "at_most", note=users),
            Measure("feedback counted twice", self.twice, 0, "at_most", note=log),
            Measure("feedback not counted", self.missing, 0, "at_most"),
            Measure("reward state differs from the recount", float(not self.same_sums), 0, "at_most"),
            Measure("slowest recovery", took_s[-1], RECOVERY_S, "at_most", note=slowest, unit="s"),
            Measure("median recovery", median(took_s), unit="s"),
            Measure(
                "fine-tuning jobs",
                self.jobs.total(),
                note=", ".join(f"{count} {how}" for how, count in self.jobs.items()),
            ),
        ]


def run(folder: Path, rounds: int, seed: int, only: Collection[str] = FAULTS) -> Outcome:
    """``only``: names of faults. Raises RuntimeError: a service ended by itself, or did not catch up."""
    rng = random.Random(seed)
    outcome = Outcome()
    world = World(folder)
    world.start()
    try:
        users = Users(world.address, seed)
        users.start()
        try:
            for number in range(rounds):
                name = rng.choices(list(only), [FAULTS[name][0] for name in only])[0]
                time.sleep(rng.uniform(0.0, _CALM_S))
                with FAULTS[name][1](world, rng):
                    time.sleep(rng.uniform(0.0, 0.2))
                took_s = _caught_up(world, users)
                outcome.recovered_s.setdefault(name, []).append(took_s)
                print(f"{number + 1:>4}  {name:<25} {took_s:5.1f} s", file=sys.stderr, flush=True)
                if took_s > RECOVERY_S:
                    for service in (world.service, world.learner):
                        print(service.logged()[-2000:], file=sys.stderr, flush=True)
        finally:
            users.stop()
        _taken_in(world, users)
        _all_learned(world)
        world.stop()
        outcome.acknowledged, outcome.predictions = len(users.acknowledged), users.predictions
        outcome.failures = users.failures
        outcome.jobs = Counter("killed" if run in world.killed_jobs else how for run, how in world.jobs.items())
        _count(world, users, outcome)
    finally:
        world.close()
    return outcome


def _caught_up(world: World, users: Users) -> float:
    """Seconds until something new is acknowledged, and the learner has taken in all that was and knows of its jobs."""
    began_s = time.monotonic()
    before = users.so_far()
    _wait(world, lambda: users.so_far() != before, "nothing new was acknowledged")
    _taken_in(world, users)
    _wait(world, lambda: not world.unnoticed_jobs(), "the learner has not noticed that its job was killed")
    return time.monotonic() - began_s


def _taken_in(world: World, users: Users) -> None:
    missing = users.so_far()

    def none_is_missing() -> bool:
        nonlocal missing
        missing = world.not_taken_in(missing)
        return not missing

    _wait(world, none_is_missing, "the learner has not taken in all that was acknowledged")


def _all_learned(world: World) -> None:
    """Wait until the leader has learned from all that was taken in."""

    def nothing_is_left() -> bool:
        learned = _progress(world).last_number
        return learned == world.store.intake_stats().last_number and not world.store.revisions(learned, 1)

    _wait(world, nothing_is_left, "the leader has not learned all that was taken in")


def _wait(world: World, done: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + GIVE_UP_S
    while not done():
        if time.monotonic() > deadline_s:
            logged = [service.logged()[-3000:] for service in (world.service, world.learner)]
            raise RuntimeError("\n".join([f"{otherwise} within {GIVE_UP_S:g} s", *logged]))
        time.sleep(_LOOK_S)


def _count(world: World, users: Users, outcome: Outcome) -> None:
    """Compare log, store and reward state; the services are stopped."""
    head = LearnerState(world.store).fixed_actions
    assert head is not None
    state = head.state
    with world.log() as log:
        expected, experiences = recount(log, world.settings.spec(), state.space)
        feedback = [event.feedback_id for event in everything(log) if isinstance(event, Feedback)]
    learned = _progress(world).experiences
    outcome.lost = len((users.acknowledged - set(feedback)) | world.not_taken_in(users.acknowledged))
    outcome.repeated = sum(count - 1 for count in Counter(feedback).values())
    outcome.orphans = world.store.intake_stats().waiting
    outcome.twice = max(0, learned - experiences)
    outcome.missing = max(0, experiences - learned)
    outcome.same_sums = all(
        np.allclose(ours, theirs, rtol=0.0, atol=1e-9)
        for ours, theirs in (
            (state.gram, expected.gram),
            (state.target, expected.target),
            (state.weight, expected.weight),
        )
    )


def _progress(world: World) -> Progress:
    return LearnerState(world.store).progress
