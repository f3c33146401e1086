"""Peers of the learner on the same streams: LinUCB and Vowpal Wabbit. Both see thumbs only.

Notation:
    n: rounds, e: contexts to judge on, f: number of features, a: number of actions
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass
class LinUcb:
    """One ridge regression per action, the highest upper confidence bound wins (Li et al., 2010, algorithm 1).

    Attributes:
        n_features: f.
        n_actions: a.
        optimism: α, standard deviations added to the estimate.
        precision: λ.
        prior: prior mean of the weights, ``[a, f]``; zero if left out.
        seed: of what breaks ties.
        discount: γ a thumb: evidence counts γ^(thumbs since) (D-LinUCB: Russac, Vernade, Cappé, 2019, without the
            second matrix of its bound).
        window: thumbs that count, the latest (SW-LinUCB: Cheung, Simchi-Levi, Zhu, 2019); None: all.
    """

    n_features: int
    n_actions: int
    optimism: float
    precision: float
    prior: Float64 | None = None
    seed: int = 0
    discount: float = 1.0
    window: int | None = None
    _seen: list[tuple[Float64, Int64, Float64]] = field(init=False, default_factory=list)
    _gram: Float64 = field(init=False)
    _target: Float64 = field(init=False)
    _inverse: Float64 = field(init=False)
    _mean: Float64 = field(init=False)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        a, f = self.n_actions, self.n_features
        self._gram, self._target = np.zeros((a, f, f)), np.zeros((a, f))
        self._inverse, self._mean = np.zeros((a, f, f)), np.zeros((a, f))
        self._solve(range(a))
        self._rng = np.random.default_rng(self.seed)

    def pick(self, features: Float64) -> Int64:
        """The action of each row, ``[n]``; ties are broken at random."""
        variance = (np.matmul(features, self._inverse) * features).sum(axis=2).T
        bound = features @ self._mean.T + self.optimism * np.sqrt(variance)
        best: Int64 = (bound + 1e-9 * self._rng.random(bound.shape)).argmax(axis=1)
        return best

    def learn(self, features: Float64, actions: Int64, rewards: Float64) -> None:
        n = len(actions)
        weights = self.discount ** np.arange(n - 1, -1, -1.0)
        self._gram *= self.discount**n
        self._target *= self.discount**n
        touched = set(self._add(features, actions, rewards, weights))
        if self.window is not None:
            self._seen.append((features, actions, rewards))
            while sum(len(each[1]) for each in self._seen) > self.window:
                gone = self._seen.pop(0)
                touched |= set(self._add(*gone, -np.ones(len(gone[1]))))
        self._solve(range(self.n_actions) if self.discount < 1.0 else sorted(touched))

    def _add(self, features: Float64, actions: Int64, rewards: Float64, weights: Float64) -> list[int]:
        """Add weighted evidence to the sums; returns the actions that it is about."""
        for k in np.unique(actions):
            rows = actions == k
            weighted = weights[rows, None] * features[rows]
            self._gram[k] += weighted.T @ features[rows]
            self._target[k] += rewards[rows] @ weighted
        return [int(k) for k in np.unique(actions)]

    def _solve(self, actions: Iterable[int]) -> None:
        for k in actions:
            ridge = self._gram[k] + self.precision * np.eye(self.n_features)
            self._inverse[k] = np.linalg.inv(ridge)
            prior = 0.0 if self.prior is None else self.precision * self.prior[k]
            self._mean[k] = self._inverse[k] @ (self._target[k] + prior)


@dataclass
class VowpalWabbit:
    """A contextual bandit of Vowpal Wabbit, through its Python wheel.

    Attributes:
        n_actions: a.
        options: of its command line.
        seed: of the draws from what it predicts.
    """

    n_actions: int
    options: str
    seed: int

    def __post_init__(self) -> None:
        import vowpalwabbit

        self._workspace = vowpalwabbit.Workspace(f"--cb_explore_adf -q sa --ignore_linear s --quiet {self.options}")
        self._rng = np.random.default_rng(self.seed)
        self._probs = np.zeros((0, self.n_actions))

    def probabilities(self, features: Float64) -> Float64:
        """Probabilities of the actions, shape ``[n, a]``."""
        rows = np.array([self._workspace.predict(self._lines(row)) for row in features])
        probs: Float64 = rows / rows.sum(axis=1, keepdims=True)
        return probs

    def pick(self, features: Float64) -> Int64:
        """The action of each row, ``[n]``, drawn from what is predicted."""
        self._probs = self.probabilities(features)
        actions: Int64 = (self._rng.random((len(features), 1)) >= self._probs.cumsum(axis=1)).sum(axis=1)
        return np.minimum(actions, self.n_actions - 1)

    def learn(self, features: Float64, actions: Int64, rewards: Float64) -> None:
        """Learn from the rows last picked for."""
        for row, probs, action, reward in zip(features, self._probs, actions, rewards, strict=True):
            lines = self._lines(row)
            lines[1 + action] = f"0:{1.0 - reward}:{probs[action]} {lines[1 + action]}"
            self._workspace.learn(lines)

    def teach(self, features: Float64, right_actions: Int64) -> None:
        """Tell the right action of each row, as a bandit that always picked it would have learned it."""
        for row, action in zip(features, right_actions, strict=True):
            lines = self._lines(row)
            lines[1 + action] = f"0:0:1 {lines[1 + action]}"
            self._workspace.learn(lines)

    def _lines(self, row: Float64) -> list[str]:
        words = " ".join(f"x{i}:{value:.4g}" for i, value in enumerate(row) if value)
        return [f"shared |s {words}", *(f"|a is{k}" for k in range(self.n_actions))]


VOWPAL_SETTINGS = (
    "--squarecb --gamma_scale 10 --elim -l 2",
    "--squarecb --gamma_scale 10 --elim --coin",
    "--squarecb --gamma_scale 10 --cb_type mtr -l 2",
    "--squarecb --gamma_scale 100 --coin",
    "--bag 7 --epsilon 0 --coin",
)
"""The best of about 120 tried on digits-bandit; a benchmark reports the best of these on its own stream."""


def run_peer(
    peer: LinUcb | VowpalWabbit, features: Float64, wanted: Int64, *, batch: int, wrong: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Mask, True where the answer was the wanted one, shape ``[n]``; the peer learns after every ``batch`` rounds."""
    rng = np.random.default_rng(seed)
    liked = []
    for start in range(0, len(wanted), batch):
        rows = slice(start, start + batch)
        actions = peer.pick(features[rows])
        good = actions == wanted[rows]
        liked.append(good)
        peer.learn(features[rows], actions, (good ^ (rng.random(len(good)) < wrong)).astype(np.float64))
    return np.concatenate(liked)
