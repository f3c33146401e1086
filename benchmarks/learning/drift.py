"""drift: users of a trained classifier change their mind again, after the learner has followed them once.

The task of ``shift`` (digits, 3 of 10 classes wanted otherwise than the classifier was taught, 5 % wrong thumbs), and
then a second change of those classes: sudden after more and more thumbs, gradual, with a return to the first taste, of
one class only, or none. Beside it LinUCB that forgets by discounting or by a window, and Vowpal Wabbit, on the base
probabilities, with the base model's probabilities as their prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from benchmarks.learning.fast_loop import Contexts, Run, run_stream
from benchmarks.learning.peers import Float64, Int64, LinUcb, VowpalWabbit
from benchmarks.measure import Measure

BATCH = 48
BATCH_BEFORE = 240
"""Rounds between refreshes before the change, where nothing is measured."""
AFTER = 4_000
GRADUAL = 2_000
SEASON = 2_400
SUDDEN = (960, 4_800, 19_200, 100_000)
ACTIONS = 10
CHANGED = 3
WRONG = 0.05
RECOVERED = 0.95
DISCOUNTS = (0.99, 0.995, 0.998)
WINDOWS = (500, 1_000, 2_000)
VOWPAL = "--squarecb --gamma_scale 10 --power_t 0 -l 0.5"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One shuffle.

    Attributes:
        stream: contexts of the requests.
        wanted: wanted action of each round.
        change: round at which the taste that is measured begins.
        judge_on: held-out contexts.
        judged_digits: their digits.
        taste: wanted action of each digit at the end.
        unchanged: True for digits that are wanted the same way before and after.
    """

    stream: Contexts
    wanted: Int64
    change: int
    judge_on: Contexts
    judged_digits: Int64
    taste: Int64
    unchanged: np.ndarray

    def satisfaction(self, judged: Float64) -> Float64:
        """Probability of the wanted answer by version and held-out context, from ``[versions, e, a]``."""
        return judged[:, np.arange(len(self.judged_digits)), self.taste[self.judged_digits]]

    def events_to_recover(self, satisfaction: Float64) -> float:
        """Rounds after the change until 95 % of what the classifier reached for what it was taught; infinite: never."""
        base = _probabilities(self.judge_on)
        former = base[np.arange(len(base)), self.judged_digits].mean()
        reached = np.flatnonzero(satisfaction.mean(axis=1) >= RECOVERED * former)
        return float(reached[0] * BATCH) if reached.size else float("inf")

    def drop(self, satisfaction: Float64) -> float:
        """Largest drop of the satisfaction with unchanged classes, in points, in any version."""
        mean = satisfaction[:, self.unchanged[self.judged_digits]].mean(axis=1)
        return 100.0 * float((mean[0] - mean).max())


class Digits:
    """The classifier of one shuffle, and tastes of its users."""

    def __init__(self, seed: int) -> None:
        pixels, digits = load_digits(return_X_y=True)
        pixels, self._digits = pixels / 16.0, digits.astype(np.int64)
        order = np.random.default_rng(seed).permutation(len(digits))
        labelled, self._held_out, self._users = order[:500], order[500:900], order[900:]
        model = MLPClassifier((64,), max_iter=1000, random_state=seed).fit(pixels[labelled], digits[labelled])
        self._contexts = Contexts(
            np.maximum(pixels @ model.coefs_[0] + model.intercepts_[0], 0.0),
            np.log(np.clip(model.predict_proba(pixels), 1e-6, 1.0)),
        )
        self._rng = np.random.default_rng([seed, 1])
        self.changing: Int64 = self._rng.permutation(ACTIONS)[:CHANGED]

    def taste(self, *others: Int64, classes: Int64 | None = None) -> Int64:
        """Taste that wants another action than all of the others for the changing classes (or those given)."""
        taste = others[-1].copy()
        for k in self.changing if classes is None else classes:
            taste[k] = self._rng.choice(np.setdiff1d(np.arange(ACTIONS), [other[k] for other in others]))
        return taste

    def task(self, tastes: list[Int64], lengths: list[int], *, gradual: int = 0) -> Task:
        """Task whose last taste is measured.

        Args:
            tastes: one after the other.
            lengths: rounds of each.
            gradual: rounds over which the share of users with the last taste grows from none to all.
        """
        rows = self._rng.choice(self._users, sum(lengths))
        at = np.repeat(np.arange(len(tastes)), lengths)
        change = sum(lengths[:-1])
        late = self._rng.random(gradual) * gradual > np.arange(gradual)
        at[change : change + gradual] -= late
        wanted = np.array(tastes)[at, self._digits[rows]]
        return Task(
            self._contexts[rows],
            wanted,
            change,
            self._contexts[self._held_out],
            self._digits[self._held_out],
            tastes[-1],
            tastes[-1] == tastes[-2],
        )


