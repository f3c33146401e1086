"""digits-bandit: scikit-learn's digits as a contextual bandit: no trained policy, 64 pixels, one of 10 answers right.

Every shuffle is served once in order (the fifth pass: five times, shuffled anew); the learner hears thumbs alone, and
refreshes after every 16. What is reported is the share of right answers, not of thumbs up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from benchmarks.learning.fast_loop import Contexts, run_stream
from benchmarks.learning.peers import VOWPAL_SETTINGS, Float64, Int64, LinUcb, VowpalWabbit, run_peer
from benchmarks.measure import Curve, Measure
from plaudit_models.evaluation.calibration import reliability

BATCH = 16
PASSES = 5
ACTIONS = 10
NOISE = {"clean": 0.0, "10 % wrong thumbs": 0.1}
FIFTH_PASS_GOALS = {"clean": 0.98, "10 % wrong thumbs": 0.96}

Liked = npt.NDArray[np.bool_]


def run(shuffles: int, quick: bool) -> list[Measure]:
    pixels, digits = load_digits(return_X_y=True)
    pixels, digits = pixels / 16.0, digits.astype(np.int64)
    if quick:
        pixels, digits = pixels[:320], digits[:320]
    measures: list[Measure] = []
    for name, wrong in NOISE.items():
        ours, fifth, calibration = [], [], []
        for seed in range(shuffles):
            order = np.concatenate([np.random.default_rng([seed, p]).permutation(len(digits)) for p in range(PASSES)])
            stream = Contexts(pixels[order], np.zeros((len(order), ACTIONS)))
            seen = run_stream(stream, digits[order], batch=BATCH, wrong=wrong, seed=seed)
            ours.append(seen.liked[: len(digits)])
            fifth.append(seen.liked[-len(digits) :].mean())
            calibration.append(reliability(seen.predicted[: len(digits)], seen.thumbs[: len(digits)]).error)
        ridge = [_peer(_linucb, _lengthened(pixels), digits, s, wrong, BATCH) for s in range(shuffles)]
        eager = [_peer(_linucb, _lengthened(pixels), digits, s, wrong, 1) for s in range(shuffles)]
        vowpal, options = _best_vowpal(pixels, digits, shuffles, wrong)
        linucb = float(np.mean(ridge))
        measures += [
            Measure(f"{name}: plaudit", float(np.mean(ours)), linucb - 0.01, "at_least", _spread(ours), _curve(ours)),
            Measure(f"{name}: plaudit over LinUCB", float(np.mean(ours)) - linucb, 0.0, "at_least", "every 16 events"),
            Measure(f"{name}: LinUCB every 16 events", linucb, note=_spread(ridge), curve=_curve(ridge)),
            Measure(f"{name}: LinUCB every event", float(np.mean(eager)), note=_spread(eager)),
            Measure(f"{name}: best Vowpal Wabbit", float(np.mean(vowpal)), note=options, curve=_curve(vowpal)),
            Measure(
                f"{name}: plaudit, 5th pass", float(np.mean(fifth)), FIFTH_PASS_GOALS[name], note="the floor included"
            ),
            Measure(
                f"{name}: calibration error", float(np.mean(calibration)), note="of rewards predicted before thumbs"
            ),
        ]
    return measures


def _peer(
    make: Callable[[int], LinUcb | VowpalWabbit], inputs: Float64, digits: Int64, seed: int, wrong: float, batch: int
) -> Liked:
    order = np.random.default_rng([seed, 0]).permutation(len(digits))
    return run_peer(make(seed), inputs[order], digits[order], batch=batch, wrong=wrong, seed=seed)


def _linucb(seed: int) -> LinUcb:
    """LinUCB at the best of 16 pairs of optimism and precision tried on this task."""
    return LinUcb(n_features=65, n_actions=ACTIONS, optimism=0.3, precision=0.1, seed=seed)


def _lengthened(pixels: Float64) -> Float64:
    """Features of unit length and a constant, with which LinUCB does best."""
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    return np.concatenate([unit, np.ones((len(pixels), 1))], axis=1)


def _best_vowpal(pixels: Float64, digits: Int64, shuffles: int, wrong: float) -> tuple[list[Liked], str]:
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    runs = {
        f"{options}, every {'16 events' if batch > 1 else 'event'}": [
            _peer(lambda seed, o=options: VowpalWabbit(ACTIONS, o, seed), unit, digits, s, wrong, batch)  # type: ignore[misc]
            for s in range(shuffles)
        ]
        for options in VOWPAL_SETTINGS
        for batch in (1, BATCH)
    }
    best = max(runs, key=lambda options: float(np.mean(runs[options])))
    return runs[best], best


def _spread(runs: list[Liked]) -> str:
    means = [float(run.mean()) for run in runs]
    return f"{len(means)} shuffles, {min(means):.3f} to {max(means):.3f}"


def _curve(runs: list[Liked]) -> Curve:
    mean = np.mean(runs, axis=0).cumsum() / np.arange(1, len(runs[0]) + 1)
    points = np.arange(BATCH - 1, len(mean), BATCH)
    return Curve(tuple((points + 1.0).tolist()), tuple(mean[points].tolist()), "rounds", "average reward so far")
