"""Error rates of the gate: share of candidates promoted that are not better, and decisions until better ones are.

Live is a softmax classifier of handwritten digits, served with the exploration floor; users rate what they are served,
5 % of the thumbs the wrong way round. The gate looks every 100 decisions, up to 5,000, with users and slices as in the
learner. Candidates differ from live by a gain that is known exactly, because both policies and the probability of a
thumb up are known for every digit:
    small change   answers differ in a few contexts only
    full retrain   trained on other digits, so that it errs elsewhere
The reward model is the candidate's own, learned from decisions before those at the gate, as in the learner.

Notation:
    n: digits, a: 10 actions
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from benchmarks.measure import Curve, Measure
from plaudit.compose.learner import gate_rules, head_builder
from plaudit.core.settings import Settings
from plaudit_models.bandit.features import FeatureSpace, Float64, features
from plaudit_models.bandit.policy import Bool, probabilities, sample
from plaudit_models.bandit.posterior import posterior
from plaudit_models.bandit.reward_model import empty_state, evidence_of_actions
from plaudit_models.evaluation.gate import Differences, GateReport, GateRules, differences, new_comparison
from plaudit_models.evaluation.ope import Int64, LoggedRounds

FLOOR: Final = head_builder(Settings()).floor
WRONG_THUMBS: Final = 0.05
USERS: Final = 300
SNAPSHOT: Final = 1_000
"""Decisions before the gate's, which the reward model has learned from."""
LOOK: Final = 100
LAST: Final = 5_000
REPLICATES: Final = 250
N_ACTIONS: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Policies of live and of the candidate on all digits that are served, and the true rewards.

    Attributes:
        live, candidate: shape ``[n, a]``.
        rewards: probability of a thumb up, shape ``[n, a]``.
        q_hat: rewards that the candidate's reward model expects, shape ``[n, a]``.
        slices: the class live finds most likely, n names.
    """

    live: Float64
    candidate: Float64
    rewards: Float64
    q_hat: Float64
    slices: tuple[str, ...]

    @property
    def gain(self) -> float:
        return float(((self.candidate - self.live) * self.rewards).sum(axis=1).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """Decisions of live, and their users.

    Attributes:
        digit: index of the digit, shape ``[n]``.
        log: of the decisions.
        users: names of the raters, n of them.
    """

    digit: Int64
    log: LoggedRounds
    users: tuple[str, ...]


SCENARIOS: Final = (
    ("small change", 0.02, 2_000),
    ("full retrain", 0.03, 5_000),
    ("small change", 0.0, None),
    ("full retrain", 0.0, None),
    ("small change", -0.02, None),
    ("full retrain", -0.03, None),
    ("slice harmed", 0.01, None),
)
"""Kind of candidate, its gain, and by when it must be promoted; None: it must not be."""


def run(shuffles: int, quick: bool) -> list[Measure]:
    """Measures of fixed numbers of replicates; ``shuffles`` changes nothing."""
    del shuffles
    replicates = 10 if quick else REPLICATES
    measures = []
    for kind, gain, by in SCENARIOS:
        reports = [verdict(world(kind, gain), replicate) for replicate in range(replicates)]
        found = Counter(report.verdict for report in reports)
        promoted = [report.n + report.capped for report in reports if report.verdict == "promote"]
        looks = range(LOOK, LAST + 1, LOOK)
        share = [sum(n <= look for n in promoted) / replicates for look in looks]
        name = f"{kind}, {100 * gain:+.0f} points"
        measures.append(
            Measure(
                f"{name}: promoted by {by} events" if by else f"{name}: promoted",
                share[by // LOOK - 1] if by else share[-1],
                goal=0.90 if by else MAX_FALSE,
                direction="at_least" if by else "at_most",
                note=(
                    f"{replicates} logs; by {LAST}: {found['promote']} promoted, {found['reject']} rejected"
                    + (f"; promoted at {np.median(promoted):.0f} events in the median" if promoted else "")
                ),
                curve=Curve(tuple(looks), tuple(share), "decisions", "share promoted"),
            )
        )
    return measures


MAX_FALSE: Final = 0.05
RULES: Final = gate_rules(Settings())


def verdict(world: World, replicate: int) -> GateReport:
    """Verdict of the gate on one log."""
    return look_through(world, serve(world, np.random.default_rng([7, replicate]), LAST), RULES)


def look_through(world: World, logged: Log, rules: GateRules) -> GateReport:
    """The gate's report at the first look with a verdict, or at the last."""
    seen = judge_differences(world, logged)
    comparison = new_comparison(rules)
    for start in range(0, LAST, LOOK):
        rows = slice(start, start + LOOK)
        part = Differences(seen.low[rows], seen.high[rows], seen.weight[rows])
        slices = [world.slices[i] for i in logged.digit[rows]]
        comparison = comparison.update(part, logged.users[rows], slices)
        if comparison.finding() != "none":
            break
    return comparison.report()


