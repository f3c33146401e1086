"""Costs of the fast loop: one update of 64 events, one head refresh, and whether an event's cost grows with the
number of events learned before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.measure import Curve, Measure
from plaudit.compose.learner import head_builder
from plaudit.core.settings import Settings
from plaudit_models.bandit.features import FeatureSpace, features
from plaudit_models.bandit.head import build_head
from plaudit_models.bandit.improvement import bounded_step
from plaudit_models.bandit.reward_model import Evidence, RewardState, empty_state, evidence_of_actions

ACTIONS = 19
EMBEDDING = 192
BATCH = 64
REPEATS = 50


def run(shuffles: int, quick: bool) -> list[Measure]:
    builder = head_builder(Settings())
    space = FeatureSpace("benchmark", ACTIONS, EMBEDDING, builder.embedding_features, builder.exclusivity)
    rng = np.random.default_rng(0)
    batches = [_batch(space, rng) for _ in range(8)]
    state = empty_state(space)
    update_s = _seconds(lambda: state.add(batches[0]))
    learned, seconds = 0, []
    points = [1_000, 10_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    for point in points:
        while learned < point:
            state = state.add(batches[learned // BATCH % len(batches)])
            learned += BATCH
        seconds.append(_seconds(lambda s=state: s.add(batches[0])) / BATCH)  # type: ignore[misc]
    refresh_s = _seconds(lambda: _refresh(space, state, batches, rng), repeats=5)
    return [
        Measure(
            "update with 64 events",
            1e3 * update_s,
            5.0,
            "at_most",
            f"{ACTIONS} actions × {space.n_features} features, median of {REPEATS}",
            unit="ms",
        ),
        Measure(
            "cost of an event after the last point over that after the first",
            seconds[-1] / seconds[0],
            1.5,
            "at_most",
            ", ".join(f"{1e6 * s:.1f} µs at {p}" for s, p in zip(seconds, points, strict=True)),
            Curve(tuple(map(float, points)), tuple(1e6 * s for s in seconds), "events learned before", "µs an event"),
        ),
        Measure("head refresh", 1e3 * refresh_s, note="posterior, KL bound and graph", unit="ms"),
    ]


def _batch(space: FeatureSpace, rng: np.random.Generator) -> Evidence:
    phi = features(space, rng.normal(size=(BATCH, EMBEDDING)), rng.normal(size=(BATCH, ACTIONS)))
    return evidence_of_actions(space, phi, rng.integers(0, ACTIONS, BATCH), rng.integers(0, 2, BATCH).astype(float))


def _refresh(space: FeatureSpace, state: RewardState, batches: list[Evidence], rng: np.random.Generator) -> None:
    builder = head_builder(Settings())
    served, latest = state, state.add(batches[0])
    recent = rng.normal(size=(256, EMBEDDING)), rng.normal(size=(256, ACTIONS))
    step = bounded_step(builder.settings, served, latest, *recent, floor=builder.floor, max_kl=builder.max_kl)
    build_head(builder.settings, step.state).SerializeToString()


def _seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of a call."""
    taken = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started_s)
    return float(np.median(taken))