def run(shuffles: int, quick: bool) -> list[Measure]:
    digits = [Digits(seed) for seed in range(shuffles)]
    taught = np.arange(ACTIONS)
    first = [each.taste(taught) for each in digits]
    second = [each.taste(taught, one) for each, one in zip(digits, first, strict=True)]
    scenes: dict[str, list[Task]] = {}
    for before in SUDDEN[:2] if quick else SUDDEN:
        scenes[f"sudden after {before:,}"] = [
            each.task([one, two], [before, AFTER]) for each, one, two in zip(digits, first, second, strict=True)
        ]
    scenes["gradual"] = [
        each.task([one, two], [4_800, GRADUAL + AFTER], gradual=GRADUAL)
        for each, one, two in zip(digits, first, second, strict=True)
    ]
    scenes["one class"] = [
        each.task([one, each.taste(taught, one, classes=each.changing[:1])], [4_800, AFTER])
        for each, one in zip(digits, first, strict=True)
    ]
    measures = [measure for name, tasks in scenes.items() for measure in _scene(name, tasks, vowpal=not quick)]
    return [*measures, *_seasonal(digits, first, second), *_stationary(digits, first)]


def _scene(name: str, tasks: list[Task], *, vowpal: bool) -> list[Measure]:
    """Recovery from a change, beside the peers."""
    ours, drops, found = [], [], []
    for seed, task in enumerate(tasks):
        seen = _run(task, seed)
        satisfaction = task.satisfaction(seen.judged)
        ours.append(task.events_to_recover(satisfaction))
        drops.append(task.drop(satisfaction))
        found.append(len(seen.drifts))
    peers = {
        **{f"LinUCB, γ {g:g}": _linucb(tasks, discount=g) for g in DISCOUNTS},
        **{f"LinUCB, window {w}": _linucb(tasks, window=w) for w in WINDOWS},
    }
    if vowpal:
        peers["Vowpal Wabbit"] = [_vowpal(task, seed) for seed, task in enumerate(tasks)]
    rivals = list(peers) if name == "gradual" else [f"LinUCB, γ {g:g}" for g in DISCOUNTS]
    best = min(float(np.median(peers[rival])) for rival in rivals)
    return [
        Measure(
            f"{name}: plaudit, median events to 95 %",
            float(np.median(ours)),
            best,
            "at_most",
            f"{_all(ours)}; drifts found: {found}",
        ),
        Measure(f"{name}: plaudit, worst shuffle", max(ours), _worst_allowed(name), "at_most"),
        Measure(f"{name}: unchanged classes, largest drop in points", max(drops), 1.0, "at_most"),
        *(
            Measure(f"{name}: {peer}, median events to 95 %", float(np.median(events)), note=_all(events))
            for peer, events in peers.items()
        ),
    ]


def _worst_allowed(name: str) -> float | None:
    return 1_000.0 if name.startswith("sudden") else None


def _seasonal(digits: list[Digits], first: list[Int64], second: list[Int64]) -> list[Measure]:
    """A taste, another, and the first one again."""
    once, again, peers = [], [], []
    for seed, (each, one, two) in enumerate(zip(digits, first, second, strict=True)):
        new = each.task([one, two], [SEASON, AFTER])
        back = each.task([one, two, one], [SEASON, SEASON, AFTER])
        once.append(new.events_to_recover(new.satisfaction(_run(new, seed).judged)))
        again.append(back.events_to_recover(back.satisfaction(_run(back, seed).judged)))
        peers.append(back)
    discounted = [float(np.median(_linucb(peers, discount=g))) for g in DISCOUNTS]
    best = min(discounted + [float(np.median(_linucb(peers, window=w))) for w in WINDOWS])
    return [
        Measure("seasonal: plaudit, median events to 95 % of a new taste", float(np.median(once)), note=_all(once)),
        Measure(
            "seasonal: plaudit, median events to 95 % of a taste known before",
            float(np.median(again)),
            min(best, float(np.median(once)) / 2.0),
            "at_most",
            _all(again),
        ),
        Measure("seasonal: best LinUCB, median events to 95 % of a taste known before", best),
    ]


