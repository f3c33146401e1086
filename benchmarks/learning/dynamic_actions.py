"""dynamic_actions: which of 64 dynamic actions, each with a text, answers an utterance? Thumbs alone; texts never
listed before.

Utterances of clinc150 (150 intents; its folder tells the source); a dynamic action is an intent, its text the intent's
name. The base model is what a model that scores text would be before any feedback: utterances and names in one space of
topics, found without labels (latent semantic analysis, Deerwester et al. 1990). Names say the right thing of many
utterances, not of all. Thumbs come on lists of 100 intents; the other 50 are listed for the first time when the policy
is judged, on held-out utterances.

Peers see the same thumbs, with the same features of the pairs: LinUCB with one regression for all dynamic actions (Li
et al., 2010, algorithm 1 with shared weights), its optimism the best of three, whichever that is on this stream.

Notation:
    n: utterances, d: embedding size, k: dynamic actions of a list, f: features
"""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measure import Curve, Measure
from plaudit.compose.learner import head_builder
from plaudit.core.settings import Settings
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionHead,
    DynamicActionSpace,
    bounded_dynamic_step,
    dynamic_action_features,
    empty_dynamic_action_state,
    evidence_of_list,
)
from plaudit_models.bandit.features import Float64, base_probabilities
from plaudit_models.bandit.policy import sample

FOLDER: Final = Path(__file__).parents[3] / "shared/data/intents"

