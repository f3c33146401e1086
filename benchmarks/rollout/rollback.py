"""Time from a rollback until every replica answers with the version before: real services, one of which is called."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.measure import Measure
from benchmarks.rollout.deployment_of import deployed_with_two, serving
from plaudit.client import Client

REPLICAS: Final = 2
GOAL_MS: Final = 100.0
_PAUSE_S: Final = 0.002
_ANY_TIME_S: Final = 0.2
"""Longest random pause before a change, so that changes hit services at any moment between two polls."""


@dataclass
class Watched:
    """One replica, asked all the time. ``seen`` holds (when an answer came, its version), oldest first."""

    address: str
    ending: threading.Event
    seen: list[tuple[float, int]] = field(default_factory=list)

    def ask(self) -> None:
        with Client(self.address) as client:
            while not self.ending.is_set():
                version = client.predict({"question": "which animal"}, greedy=True).version
                self.seen.append((time.monotonic(), version))
                time.sleep(_PAUSE_S)

    def wait_for(self, version: int, after_s: float) -> float:
        """Time of the first answer with the version after the last one with another."""
        while True:
            recent = [(at_s, found) for at_s, found in list(self.seen) if at_s >= after_s]
            if len(recent) >= 10 and all(found == version for _, found in recent[-10:]):
                others = [at_s for at_s, found in recent if found != version]
                last_other_s = others[-1] if others else after_s
                return next(at_s for at_s, _ in recent if at_s > last_other_s)
            time.sleep(_PAUSE_S)


def run(*, quick: bool) -> list[Measure]:
    times = 3 if quick else 30
    took_ms: list[float] = []
    stopped_ms: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config, _ = deployed_with_two(Path(folder))
        ending = threading.Event()
        with serving(config, REPLICAS) as addresses, Client(addresses[0][0]) as operator:
            watched = [Watched(address, ending) for address, _ in addresses]
            threads = [threading.Thread(target=each.ask) for each in watched]
            for thread in threads:
                thread.start()
            try:
                for _ in range(times):
                    began_s = time.monotonic()
                    operator.promote(2)
                    for each in watched:
                        each.wait_for(2, began_s)
                    time.sleep(random.uniform(0.0, _ANY_TIME_S))
                    began_s = time.monotonic()
                    operator.rollback(reason="bench-rollout")
                    took_ms.append(1e3 * max(each.wait_for(1, began_s) - began_s for each in watched))
                stopped_ms = [_stop_a_canary(operator, addresses) for _ in range(times)]
            finally:
                ending.set()
                for thread in threads:
                    thread.join()
    note = f"of {times}, from the call to the first answer of the version before, on the later of {REPLICAS} services"
    return [
        Measure("rollback on every replica, worst", max(took_ms), GOAL_MS, "at_most", note=note, unit="ms"),
        Measure("rollback on every replica, median", statistics.median(took_ms), unit="ms"),
        Measure("a stopped canary serves no user, worst", max(stopped_ms), GOAL_MS, "at_most", unit="ms"),
    ]


def _stop_a_canary(operator: Client, addresses: Sequence[tuple[str, str]]) -> float:
    """Milliseconds until a user of the candidate is served by live on every replica."""
    operator.start_canary(2, 0.5)
    users = [f"user {number}" for number in range(64)]
    with Client(addresses[-1][0]) as client:
        while not (inside := [u for u in users if client.predict({"question": "x"}, user_id=u).version == 2]):
            time.sleep(_PAUSE_S)
        time.sleep(random.uniform(0.0, _ANY_TIME_S))
        began_s = time.monotonic()
        operator.stop_canary()
        while client.predict({"question": "x"}, user_id=inside[0]).version == 2:
            pass
        return 1e3 * (time.monotonic() - began_s)