def judge_differences(world: World, logged: Log) -> Differences:
    """Differences that the gate computes from the log, as the learner calls it."""
    live = world.live[logged.digit]
    return differences(
        logged.log,
        world.candidate[logged.digit],
        live,
        world.q_hat[logged.digit],
        logging_probs=live,
        rules=RULES,
    )


def serve(world: World, rng: np.random.Generator, n: int) -> Log:
    """n decisions of live about digits drawn anew, and their feedback."""
    digit = rng.integers(0, len(world.live), n)
    action = sample(world.live[digit], rng.random(n))
    reward = (rng.random(n) < world.rewards[digit, action]).astype(np.float64)
    log = LoggedRounds(reward, action, world.live[digit, action])
    return Log(digit, log, tuple(f"user {u}" for u in rng.integers(0, USERS, n)))


# --- worlds ----------------------------------------------------------------------------------------------------------

LABELS: Final = 100
"""Labelled digits that live is trained on."""
POOL: Final = 900
"""Digits to train on; the others are served."""
CHANGED: Final = 40
"""Digits, of 897, that a small change mends, and as many that it breaks."""
SLICE_HARM: Final = 0.15
"""Loss on the slice that is harmed, about a tenth of the traffic."""


@dataclass(frozen=True, slots=True, eq=False)
class _Digits:
    """Shuffled: ``pixels`` ``[n, 64]`` in [0, 1], ``target`` ``[n]``."""

    pixels: Float64
    target: Int64

    def logits(self, labelled: slice) -> Float64:
        """Logits of a classifier trained on these digits, for those that are served, shape ``[n, a]``."""
        model = LogisticRegression(C=10.0, max_iter=500).fit(self.pixels[labelled], self.target[labelled])
        logits: Float64 = model.decision_function(self.pixels[POOL:])
        return logits

    @property
    def served_target(self) -> Int64:
        return self.target[POOL:]


@cache
def digits() -> _Digits:
    pixels, target = load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(target))
    return _Digits(pixels[order] / 16.0, target[order])


@cache
def world(kind: str, gain: float) -> World:
    """World with a candidate of this kind that is better than live by exactly ``gain``."""
    target, live_logits = digits().served_target, digits().logits(slice(0, LABELS))
    rewards = np.where(np.arange(N_ACTIONS) == target[:, None], 1.0 - WRONG_THUMBS, WRONG_THUMBS)
    live = _served(live_logits)
    make = {"small change": _small_change, "full retrain": _full_retrain, "slice harmed": _slice_harmed}[kind]
    candidate = make(live_logits, target, rewards, gain)
    slices = tuple(f"looks like {k}" for k in live.argmax(axis=1))
    made = World(live, candidate, rewards, np.zeros_like(live), slices)
    return replace(made, q_hat=_predicted(made))


