"""Rate at which one learner joins and learns, and its memory while the log grows to 2 million events."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure import Measure
from plaudit.cli import one_thread_for_algebra

_FIRST = 100_000


def run(*, quick: bool) -> list[Measure]:
    events = 200_000 if quick else 2_000_000
    one_thread_for_algebra()  # in the process below too, as in `plaudit learn`
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.feedback.learner", str(events)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    resident = {int(at): mib for at, mib in found["resident_mib"].items()}
    first = resident[_FIRST]
    farthest = max(resident.values(), key=lambda mib: abs(mib / first - 1.0))
    note = f"{first:.0f} MiB after {_FIRST} events, {farthest:.0f} at the farthest from that, of {events}"
    return [
        Measure("joined and learned", found["events_per_s"], 10_000.0, note=f"of {events} events", unit="events/s"),
        Measure("largest change of memory", abs(farthest / first - 1.0) * 100, 10.0, "at_most", note=note, unit="%"),
    ]
