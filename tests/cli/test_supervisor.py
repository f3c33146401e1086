"""The supervisor, with small real child processes in place of the services."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from plaudit.cli.processes.supervisor import MAX_EXITS, Service, run
from plaudit.core.host.backoff import pause_s

READY = "import json, sys; print(json.dumps({'event': 'ready'}), flush=True)\n"
STAYS = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n" + READY + "signal.pause()"
DIES = READY + "sys.exit({code})"
FAILS = "import sys; sys.exit({code})"


def _service(name: str, program: str, *, restart: bool, code: int = 0) -> Service:
    return Service(name, [sys.executable, "-c", program.replace("{code}", str(code))], restart)


class Watcher:
    """Collects reports, and sends this process a signal once ``until`` says so."""

    def __init__(self, until: Any, number: int = signal.SIGTERM) -> None:
        self.events: list[Mapping[str, Any]] = []
        self._until = until
        self._number = number

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        if self._until(self.events):
            os.kill(os.getpid(), self._number)

    def count(self, kind: str) -> int:
        return sum(event["event"] == kind for event in self.events)


async def _no_pause(_: float) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_every_child_and_is_success(number: signal.Signals) -> None:
    watcher = Watcher(lambda events: len(events) == 2, number)
    services = [_service("serve", STAYS, restart=False), _service("learn", STAYS, restart=True)]
    assert await run(services, watcher) == 0
    assert {event["service"] for event in watcher.events} == {"serve", "learn"}


async def test_a_child_that_fails_to_drain_makes_the_whole_fail() -> None:
    watcher = Watcher(lambda events: len(events) == 1)
    assert await run([_service("serve", STAYS, restart=False, code=1)], watcher) == 1


async def test_the_learner_is_started_again_with_growing_pauses() -> None:
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    watcher = Watcher(lambda events: sum(e["event"] == "restarting" for e in events) == 3)
    services = [_service("serve", STAYS, restart=False), _service("learn", DIES, restart=True, code=1)]
    assert await run(services, watcher, pause=pause, clock=lambda: 0.0) == 0
    assert pauses[:2] == [1.0, 2.0]
    assert [e["code"] for e in watcher.events if e["event"] == "exited"] == [1, 1, 1]


async def test_a_learner_that_lived_long_starts_over_with_the_first_pause() -> None:
    ticks = iter(range(0, 100_000, 1000))
    watcher = Watcher(lambda events: sum(e["event"] == "restarting" for e in events) == 3)
    services = [_service("learn", DIES, restart=True, code=1)]
    await run(services, watcher, pause=_no_pause, clock=lambda: float(next(ticks)))
    assert [e["in_s"] for e in watcher.events if e["event"] == "restarting"] == [1.0, 1.0, 1.0]


async def test_when_the_service_ends_everything_ends_with_its_code() -> None:
    watcher = Watcher(lambda events: False)
    services = [_service("serve", DIES, restart=False, code=2), _service("learn", STAYS, restart=True)]
    assert await run(services, watcher) == 2
    assert watcher.count("exited") == 1


async def test_a_wrong_setting_of_the_learner_is_not_tried_again() -> None:
    watcher = Watcher(lambda events: False)
    services = [_service("serve", STAYS, restart=False), _service("learn", FAILS, restart=True, code=2)]
    assert await run(services, watcher) == 2
    assert watcher.count("restarting") == 0


@pytest.mark.parametrize("code", [2, 78])
async def test_a_learner_that_ends_for_good_is_given_up_and_the_service_goes_on(code: int) -> None:
    """As where its store was damaged meanwhile, or its port taken. 6,198 restarts in 12 hours:
    https://github.com/openclaw/openclaw/pull/60170
    """
    watcher = Watcher(lambda events: any(e["event"] == "given_up" for e in events))
    services = [_service("serve", STAYS, restart=False), _service("learn", DIES, restart=True, code=code)]
    assert await run(services, watcher) == code
    assert watcher.count("restarting") == 0
    assert [e["service"] for e in watcher.events if e["event"] == "exited"] == ["learn"]


async def test_a_learner_that_fails_again_and_again_is_given_up() -> None:
    watcher = Watcher(lambda events: any(e["event"] == "given_up" for e in events))
    services = [_service("serve", STAYS, restart=False), _service("learn", FAILS, restart=True, code=1)]
    assert await run(services, watcher, pause=_no_pause, clock=lambda: 0.0) == 1
    assert watcher.count("restarting") == MAX_EXITS - 1


async def test_one_of_several_processes_that_is_given_up_ends_all() -> None:
    watcher = Watcher(lambda events: False)
    services = [
        replace(_service(f"serve-{n}", program, restart=True, code=78), essential=True)
        for n, program in enumerate([DIES, STAYS])
    ]
    assert await run(services, watcher) == 78


async def test_what_a_library_prints_is_no_event_and_harms_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither words, nor JSON of its own, nor a line of two megabytes."""
    prints = "print('hello'); print('[1]'); print('{}'); print('x' * 2_000_000, flush=True)\n" + STAYS
    watcher = Watcher(lambda events: len(events) == 1)
    assert await run([_service("serve", prints, restart=False)], watcher) == 0
    assert [event["event"] for event in watcher.events] == ["ready"]
    assert "hello" in capfd.readouterr().err


