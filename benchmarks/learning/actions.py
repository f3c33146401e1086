"""actions: what many actions cost the learner, and whether 150 of them are learned from thumbs alone.

Costs are those of the library code that the learner runs, over a 512-wide embedding, after 2,048 thumbs: an update with
64 events, a head refresh, the head, the state in the store, memory. The 150 actions are the intents of CLINC150
(`../shared/data/intents`) under a base model that knows nothing; LinUCB beside it.
"""

from __future__ import annotations

import csv
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

from benchmarks.learning.fast_loop import Contexts, Int64, run_stream
from benchmarks.learning.peers import LinUcb
from benchmarks.measure import Measure
from plaudit.compose.learner import head_builder
from plaudit.core.settings import Settings
from plaudit.learner.state_blocks import BlockIndex
from plaudit_models.bandit.features import FeatureSpace, features
from plaudit_models.bandit.head import build_head
from plaudit_models.bandit.improvement import bounded_step
from plaudit_models.bandit.reward_model import RewardState, empty_state, evidence_of_actions

EMBEDDING: Final = 512
EVENTS: Final = 64
SIZES: Final = (10, 150, 1_000, 10_000)
THUMBS: Final = 2_048
INTENTS: Final = Path(__file__).resolve().parents[3] / "shared/data/intents/clinc150.csv"
BATCH: Final = 96
ROUNDS: Final = 9_600
LATEST: Final = 2_400

Made = TypeVar("Made")


class Cost(NamedTuple):
    """Costs with one number of actions; times are processor time."""

    update_s: float
    refresh_s: float
    head_bytes: int
    state_bytes: int
    step_bytes: int
    memory_bytes: int


def run(shuffles: int, quick: bool) -> list[Measure]:
    measures = []
    for n_actions in SIZES[:-1] if quick else SIZES:
        cost = _alone(n_actions)
        measures += _measures(n_actions, cost)
    if INTENTS.exists():
        measures += _intents(1 if quick else shuffles, 960 if quick else ROUNDS)
    return measures


def _measures(n_actions: int, cost: Cost) -> list[Measure]:
    many = n_actions > 1_000
    note = f"{THUMBS} thumbs over {n_actions} actions × {EMBEDDING}"
    update_ms, refresh_s = {1_000: (20.0, 1.0), 10_000: (None, 10.0)}.get(n_actions, (None, None))
    numbers = [
        (f"update with {EVENTS} events", 1e3 * cost.update_s, update_ms, "ms"),
        ("head refresh", cost.refresh_s, refresh_s, "s"),
        ("head", cost.head_bytes / 1e6, None if many else 10.0, "MB"),
        ("state in the store", cost.state_bytes / 1e6, None, "MB"),
        (f"written for {EVENTS} events", cost.step_bytes / 1e6, None, "MB"),
        ("memory of the process", cost.memory_bytes / 1e6, 2_000.0 if many else 500.0, "MB"),
    ]
    return [
        Measure(f"{n_actions} actions: {name}", value, goal, "at_most", note, unit=unit)
        for name, value, goal, unit in numbers
    ]


