"""Several learners on one log and one PostgreSQL store: they share the partitions, one of them leads, and whatever
happens to them nothing is lost and nothing counts twice. What is learned is compared with a recount of the log.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from plaudit.core.errors import StoreMoved
from plaudit.core.events import Decision, Retract, Thumb
from plaudit.learner.loop import Learner
from support.kafka_broker import Kafka
from support.loop_recount import recount
from support.loop_world import SPEC, World, assert_same_sums, reward_state
from support.partitioned_log import PartitionedLog
from support.postgres_server import PostgresServer

PARTITIONS = 4
PAUSE_S = 0.05
"""Between two looks at the store: without it a test takes the processor from the learners that it waits for."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "learner": {"batch": 8, "max_wait_s": 0.001, "poll_limit": 16},
    "finetune": {"enabled": False},
}


class Crew:
    """A world whose learners share its log and store."""

    def __init__(self, folder: Path, store_url: str) -> None:
        self._folder = folder / "log"
        self.log = PartitionedLog(self._folder, PARTITIONS)
        self.world = World(folder, settings=SETTINGS, log=self.log, store_url=store_url, lease_s=0.0)
        self.world.first_version()

    def learner(self, name: str) -> Learner:
        return self.world.learner(PartitionedLog(self._folder, PARTITIONS, name))

    def successor(self, name: str) -> Learner:
        """A learner that has waited for the lease of the dead to end, and has done what was left to do."""
        learner = self.learner(name)
        while not learner.leading:
            learner.step()
        settle(learner)
        return learner

    def traffic(self, n: int) -> list[Decision]:
        return self.world.traffic(n, lambda decision: decision.action == "fish")

    def check(self, learner: Learner, experiences: int) -> None:
        """Everything in the log has been learned once."""
        state = reward_state(learner)
        assert state is not None
        expected, count = recount(self.log, SPEC, state.space)
        assert_same_sums(state, expected)
        assert learner.state.progress.experiences == count == experiences
        assert learner.store.intake_stats().waiting == 0


@pytest.fixture
def crew(tmp_path: Path, postgres: PostgresServer) -> Iterator[Crew]:
    crew = Crew(tmp_path, postgres.create_database())
    yield crew
    crew.world.close()


def settle(*learners: Learner) -> None:
    while any([learner.step() for learner in learners]):
        pass


def test_each_reads_its_partitions_and_one_learns_all(crew: Crew) -> None:
    """The one that led last still does; it has learned what both have read."""
    crew.log.assign({"ada": [0, 1], "bob": [2, 3]})
    ada, bob = crew.learner("ada"), crew.learner("bob")
    crew.world.log.append([crew.world.say(d, Retract()) for d in crew.traffic(40)[:4]])
    while ada.consumer.step(SPEC.actions, 0.0):  # as long as it does not lead
        pass
    settle(bob)
    assert bob.leading
    assert set(crew.world.store.positions()) == {"0", "1", "2", "3"}
    crew.check(bob, 36)


def test_a_learner_that_does_not_lead_reads_all_the_same(crew: Crew) -> None:
    crew.world.lease_s = 3600.0
    crew.log.assign({"ada": [0], "bob": [1, 2, 3]})
    ada, bob = crew.learner("ada"), crew.learner("bob")
    crew.traffic(20)
    settle(bob)
    assert (ada.leading, bob.leading) == (True, False)
    assert bob.store.intake_stats().last_number > 0
    assert crew.world.registry.rollout().live == 1
    settle(ada)
    assert crew.world.registry.rollout().live != 1
    crew.check(ada, 20)