async def test_a_child_that_does_not_drain_is_killed_at_its_deadline() -> None:
    stays = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "signal.pause()"
    watcher = Watcher(lambda events: len(events) == 1)
    assert await run([_service("serve", stays, restart=False)], watcher, kill_after_s=0.1) == 1


async def test_output_that_nobody_reads_any_more_drains_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `plaudit up | head -1`; see https://github.com/nickstenning/honcho/issues/255."""
    monkeypatch.setattr("plaudit.cli.processes.supervisor.drop_output", lambda: None)  # stdout is that of pytest

    def broken(event: Mapping[str, Any]) -> None:
        raise BrokenPipeError

    services = [_service("serve", STAYS, restart=False), _service("learn", STAYS, restart=True)]
    assert await run(services, broken) == 141


async def test_a_program_that_cannot_be_started_is_told_and_tried_again() -> None:
    watcher = Watcher(lambda events: any(e["event"] == "restarting" for e in events))
    missing = Service("learn", ["/no/such/program"], restart=True)
    await run([missing, _service("serve", STAYS, restart=False)], watcher)
    (told,) = [e["problem"] for e in watcher.events if e["event"] == "not_started"]
    assert told == "/no/such/program: No such file or directory; put it back"


async def test_a_folder_named_like_the_place_of_an_address_keeps_its_name() -> None:
    watcher = Watcher(lambda events: any(e["event"] == "told" for e in events))
    where = [sys.executable, "-c", SAYS_WHERE.replace("{code}", "0"), "--data-dir={address}"]
    services = [_service("serve", ANSWERS, restart=False), Service("console", where, restart=True, after="serve")]
    assert await run(services, watcher) == 0
    assert [e["where"] for e in watcher.events if e["event"] == "told"] == ["--data-dir={address}"]


ANSWERS = STAYS.replace("'ready'", "'ready', 'address': 'here:1'")
SAYS_WHERE = "import json, sys; print(json.dumps({'event': 'told', 'where': sys.argv[1]}), flush=True)\n" + STAYS


async def test_a_service_that_needs_another_is_told_where_that_answers() -> None:
    watcher = Watcher(lambda events: sum(e["event"] == "ready" for e in events) == 2)
    needs = Service(
        "console",
        [sys.executable, "-c", SAYS_WHERE.replace("{code}", "0"), "{address}"],
        restart=True,
        after="serve",
    )
    assert await run([needs, _service("serve", ANSWERS, restart=False)], watcher) == 0
    assert [e["where"] for e in watcher.events if e["event"] == "told"] == ["here:1"]
    assert [e["service"] for e in watcher.events] == ["serve", "console", "console"]


async def test_what_it_needs_never_comes_so_it_never_starts() -> None:
    watcher = Watcher(lambda events: False)
    needs = Service("console", [sys.executable, "-c", STAYS.replace("{code}", "0")], restart=True, after="serve")
    assert await run([needs, _service("serve", "import sys; sys.exit({code})", restart=False, code=3)], watcher) == 3
    assert [event["service"] for event in watcher.events] == ["serve"]


def test_pauses_double_and_are_bounded() -> None:
    assert [pause_s(deaths) for deaths in (1, 2, 3, 5, 6, 100)] == [1.0, 2.0, 4.0, 16.0, 30.0, 30.0]