def _small_change(live_logits: Float64, target: Int64, rewards: Float64, gain: float) -> Float64:
    """Mends digits that live gets wrong or breaks some that it gets right; for no gain, as much of each."""
    mend, break_ = _steps(live_logits, target, among=np.ones(len(target), np.bool_))
    live = _served(live_logits)
    up, down = _value(mend, rewards), _value(break_, rewards)
    if gain == 0.0:
        return live + 0.02 / up * mend - 0.02 / down * break_
    return live + (gain / up * mend if gain > 0.0 else gain / down * break_)


def _slice_harmed(live_logits: Float64, target: Int64, rewards: Float64, gain: float) -> Float64:
    """Breaks a tenth of what looks like a 3, and mends enough elsewhere to gain over all."""
    looks_like_3 = live_logits.argmax(axis=1) == 3
    mend, _ = _steps(live_logits, target, among=~looks_like_3)
    _, break_ = _steps(live_logits, target, among=looks_like_3)
    harm = SLICE_HARM * float(looks_like_3.mean())
    up, down = _value(mend, rewards), _value(break_, rewards)
    return _served(live_logits) + (gain + harm) / up * mend - harm / down * break_


def _steps(live_logits: Float64, target: Int64, among: Bool) -> tuple[Float64, Float64]:
    """Changes of what is served that mend, and that break, some digits among these; shape ``[n, a]`` each."""
    rng = np.random.default_rng(11)
    live = _served(live_logits)
    right = live_logits.argmax(axis=1) == target
    other = (target + rng.integers(1, N_ACTIONS, len(target))) % N_ACTIONS

    def changed(which: Bool, answer: Int64) -> Float64:
        rows = rng.permutation(np.flatnonzero(which & among))[:CHANGED]
        logits = live_logits.copy()
        logits[rows, answer[rows]] = live_logits[rows].max(axis=1) + 3.0
        return _served(logits) - live

    return changed(~right, target), changed(right, other)


def _value(step: Float64, rewards: Float64) -> float:
    return float((step * rewards).sum(axis=1).mean())


def _full_retrain(live_logits: Float64, target: Int64, rewards: Float64, gain: float) -> Float64:
    """Two classifiers trained on other digits than live, one too good and one too bad, mixed to the gain.

    Of all such pairs the one that is most even over the slices: the gate must not promote what harms one.
    """
    live, looks_like = _served(live_logits), live_logits.argmax(axis=1)
    others = [
        _served(digits().logits(slice(first, first + n))) for first in range(100, 700, 50) for n in (80, 120, 200)
    ]
    gains = np.array([((other - live) * rewards).sum(axis=1) for other in others])
    totals, by_slice = gains.mean(axis=1), np.array([gains[:, looks_like == k].mean(axis=1) for k in range(N_ACTIONS)])
    best, worst_slice = live, -np.inf
    for above in np.flatnonzero(totals >= gain):
        for below in np.flatnonzero(totals < gain):
            share = (gain - totals[below]) / (totals[above] - totals[below])
            worst = float((share * by_slice[:, above] + (1.0 - share) * by_slice[:, below]).min())
            if worst > worst_slice:
                best, worst_slice = share * others[above] + (1.0 - share) * others[below], worst
    return best


def _served(logits: Float64) -> Float64:
    return probabilities(logits, np.ones(logits.shape, np.bool_), FLOOR)


def _predicted(world: World) -> Float64:
    """Rewards that the candidate's reward model expects, learned from decisions of live before those at the gate."""
    logged = serve(world, np.random.default_rng(5), SNAPSHOT)
    base_logits, pixels = np.log(world.candidate), digits().pixels[POOL:]
    builder = head_builder(Settings())
    space = FeatureSpace("candidate", N_ACTIONS, pixels.shape[1], builder.embedding_features, builder.exclusivity)
    phi = features(space, pixels, base_logits)
    evidence = evidence_of_actions(space, phi[logged.digit], logged.log.action, logged.log.reward)
    q_hat, _ = posterior(empty_state(space).add(evidence), builder.settings.prior).predict(phi)
    return q_hat
