"""Kill -9 anywhere, any number of times: nothing acknowledged is lost, nothing counts twice.

A real learner process is killed at a chosen place, again and again, and then runs to the end. What it has learned is
compared with a recount of the log.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from plaudit.core.events import Decision, Retract, Thumb
from support.loop_recount import recount
from support.loop_world import SPEC, World, assert_same_sums, candidate_that_prefers, reward_state

MakeWorld = Callable[..., World]

# The fatal place is reached for the n-th time → the process kills itself there, as the kernel would.
LEARNER = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from support.loop_world import World
    from plaudit.adapters.log.sqlite import SqliteReader
    from plaudit.adapters.store.sql import SqlStore
    from plaudit.adapters.registry.directory import DirectoryRegistry

    PLACES = {
        "before the save": (SqlStore, "save", False),
        "between save and commit": (SqliteReader, "commit", False),
        "after the commit": (SqliteReader, "commit", True),
        "between publishing and remembering": (DirectoryRegistry, "publish", True),
        "before a version goes live": (DirectoryRegistry, "set_rollout", False),
        "after a version went live": (DirectoryRegistry, "set_rollout", True),
    }
    folder, place, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def deadly(original, after):
        calls = []
        def method(*arguments):
            calls.append(1)
            if len(calls) == times and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments)
            if len(calls) == times and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return method

    if place != "nowhere":
        cls, name, after = PLACES[place]
        setattr(cls, name, deadly(getattr(cls, name), after))
    world = World(folder, settings={
        "learner": {"batch": 8, "max_wait_s": 0.001, "poll_limit": 16}, "finetune": {"enabled": False},
    })
    world.settle(world.learner())
    """)


def run(script: str, *arguments: str) -> int:
    environment = {
        "PYTHONPATH": ":".join(str(Path(__file__).parents[2] / part) for part in ("tests", "services", "models"))
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def run_learner(folder: Path, place: str, times: int = 1) -> int:
    return run(LEARNER, str(folder), place, str(times))


@pytest.mark.parametrize(
    "place",
    [
        "before the save",
        "between save and commit",
        "after the commit",
        "between publishing and remembering",
        "before a version goes live",
        "after a version went live",
    ],
)
def test_killed_anywhere_and_restarted_nothing_is_lost_and_nothing_counts_twice(
    make_world: MakeWorld, place: str
) -> None:
    world = make_world()
    decisions = world.traffic(40, lambda decision: decision.action == "fish")
    world.log.append([world.say(d, Thumb(up=True)) for d in decisions[:8]])
    world.log.append([world.say(d, Retract()) for d in decisions[8:12]])
    assert run_learner(world.folder, place, times=2) == -signal.SIGKILL
    late: list[Decision] = world.traffic(8, lambda decision: decision.action == "fish")
    world.log.append([world.say(d, Thumb(up=False)) for d in (*decisions[4:6], *late)])
    assert run_learner(world.folder, place) == -signal.SIGKILL
    assert run_learner(world.folder, "nowhere") == 0
    learner = world.learner()
    state = reward_state(learner)
    assert state is not None
    expected, count = recount(world.log, SPEC, state.space)
    assert_same_sums(state, expected)
    assert learner.state.progress.experiences == count == 44
    assert learner.store.intake_stats().feedback == 70
    assert learner.store.intake_stats().waiting == 0
    live = world.registry.rollout().live
    assert live is not None
    assert world.registry.manifest(live).data["experiences"] == 44


CANARY: Mapping[str, Mapping[str, Any]] = {
    "learner": {"batch": 10**6, "max_wait_s": 10**6},
    "finetune": {"enabled": True, "every": 50},
    "gate": {"min_events": 50, "max_events": 1, "alpha": 1e-9},
    "canary": {"share": 0.5},
}
EXPERIMENT = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from support.loop_world import World
    from plaudit.adapters.store.sql import SqlStore

    save = SqlStore.save
    def deadly(store, changes):
        of_experiment = changes.state.get("experiment") is not None
        if of_experiment and sys.argv[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        save(store, changes)
        if of_experiment:
            os.kill(os.getpid(), signal.SIGKILL)
    SqlStore.save = deadly
    world = World(Path(sys.argv[1]), settings=%r)
    world.settle(world.learner())
    """) % (CANARY,)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_killed_in_the_middle_of_an_experiment_the_next_learner_counts_on(
    tmp_path: Path, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many experiences count for and against the candidate as with a learner that is left alone."""
    monkeypatch.setattr("plaudit.learner.finetuning.scheduler.fresh_salt", lambda: "the same in both")
    counted = []
    for name in ("killed", "left alone"):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name, settings=CANARY, run_job=candidate_that_prefers("fish"))
        world.first_version()
        learner = world.learner()
        while learner.report()["finetune"]["phase"] != "canary":
            world.traffic(25, lambda decision: decision.action == "fish")
            world.settle(learner)
        learner.close()
        world.traffic(50, lambda decision: decision.action == "fish")
        if name == "killed":
            assert run(EXPERIMENT, str(world.folder), killed) == -signal.SIGKILL
        last = world.learner()
        world.settle(last)
        last.step()
        counted.append(last.report()["finetune"]["canary"])
        assert world.registry.versions() == [1, 2]
        assert [r.candidate for r in world.registry.ledger()] == [None, 2]
        world.close()
    assert counted[0] == counted[1]
    assert counted[0]["n"] > 0