def test_partitions_change_hands_in_the_middle_of_a_batch(crew: Crew) -> None:
    """Ada has polled when Bob gets her partitions and reads the same: what she wanted to save is refused."""
    crew.log.assign({"ada": [0, 1, 2, 3], "bob": []})
    ada, bob = crew.learner("ada"), crew.learner("bob")
    crew.traffic(30)
    assert ada.consumer._reader is not None
    polled = ada.consumer._reader.poll(1_000, 0.0)
    crew.log.assign({"ada": [], "bob": [0, 1, 2, 3]})
    settle(bob)
    with pytest.raises(StoreMoved):
        ada.consumer._save(polled, SPEC.actions)
    ada._load()
    crew.log.assign({"ada": [0, 1, 2, 3], "bob": []})
    crew.traffic(10)
    settle(ada)
    crew.check(ada, 40)


def test_a_leader_that_was_replaced_while_it_learned_saves_nothing(crew: Crew) -> None:
    crew.log.assign({"ada": [0, 1], "bob": [2, 3]})
    ada, bob = crew.learner("ada"), crew.learner("bob")
    crew.traffic(30)
    settle(bob)
    crew.traffic(30)
    assert not ada._leads()  # it led before, so it has to begin again
    assert ada._leads()
    save, ada.state._store = ada.state._store, Interrupted(lambda: settle(bob), ada.state._store)  # type: ignore[assignment]
    with pytest.raises(StoreMoved):
        settle(ada)
    ada.state._store = save
    ada._load()
    settle(ada, bob)
    settle(ada)
    crew.check(ada, 60)


class Interrupted:
    """A store whose next save comes after something else has happened."""

    def __init__(self, first: object, store: object) -> None:
        self._first = first
        self._store = store

    def save(self, changes: object) -> None:
        self._first()  # type: ignore[operator]
        self._store.save(changes)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


LEARNER = textwrap.dedent("""
    import os, signal, sys, threading
    from pathlib import Path
    from support.kafka_broker import Kafka
    from support.loop_world import World
    from support.partitioned_log import PartitionedLog, PartitionedReader
    from plaudit.adapters.registry.directory import DirectoryRegistry
    from plaudit.adapters.store.sql import SqlStore

    PLACES = {
        "before taking in": (SqlStore, "save_batch", False),
        "before the log hears of it": (PartitionedReader, "commit", False),
        "before what was learned is saved": (SqlStore, "save", False),
        "after what was learned is saved": (SqlStore, "save", True),
        "before a version goes live": (DirectoryRegistry, "set_rollout", False),
    }
    folder, url, name, place = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]

    def deadly(original, after):
        calls = []
        def method(*arguments):
            calls.append(1)
            if len(calls) == 2 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments)
            if len(calls) == 2 and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return method

    if place in PLACES:
        cls, method, after = PLACES[place]
        setattr(cls, method, deadly(getattr(cls, method), after))
    log = Kafka(*sys.argv[5:]).log(partitions=%(n)d) if sys.argv[5:] else PartitionedLog(folder / "log", %(n)d, name)
    world = World(folder, settings=%(settings)r, log=log, store_url=url, lease_s=1.0)
    learner = world.learner()
    print("ready", flush=True)
    os.dup2(2, 1)
    learner.run(threading.Event())
    """) % {"n": PARTITIONS, "settings": SETTINGS}