def _alone(n_actions: int) -> Cost:
    """Costs in a process of its own, so that its memory is not another size's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_cost, (n_actions,))


def _cost(n_actions: int) -> Cost:
    builder = head_builder(Settings())
    space = FeatureSpace("benchmark", n_actions, EMBEDDING, builder.embedding_features, builder.exclusivity)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n_actions, EMBEDDING)).astype(np.float32)

    def contexts(n: int) -> tuple[Int64, Contexts]:
        right = rng.integers(0, n_actions, n)
        embedding = (centres[right] + rng.normal(size=(n, EMBEDDING))).astype(np.float32)
        return right, Contexts(embedding, embedding @ centres.T / 64.0)

    def heard(state: RewardState) -> RewardState:
        right, rows = contexts(EVENTS)
        phi = features(space, rows.embedding, rows.base_logits)
        return state.add(evidence_of_actions(space, phi, right, rng.integers(0, 2, EVENTS).astype(float)))

    served = empty_state(space)
    for _ in range(THUMBS // EVENTS):
        served = heard(served)
    _, index = BlockIndex().changed({"state": served})
    update_s, latest = _timed(lambda: heard(served))
    written, _ = index.changed({"state": latest})
    _, recent = contexts(256)

    def refresh() -> bytes:
        step = bounded_step(
            builder.settings, served, latest, recent.embedding, recent.base_logits,
            floor=builder.floor, max_kl=builder.max_kl,
        )  # fmt: skip
        return build_head(builder.settings, step.state).SerializeToString()

    refresh_s, head = _timed(refresh)
    whole, _ = BlockIndex().changed({"state": latest})
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(update_s, refresh_s, len(head), _size(whole), _size(written), memory_bytes)


def _size(values: dict[str, bytes | None]) -> int:
    return sum(len(value) for value in values.values() if value is not None)


def _timed(act: Callable[[], Made]) -> tuple[float, Made]:
    started_s = time.process_time()
    made = act()
    return time.process_time() - started_s, made


def _intents(shuffles: int, n_rounds: int) -> list[Measure]:
    """Satisfaction with the latest answers after as many thumbs."""
    embedding, intents = _clinc150()
    n_actions = int(intents.max()) + 1
    ours, theirs = [], []
    latest = slice(-min(LATEST, n_rounds // 4), None)
    for seed in range(shuffles):
        rows = np.random.default_rng(seed).permutation(len(intents))[:n_rounds]
        stream = Contexts(embedding[rows], np.zeros((len(rows), n_actions), np.float32))
        found = run_stream(stream, intents[rows], batch=BATCH, wrong=0.0, seed=seed)
        ours.append(float(found.liked[latest].mean()))
        theirs.append(float(_linucb(stream, intents[rows], n_actions, seed)[latest].mean()))
    note = f"CLINC150, {n_rounds} thumbs, the latest {-latest.start}, by shuffle: "
    return [
        Measure(
            "150 intents from thumbs alone: satisfaction",
            100.0 * float(np.median(ours)),
            100.0 * float(np.median(theirs)),
            "at_least",
            note + ", ".join(f"{100 * each:.1f}" for each in ours),
            unit="%",
        ),
        Measure(
            "150 intents from thumbs alone: LinUCB",
            100.0 * float(np.median(theirs)),
            note=note + ", ".join(f"{100 * each:.1f}" for each in theirs),
            unit="%",
        ),
    ]


def _clinc150() -> tuple[np.ndarray, Int64]:
    """Embeddings ``[n, 128]`` and intents ``[n]`` of the training texts."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    with INTENTS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train" and row["intent"] != "oos"]
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2).fit_transform([r["text"] for r in rows])
    embedding = TruncatedSVD(128, random_state=0).fit_transform(words)
    _, intents = np.unique([row["intent"] for row in rows], return_inverse=True)
    return embedding.astype(np.float32), intents.astype(np.int64)


def _linucb(stream: Contexts, wanted: Int64, n_actions: int, seed: int) -> np.ndarray:
    """Which answers of LinUCB (disjoint) were the wanted ones, on the embedding at unit length."""
    lengths = np.maximum(np.linalg.norm(stream.embedding, axis=1, keepdims=True), 1e-6)
    rows = np.concatenate([stream.embedding / lengths, np.ones((len(stream), 1))], axis=1).astype(np.float64)
    peer = LinUcb(rows.shape[1], n_actions, optimism=0.3, precision=1.0, seed=seed)
    liked = np.zeros(len(stream), np.bool_)
    for start in range(0, len(stream), BATCH):
        some = slice(start, start + BATCH)
        picked = peer.pick(rows[some])
        liked[some] = picked == wanted[some]
        peer.learn(rows[some], picked, liked[some].astype(np.float64))
    return liked
