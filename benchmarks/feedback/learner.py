"""Rate at which a learner takes in events and learns from them, and its memory meanwhile.

A log of decisions, each with a thumb, is written with the embedded log; then a learner reads it to the end, and its
resident memory is noted on the way. Prints JSON.

    python -m benchmarks.feedback.learner 2000000 --store postgres
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from plaudit.cli.processes.services import collect_garbage_seldom
from plaudit.core.events import Decision, Feedback, TextContent, Thumb
from plaudit.learner.loop import Learner
from support.loop_world import World
from support.postgres_server import postgres_server

CHUNK = 20_000
LOOK_EVERY = 100_000
IDLE_STEPS = 20
"""Steps in a row without any work after which the benchmark gives up."""


def main(events: int, kind: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        world = World(
            Path(folder),
            settings={"finetune": {"enabled": False}, "learner": {"batch": 4096}, "store": {"retention_s": 3e6}},
        )
        world.first_version()
        if kind == "postgres":
            with postgres_server() as server:
                world.store_url = server.create_database()
                print(json.dumps({"store": kind, **measure(world, events)}))
        else:
            print(json.dumps({"store": kind, **measure(world, events)}))
        world.close()


def measure(world: World, events: int) -> dict[str, Any]:
    learner = world.learner()
    collect_garbage_seldom()  # as in `plaudit learn`
    spent_s, taken_in, resident = 0.0, 0, {}
    rates: dict[int, float] = {}
    processor_us: dict[int, float] = {}
    looked_s = looked_processor_s = processor_s = 0.0
    for chunk in traffic(world, events):
        world.log.append(chunk)
        started_s, started_processor_s = time.perf_counter(), time.process_time()
        taken_in += len(chunk)
        catch_up(learner, taken_in // 2)
        spent_s += time.perf_counter() - started_s
        processor_s += time.process_time() - started_processor_s
        if taken_in % LOOK_EVERY == 0:
            resident[taken_in] = resident_mib()
            rates[taken_in] = round(LOOK_EVERY / (spent_s - looked_s))
            processor_us[taken_in] = round(1e6 * (processor_s - looked_processor_s) / LOOK_EVERY, 1)
            looked_s, looked_processor_s = spent_s, processor_s
    check(learner, events)
    return {
        "events": events,
        "events_per_s": round(events / spent_s),
        "rates_per_s": rates,
        "processor_us_per_event": round(1e6 * processor_s / events, 1),
        "processor_us": processor_us,
        "resident_mib": resident,
    }


def traffic(world: World, events: int) -> Iterator[list[Decision | Feedback]]:
    """Decisions of 1,000 users, each followed by its thumb; five seconds apart, so that retention sets in."""
    templates = [world.decide(seed) for seed in range(20)]
    rng = np.random.default_rng(0)
    number = 0
    for _ in range(events // CHUNK):
        chunk: list[Decision | Feedback] = []
        for _ in range(CHUNK // 2):
            number += 1
            world.now_s += 5.0
            decision = replace(
                templates[number % len(templates)],
                prediction_id=f"prediction-{number}",
                time_s=world.now_s,
                user_id=f"user {number % 1000}",
                content={"question": TextContent(f"what is number {number}?")},
            )
            chunk += [decision, world.say(decision, Thumb(up=bool(rng.random() < 0.6)))]
        yield chunk


def catch_up(learner: Learner, experiences: int) -> None:
    """Step until so many experiences are learned; ends the benchmark where nothing moves before that."""
    idle = 0
    while learned(learner) < experiences:
        idle = 0 if learner.step() else idle + 1
        if idle == IDLE_STEPS:
            sys.exit(f"{learned(learner)} experiences of {experiences} after {IDLE_STEPS} steps without any work")


def learned(learner: Learner) -> int:
    """Number of experiences that were learned, those among them that users have outdated since."""
    return learner.state.progress.experiences + learner.state.progress.outdated


def check(learner: Learner, events: int) -> None:
    if (learned(learner), learner.store.intake_stats().waiting) != (events // 2, 0):
        sys.exit(f"{learned(learner)} experiences of {events} events")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * 4096 / 2**20, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Rate and memory of one learner.")
    parser.add_argument("events", type=int, nargs="?", default=100_000)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    options = parser.parse_args()
    main(options.events, options.store)