def _stationary(digits: list[Digits], first: list[Int64]) -> list[Measure]:
    """No second change: what forgetting costs, and how often it forgets for nothing."""
    cost, found = [], []
    for seed, (each, one) in enumerate(zip(digits, first, strict=True)):
        task = each.task([one, one], [4_800, AFTER])
        forgets, keeps = _run(task, seed), _run(task, seed, forgets=False)
        cost.append(float(task.satisfaction(keeps.judged).mean() - task.satisfaction(forgets.judged).mean()))
        found.append(len(forgets.drifts))
    return [
        Measure("stationary: satisfaction lost", max(cost), 0.005, "at_most", "of the worst shuffle"),
        Measure("stationary: drifts found", float(sum(found)), note=f"in {len(digits)} × {4_800 + AFTER:,} events"),
    ]


def _run(task: Task, seed: int, *, forgets: bool = True) -> Run:
    return run_stream(
        task.stream,
        task.wanted,
        batch=BATCH,
        wrong=WRONG,
        seed=seed,
        judge_on=task.judge_on,
        judge_from=task.change,
        batch_before=BATCH_BEFORE,
        forgets=forgets,
    )


def _linucb(tasks: list[Task], *, discount: float = 1.0, window: int | None = None) -> list[float]:
    """Events to recover of LinUCB with the optimism and precision that are best in ``shift``."""
    prior = np.concatenate([np.eye(ACTIONS), np.zeros((ACTIONS, 1))], axis=1)
    events = []
    for seed, task in enumerate(tasks):
        peer = LinUcb(ACTIONS + 1, ACTIONS, 0.5, 0.5, prior, seed, discount, window)
        held_out, stream = _with_one(_probabilities(task.judge_on)), _with_one(_probabilities(task.stream))
        rng = np.random.default_rng(seed)
        satisfaction = []
        for start in [*range(0, task.change, BATCH), *range(task.change, len(task.wanted), BATCH)]:
            if start >= task.change:
                satisfaction.append((peer.pick(held_out) == task.taste[task.judged_digits]).astype(np.float64))
            rows = slice(start, min(start + BATCH, task.change) if start < task.change else start + BATCH)
            actions = peer.pick(stream[rows])
            good = (actions == task.wanted[rows]) ^ (rng.random(len(actions)) < WRONG)
            peer.learn(stream[rows], actions, good.astype(np.float64))
        events.append(task.events_to_recover(np.array(satisfaction)))
    return events


def _vowpal(task: Task, seed: int) -> float:
    """Events to recover of Vowpal Wabbit with a learning rate that does not decay."""
    peer = VowpalWabbit(ACTIONS, VOWPAL, seed)
    held_out, stream = _probabilities(task.judge_on), _probabilities(task.stream)
    rng = np.random.default_rng(seed)
    first = max(0, task.change - 4_800)  # what it knew before that, it has forgotten
    satisfaction = []
    for start in [*range(first, task.change, BATCH), *range(task.change, len(task.wanted), BATCH)]:
        if start >= task.change:
            probs = peer.probabilities(held_out)
            satisfaction.append(probs[np.arange(len(probs)), task.taste[task.judged_digits]])
        rows = slice(start, min(start + BATCH, task.change) if start < task.change else start + BATCH)
        actions = peer.pick(stream[rows])
        good = (actions == task.wanted[rows]) ^ (rng.random(len(actions)) < WRONG)
        peer.learn(stream[rows], actions, good.astype(np.float64))
    return task.events_to_recover(np.array(satisfaction))


def _probabilities(contexts: Contexts) -> Float64:
    odds: Float64 = np.exp(contexts.base_logits)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _with_one(values: Float64) -> Float64:
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def _all(events: list[float]) -> str:
    return "shuffles: " + " ".join(f"{value:.0f}" for value in events)