def start(folder: Path, url: str, name: str, place: str = "nowhere", *kafka: str) -> subprocess.Popen[str]:
    path = ":".join(str(Path(__file__).parents[2] / part) for part in ("tests", "services", "models"))
    command = [sys.executable, "-c", LEARNER, str(folder), url, name, place, *kafka]
    process = subprocess.Popen(command, env={"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None
    process.stdout.close()
    return process


def wait_for(reached: Callable[[], bool], *running: subprocess.Popen[str]) -> None:
    """Wait until it is so; the processes must not end before."""
    while not reached():
        for process in running:
            assert process.poll() is None
        time.sleep(PAUSE_S)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "before taking in",
        "before the log hears of it",
        "before what was learned is saved",
        "after what was learned is saved",
        "before a version goes live",
    ],
)
def test_killed_anywhere_another_learner_takes_over(crew: Crew, tmp_path: Path, place: str) -> None:
    """Ada leads, reads a half, and is killed; Bob reads the other half meanwhile, then all, and leads."""
    crew.log.assign({"ada": [0, 1], "bob": [2, 3]})
    ada = start(tmp_path, crew.world.store_url, "ada", place)
    bob = start(tmp_path, crew.world.store_url, "bob")
    decisions = crew.traffic(40)
    assert ada.wait() == -signal.SIGKILL
    crew.world.log.append([crew.world.say(d, Thumb(up=True)) for d in decisions[:8]])
    crew.log.assign({"bob": [0, 1, 2, 3]})
    late = crew.traffic(8)
    crew.world.log.append([crew.world.say(d, Retract()) for d in (*decisions[8:12], *late[:2])])
    wait_for(lambda: crew.world.store.intake_stats().feedback == 62, bob)
    bob.send_signal(signal.SIGKILL)
    bob.wait()
    crew.check(crew.successor("bob"), 42)


def stop_between_writes(process: subprocess.Popen[str], log: PartitionedLog) -> None:
    """Stop a process that holds no lock of the log's files, which nobody could write meanwhile."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        if log.writable():
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(PAUSE_S)


@pytest.mark.slow
def test_a_learner_that_was_paused_cannot_write_what_another_has_read(crew: Crew, tmp_path: Path) -> None:
    """Ada is stopped, as by a long pause of her machine, while Bob gets her partitions; then she goes on."""
    crew.log.assign({"ada": [0, 1, 2, 3]})
    ada = start(tmp_path, crew.world.store_url, "ada")
    crew.traffic(10)
    wait_for(lambda: crew.world.store.intake_stats().last_number >= 3, ada)
    stop_between_writes(ada, crew.log)
    crew.log.assign({"bob": [0, 1, 2, 3]})
    bob = start(tmp_path, crew.world.store_url, "bob")
    crew.traffic(10)
    wait_for(lambda: crew.world.store.intake_stats().feedback == 20, bob)
    ada.send_signal(signal.SIGCONT)
    crew.log.assign({"ada": [0, 1], "bob": [2, 3]})
    crew.traffic(10)
    wait_for(lambda: crew.world.store.intake_stats().feedback == 30, ada, bob)
    for process in (ada, bob):
        process.kill()
        process.wait()
    crew.check(crew.successor("ada"), 30)


@pytest.mark.kafka
@pytest.mark.slow
def test_on_kafka_each_takes_over_from_the_other_when_it_is_killed(
    tmp_path: Path, postgres: PostgresServer, kafka: Kafka
) -> None:
    log = kafka.log(partitions=PARTITIONS)
    world = World(tmp_path, settings=SETTINGS, log=log, store_url=postgres.create_database(), lease_s=1.0)
    world.first_version()

    def launch(name: str) -> subprocess.Popen[str]:
        return start(tmp_path, world.store_url, name, "nowhere", kafka.bootstrap, kafka.prefix)

    def traffic_until_read(feedback: int, reader: subprocess.Popen[str]) -> None:
        world.traffic(20, lambda decision: decision.action == "fish")
        wait_for(lambda: world.store.intake_stats().feedback >= feedback, reader)

    ada, bob = launch("ada"), launch("bob")
    try:
        traffic_until_read(20, bob)
        world.traffic(20, lambda decision: decision.action == "fish")
        ada.kill()
        traffic_until_read(60, bob)
        ada.wait()
        ada = launch("ada")
        world.traffic(20, lambda decision: decision.action == "fish")
        bob.kill()
        traffic_until_read(100, ada)
    finally:
        for process in (ada, bob):
            process.kill()
            process.wait()
    last = world.learner()
    while last.state.progress.last_number < 100:
        last.step()
    expected, count = recount(log, SPEC, reward_state(last).space)
    assert_same_sums(reward_state(last), expected)
    assert last.state.progress.experiences == count == 100
    last.close()
    world.close()