SIZE: Final = 64
"""d, and k: dynamic actions of a list."""
_HASHED: Final = 4_096
_LISTED: Final = 100
"""Intents that are listed while users speak; the others are new."""
_SCALE: Final = 12.0
"""Factor of the base logits, as cosines are at most 1."""
BATCH: Final = 64
_RECENT: Final = 64
_JUDGED: Final = 400
_OPTIMISM: Final = (0.0, 0.3, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Utterances:
    """Embeddings ``[n, d]`` and the index of the right intent of each, ``[n]``."""

    embedding: Float64
    intent: np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Attributes:
    stream: what users say while they are listened to; of listed intents only.
    known, new: held-out utterances of listed intents, and of new ones.
    vectors: of the intents' names, ``[150, d]``.
    """

    stream: Utterances
    known: Utterances
    new: Utterances
    vectors: Float64


def run(shuffles: int, quick: bool) -> list[Measure]:
    if not (FOLDER / "clinc150.csv").exists():
        return [Measure("utterances found", 0.0, goal=1.0, note=f"{FOLDER} is not there")]
    rounds = 640 if quick else 3_000
    runs = [_one(_task(seed), rounds, seed) for seed in range(1 if quick else min(shuffles, 3))]
    mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0] if name != "curve"}
    note = f"{len(runs)} shuffles, {rounds} thumbs, {SIZE} dynamic actions"
    peer = max((name for name in mean if name.startswith("linucb") and name.endswith("new")), key=lambda n: mean[n])
    streams = max(mean[name] for name in mean if name.startswith("linucb") and name.endswith("stream"))
    gain = mean["plaudit new"] - mean["base new"]
    curve = np.mean([run["curve"] for run in runs], axis=0)
    x = tuple(float(BATCH * i) for i in range(len(curve)))
    return [
        Measure("gain on dynamic actions never listed", gain, 0.05, note=f"{note}; base {mean['base new']:.3f}"),
        Measure(
            "satisfaction on dynamic actions never listed",
            mean["plaudit new"],
            note=note,
            curve=Curve(x, tuple(curve), "thumbs", "satisfaction on new dynamic actions"),
        ),
        Measure("of LinUCB on the same", mean[peer], note=peer),
        Measure("satisfaction on listed dynamic actions", mean["plaudit known"], note=f"base {mean['base known']:.3f}"),
        Measure("lead over LinUCB on the stream", mean["plaudit stream"] - streams, 0.0, note=f"LinUCB {streams:.3f}"),
    ]


def _one(task: Task, rounds: int, seed: int) -> dict[str, float | list[float]]:
    """Satisfaction by learner and part of the data."""
    found: dict[str, float | list[float]] = {}
    known, new = _lists(task.known, task, 11), _lists(task.new, task, 12, every=True)
    for name, lists in (("base known", known), ("base new", new)):
        found[name] = float(np.mean([base_probabilities(each.base_logits[None])[0, right] for each, right in lists]))
    stream = _lists(task.stream, task, seed)[:rounds]
    found |= _plaudit(stream, known, new, seed)
    for optimism in _OPTIMISM:
        found |= {f"linucb {optimism:g} {what}": value for what, value in _linucb(stream, new, optimism).items()}
    return found


Lists = list[tuple[ActionList, int]]
"""Lists of dynamic actions, each with the index of the right one."""


def _plaudit(stream: Lists, known: Lists, new: Lists, seed: int) -> dict[str, float | list[float]]:
    builder, rng = head_builder(Settings()), np.random.default_rng(seed)
    space = DynamicActionSpace("benchmark", "benchmark", SIZE, builder.pair_features, builder.exclusivity)
    served = latest = empty_dynamic_action_state(space)

    def judged(lists: Lists) -> float:
        head = DynamicActionHead(builder.settings, served)
        return float(np.mean([head.probabilities(each, builder.floor)[right] for each, right in lists]))

    liked, curve = [], [judged(new)]
    for start in range(0, len(stream), BATCH):
        batch, head = stream[start : start + BATCH], DynamicActionHead(builder.settings, served)
        evidence = []
        for listed, right in batch:
            k = len(listed.base_logits)
            picked = int(sample(head.probabilities(listed, builder.floor)[None], rng.random(1))[0])
            liked.append(picked == right)
            evidence.append(evidence_of_list(space, listed, np.full(k, float(picked == right)), np.arange(k) == picked))
        latest = latest.add(evidence)
        recent = [each for each, _ in batch[-_RECENT:]]
        step = bounded_dynamic_step(
            builder.settings, served, latest, recent, floor=builder.floor, max_kl=builder.max_kl
        )
        served = step.state
        curve.append(judged(new))
    return {
        "plaudit stream": float(np.mean(liked)),
        "plaudit known": judged(known),
        "plaudit new": curve[-1],
        "curve": curve,
    }


def _linucb(stream: Lists, new: Lists, optimism: float) -> dict[str, float]:
    """LinUCB with the prior of the reward model: expected rewards begin at the base probabilities."""
    builder = head_builder(Settings())
    space = DynamicActionSpace("benchmark", "benchmark", SIZE, builder.pair_features)
    f = space.n_features
    gram, target = np.eye(f), np.eye(f)[0]
    liked = []
    for start in range(0, len(stream), BATCH):
        inverse = np.linalg.inv(gram)
        for listed, right in stream[start : start + BATCH]:
            phi = dynamic_action_features(space, listed)
            bound = phi @ (inverse @ target) + optimism * np.sqrt((phi @ inverse * phi).sum(axis=1))
            picked = int(bound.argmax())
            liked.append(picked == right)
            gram += np.outer(phi[picked], phi[picked])
            target = target + float(picked == right) * phi[picked]
    weights = np.linalg.solve(gram, target)
    best = [int((dynamic_action_features(space, listed) @ weights).argmax()) == right for listed, right in new]
    return {"stream": float(np.mean(liked)), "new": float(np.mean(best))}


def _lists(utterances: Utterances, task: Task, seed: int, *, every: bool = False) -> Lists:
    """A list for each utterance: its intent among others of the same part, in random order."""
    rng, present = np.random.default_rng(seed), np.unique(utterances.intent)
    lists = []
    for embedding, intent in zip(utterances.embedding, utterances.intent, strict=True):
        others = present[present != intent]
        if not every:
            others = rng.choice(others, SIZE - 1, replace=False)
        ids = rng.permutation(np.append(others, intent))
        vectors = task.vectors[ids]
        lists.append((ActionList(embedding, vectors, vectors @ embedding), int(np.flatnonzero(ids == intent)[0])))
    return lists


def _task(seed: int) -> Task:
    with (FOLDER / "clinc150.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["intent"] != "oos"]
    names = sorted({row["intent"] for row in rows})
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    rank = dict(zip((names[i] for i in order), range(len(names)), strict=True))
    texts = {part: [row for row in rows if row["split"] == part] for part in ("train", "test")}
    for part in texts.values():
        rng.shuffle(part)
    counts = {part: np.stack([_counts(row["text"]) for row in chosen[:4_500]]) for part, chosen in texts.items()}
    idf = np.log((1 + len(counts["train"])) / (1 + (counts["train"] > 0).sum(axis=0)))
    _, _, topics = np.linalg.svd(counts["train"][:1_500] * idf, full_matrices=False)

    def embedded(array: Float64) -> Float64:
        point = (array * idf) @ topics[:SIZE].T
        unit: Float64 = point / np.maximum(np.linalg.norm(point, axis=1, keepdims=True), 1e-9)
        return unit

    intents = {part: np.array([rank[row["intent"]] for row in chosen[:4_500]]) for part, chosen in texts.items()}
    place = {part: embedded(array) for part, array in counts.items()}

    def some(part: str, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], most: int) -> Utterances:
        at = np.flatnonzero(chosen)[:most]
        return Utterances(place[part][at], intents[part][at])

    return Task(
        stream=some("train", intents["train"] < _LISTED, 10**6),
        known=some("test", intents["test"] < _LISTED, _JUDGED),
        new=some("test", intents["test"] >= _LISTED, _JUDGED),
        vectors=_SCALE * embedded(np.stack([_counts(names[i].replace("_", " ")) for i in order])),
    )


def _counts(text: str) -> Float64:
    """Counts of words and of pieces of four letters, hashed, ``[4096]``."""
    counts, padded = np.zeros(_HASHED), f" {text.lower()} "
    for piece in [*padded.split(), *(padded[i : i + 4] for i in range(len(padded) - 3))]:
        counts[zlib.crc32(piece.encode()) % _HASHED] += 1.0
    return counts
