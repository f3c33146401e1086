"""Rate at which one learner joins and learns; change of rate and memory while the log grows to 2 million events."""

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
    rates = [float(rate) for rate in found["rates_per_s"].values()]
    part = max(1, len(rates) // 5)
    # The means of times, not of rates: a slow hundred thousand counts for as long as it took.
    early, late = (part / sum(1.0 / rate for rate in some) for some in (rates[:part], rates[-part:]))
    slope = f"{early:.0f} events/s in the first {part * _FIRST} events, {late:.0f} in the last, of {events}"
    note = f"{first:.0f} MiB after {_FIRST} events, {farthest:.0f} at the farthest from that, of {events}"
    return [
        Measure("joined and learned", found["events_per_s"], 12_000.0, note=f"of {events} events", unit="events/s"),
        Measure("rate at the end, as a share of that at the beginning", late / early, 0.85, note=slope),
        Measure("largest change of memory", abs(farthest / first - 1.0) * 100, 10.0, "at_most", note=note, unit="%"),
    ]
