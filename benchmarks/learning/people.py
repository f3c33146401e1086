"""Honest users and attackers before the detector of inverted labels: who is taken for an attacker, and how soon.

100 users rate what a service answers on contents of ten kinds, one after another, 150 labels each. The service answers
by what it was told so far; it explores so much that about three answers in four are right. A tenth of the users is the
group of interest. Evidence against users is the library's (plaudit_models.evaluation.inversion), for all users of all
replicates at once; who is found is believed no more. The worlds are those of an audit in which the detector before
silenced unhappy minorities: .94 of a small group with a taste of its own, .99 of users whom the service fails, 1.00 of
severe ones.

Notation:
    r: replicates, u: users, k: kinds of content, and as many answers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Measure
from plaudit_models.bandit.features import Float64
from plaudit_models.bandit.policy import Bool
from plaudit_models.evaluation.inversion import Inversion

REPLICATES: Final = 300
USERS: Final = 100
LABELS: Final = 150
K: Final = 10
FLOOR: Final = 0.3
SHARPNESS: Final = 8.0
BASE_RIGHT: Final = 7
"""Kinds of content whose likeliest answer by the base model is right."""
WRONG_THUMBS: Final = 0.05
PRIOR_WEIGHT: Final = 2.0
SOON: Final = 40
HONEST: Final = 0.02
ATTACKERS: Final = 0.98

Ints = npt.NDArray[np.int64]
Behaviour = Literal["opposite", "random", "badly served", "severe", "own taste", "dislikes everything"]


@dataclass(frozen=True, slots=True)
class Group:
    """Users of interest.

    Attributes:
        n: of the users.
        begins: labels of theirs after which they behave so; before that like all others.
        content: share of right answers that satisfies them (badly served), or reward that they give those (severe).
        kinds: kinds of content about which they want another answer than others (own taste).
        asks: share of their requests about those kinds; None: as all others.
    """

    behaviour: Behaviour
    n: int = 10
    begins: int = 0
    content: float = 1.0
    kinds: int = 0
    asks: float | None = None


HONEST_GROUPS: Final = {
    "served badly, a fifth satisfies": Group("badly served", content=0.25),
    "served badly, a tenth satisfies": Group("badly served", content=0.125),
    "served badly from the 76th label on": Group("badly served", content=0.125, begins=75),
    "dislike everything": Group("dislikes everything"),
    "severe, .4 for a right answer": Group("severe", content=0.4),
    "severe, .2 for a right answer": Group("severe", content=0.2),
    "severe from the 76th label on, .2": Group("severe", content=0.2, begins=75),
    "thumbs at random": Group("random"),
    "own taste in 1 kind": Group("own taste", kinds=1),
    "own taste in 5 kinds": Group("own taste", kinds=5),
    "own taste in 7 kinds": Group("own taste", kinds=7),
    "7 % with own taste in a kind, 78 % of their requests": Group("own taste", n=7, kinds=1, asks=0.78),
    "3 % with own taste in a kind, 91 % of their requests": Group("own taste", n=3, kinds=1, asks=0.91),
}
ATTACKING: Final = {
    "a tenth says the opposite": Group("opposite"),
    "three tenths say the opposite": Group("opposite", n=30),
    "a tenth says the opposite from the 76th label on": Group("opposite", begins=75),
}


@dataclass(frozen=True, slots=True)
class Found:
    """Shares of the users who were found, ``[r]`` each: of the group, of it within SOON labels, of all others."""

    group: Float64
    soon: Float64
    others: Float64


def run(shuffles: int, quick: bool) -> list[Measure]:
    n = 10 if quick else REPLICATES
    measures = []
    for name, group in HONEST_GROUPS.items():
        found = world(group, n, seed=0)
        measures.append(_measure(f"honest, found: {name}", found.group, HONEST, "at_most"))
    for name, group in ATTACKING.items():
        found = world(group, n, seed=0)
        measures.append(_measure(f"found within {SOON} labels: {name}", found.soon, ATTACKERS, "at_least"))
        later = LABELS - group.begins
        measures.append(_measure(f"found within {later} labels: {name}", found.group, ATTACKERS, "at_least"))
        measures.append(_measure(f"honest, found beside them: {name}", found.others, HONEST, "at_most"))
    return measures


def _measure(name: str, shares: Float64, goal: float, direction: Literal["at_most", "at_least"]) -> Measure:
    error = float(shares.std(ddof=1) / np.sqrt(len(shares)))
    note = f"standard error {error:.4f}; {len(shares)} replicates"
    return Measure(name, float(shares.mean()), goal=goal, direction=direction, note=note)


def world(group: Group, replicates: int, seed: int) -> Found:
    """Who is found in a number of independent worlds."""
    rng = np.random.default_rng([23, seed])
    shape, r = (replicates, USERS), np.arange(replicates)[:, None]
    of_group = np.arange(USERS) < group.n
    wanted = _wanted(rng, replicates)
    wanted_by_group = _with_own_taste(rng, wanted, group.kinds)
    asks = np.cumsum(_asks(group, of_group), axis=1)
    base = np.where(np.eye(K, dtype=np.bool_), 0.8, 0.1)
    n, liked = np.zeros((replicates, K, K)), np.zeros((replicates, K, K))
    evidence = Inversion(*np.zeros((5, *shape)))
    found_at = np.full(shape, np.iinfo(np.int64).max)
    for label in range(LABELS):
        kind: Ints = (rng.random((*shape, 1)) > asks).sum(-1).clip(0, K - 1)
        expected = (liked + PRIOR_WEIGHT * base) / (n + PRIOR_WEIGHT)
        answer = _drawn(rng, _policy(expected)[r, kind])
        right = answer == np.where(of_group, wanted_by_group[r, kind], wanted[r, kind])
        reward = _reward(rng, group, right, of_group & (label >= group.begins))
        known = n[r, kind, answer] / (n[r, kind, answer] + PRIOR_WEIGHT)
        evidence = evidence.update(reward, expected[r, kind, answer], known)
        heard = found_at > LABELS
        found_at[heard & evidence.found] = label + 1
        heard = found_at > LABELS
        where = np.broadcast_to(r, shape)[heard], kind[heard], answer[heard]
        np.add.at(n, where, 1.0)
        np.add.at(liked, where, reward[heard])
    since = found_at - group.begins
    return Found(
        group=(found_at[:, of_group] <= LABELS).mean(axis=1),
        soon=(since[:, of_group] <= SOON).mean(axis=1),
        others=(found_at[:, ~of_group] <= LABELS).mean(axis=1),
    )


def _wanted(rng: np.random.Generator, replicates: int) -> Ints:
    """Answer that most users want, by kind, ``[r, k]``."""
    wanted: Ints = np.tile(np.arange(K), (replicates, 1))
    others = rng.integers(1, K, (replicates, K - BASE_RIGHT))
    wanted[:, BASE_RIGHT:] = (wanted[:, BASE_RIGHT:] + others) % K
    return wanted


def _with_own_taste(rng: np.random.Generator, wanted: Ints, kinds: int) -> Ints:
    """The same with other answers for the first kinds."""
    own = wanted.copy()
    own[:, :kinds] = (own[:, :kinds] + rng.integers(1, K, (len(own), kinds))) % K
    return own


def _asks(group: Group, of_group: Bool) -> Float64:
    """Probability of each kind of content, by user, ``[u, k]``."""
    asks = np.full((USERS, K), 1.0 / K)
    if group.asks is not None:
        own = np.arange(K) < group.kinds
        asks[of_group] = np.where(own, group.asks / group.kinds, (1.0 - group.asks) / (K - group.kinds))
    return asks


def _policy(expected: Float64) -> Float64:
    """Probabilities of the answers, ``[r, k, k]``."""
    likely = np.exp(SHARPNESS * (expected - expected.max(-1, keepdims=True)))
    policy: Float64 = FLOOR / K + (1.0 - FLOOR) * likely / likely.sum(-1, keepdims=True)
    return policy


def _drawn(rng: np.random.Generator, probabilities: Float64) -> Ints:
    drawn: Ints = (rng.random((*probabilities.shape[:-1], 1)) > probabilities.cumsum(-1)).sum(-1).clip(0, K - 1)
    return drawn


def _reward(rng: np.random.Generator, group: Group, right: Bool, behaves: Bool) -> Float64:
    """Reward that each user gives, ``[r, u]``; ``behaves`` is ``[u]``."""
    wrong = rng.random(right.shape) < WRONG_THUMBS
    plain = (right ^ wrong).astype(np.float64)
    satisfied = rng.random(right.shape) < group.content
    match group.behaviour:
        case "opposite":
            theirs = 1.0 - plain
        case "random":
            theirs = (rng.random(right.shape) < 0.5).astype(np.float64)
        case "badly served":
            theirs = ((right & satisfied) ^ (wrong & satisfied)).astype(np.float64)
        case "severe":
            theirs = group.content * plain
        case "dislikes everything":
            theirs = np.zeros(right.shape)
        case "own taste":
            theirs = plain
    return np.where(behaves, theirs, plain)
