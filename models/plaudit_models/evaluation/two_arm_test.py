"""Randomised comparison of a candidate with live, by the rewards of users who were drawn to be served by either.

Needed where off-policy evaluation (:mod:`plaudit_models.evaluation.gate`) has too little to go by, because live hardly
ever gives the candidate's answers. Knows nothing about versions or rollouts.

With a share s of the users served by the candidate, an answer that the candidate gives with probability c and live with
probability l was given with probability s·c + (1 − s)·l, whoever gave it. With its reward r and any guess m made
beforehand it says

    d = w·(r − m),   w = (c − l)/(s·c + (1 − s)·l)

whose mean is the candidate's mean reward minus live's (importance weighting by the mixture of the two, the balance
heuristic of Veach and Guibas 1995; the "balanced" estimator of Agarwal et al., Effective Evaluation Using Logged Bandit
Feedback from Multiple Loggers, 2017). Where the two would answer alike, d is 0: thumbs on what a candidate leaves as it
is say nothing about it, and are most of the noise otherwise. Where c and l are not known, the draw of the user alone
speaks (Horvitz and Thompson 1952):

    w = 1/s         if the candidate served it
    w = −1/(1 − s)  if live did

m takes out variance; it is the mean reward so far, weighted by w². |d| ≤ max(1/s, 1/(1 − s)). Betting e-processes
(:mod:`plaudit_models.evaluation.e_process`) test "gain ≤ 0" and "gain ≥ −margin" with d, so it may be looked at after
every event. The draw is by user: the guarantee is for users who are alike on average, or so many that the draw evens
them out.

The first w assumes that users rate answers, whichever version gave them. Where they rate the version besides (it
shows the same answer worse), what the two have in common hides the harm: d is too near 0, and proof comes late. So half
of the initial wealth is bet on d of the first w, half on d of the second. The total wealth is an e-process too, and the
worse half costs at most log 2 of the evidence (Vovk, Wang: E-values, 2021, section 3: the mean of e-values is one,
however they depend on each other).

Notation:
    n: number of experiences
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from plaudit_models.bandit.features import Float64, Floats
from plaudit_models.bandit.policy import Bool
from plaudit_models.evaluation.e_process import LOG_CEILING, EProcess, e_process_from_dict, log_total, open_e_process
from plaudit_models.evaluation.gate import SUSPICION, Finding
from plaudit_models.evaluation.raters import UserTally, fair_cap

_PRIOR_REWARD: Final = 0.5
_PRIOR_N: Final = 10.0
"""The guess m starts at ½ and moves to the mean reward so far, as if ½ had been seen this often where the two never
answer alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Propensities:
    """Probabilities of the answers that were given, ``[n]`` each; NaN where not known.

    Attributes:
        candidate: c, under the candidate.
        live: l, under the version that was live then.
    """

    candidate: Float64
    live: Float64

    def __getitem__(self, rows: Bool) -> Propensities:
        return Propensities(self.candidate[rows], self.live[rows])


@dataclass(frozen=True, slots=True)
class TwoArmTestRules:
    """Thresholds of proof.

    Attributes:
        share: share of the users that the candidate serves, in (0, 1).
        alpha: probability of a wrong finding, in (0, 1), for each of the two kinds.
        margin: loss of reward against live that is not yet harm, in [0, 1].
        min_events: experiences before any finding.
        user_cap: largest share of the experiences seen that one user's may count for, in (0, 1].
    """

    share: float
    alpha: float = 0.05
    margin: float = 0.0
    min_events: int = 100
    user_cap: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share {self.share} is not in (0, 1)")

    @property
    def bound(self) -> float:
        return max(1.0 / self.share, 1.0 / (1.0 - self.share))


@dataclass(frozen=True, slots=True, eq=False)
class SplitBet:
    """E-process against one claim, its initial wealth split between both definitions of w; immutable.

    Attributes:
        by_answer: bets on d with the w of the propensities.
        by_draw: bets on d with the w of the draw alone.
        best: logarithm of the largest total wealth at any look.
    """

    by_answer: EProcess
    by_draw: EProcess
    best: float = 0.0

    def update(self, by_answer: Float64, by_draw: Float64) -> SplitBet:
        """Bet on d of further experiences, ``[n]`` each, then look once."""
        answer, draw = self.by_answer.update(by_answer), self.by_draw.update(by_draw)
        total = np.logaddexp(log_total(answer.log_wealth)[0], log_total(draw.log_wealth)[0]) - math.log(2.0)
        return SplitBet(answer, draw, max(self.best, float(total)))

    def e_value(self) -> float:
        """Strongest evidence so far against the claim."""
        return math.exp(min(self.best, LOG_CEILING))


def _open_split_bet(bound: float, claim: float) -> SplitBet:
    bets = open_e_process(bound, np.array([claim]))
    return SplitBet(bets, bets)


def _split_bet_from_dict(raw: Mapping[str, Any]) -> SplitBet:
    return SplitBet(e_process_from_dict(raw["by_answer"]), e_process_from_dict(raw["by_draw"]), raw["best"])


@dataclass(frozen=True, slots=True, eq=False)
class TwoArmTest:
    """Evidence of one experiment; immutable, every update returns a new one.

    Attributes:
        n, total: number of counted experiences and their total reward, of live and of the candidate.
        weighed: Σ w² and Σ w²·r over them; ``weighed_by_draw`` with the w of the draw alone.
        moments: n, Σ d and Σ d² over them; ``moments_by_draw`` with d of the draw alone.
    """

    rules: TwoArmTestRules
    gain: SplitBet
    loss: SplitBet
    tally: UserTally = field(default_factory=UserTally)
    n: tuple[int, int] = (0, 0)
    total: tuple[float, float] = (0.0, 0.0)
    weighed: tuple[float, float] = (0.0, 0.0)
    moments: tuple[int, float, float] = (0, 0.0, 0.0)
    weighed_by_draw: tuple[float, float] = (0.0, 0.0)
    moments_by_draw: tuple[int, float, float] = (0, 0.0, 0.0)

    def update(
        self,
        reward: Floats,
        by_candidate: Bool,
        users: Sequence[str],
        *,
        n_users: int = 0,
        propensities: Propensities | None = None,
    ) -> TwoArmTest:
        """Evidence with n further experiences in order, looked at once.

        Args:
            reward: in [0, 1], ``[n]``.
            by_candidate: ``[n]``, True where the candidate served.
            users: ids of the users who gave the feedback, n.
            n_users: number of users before, as in :meth:`plaudit_models.evaluation.gate.Comparison.update`.
            propensities: of the answers, n each; None: not known.

        Raises:
            ValueError: a reward or a propensity is out of range, or the lengths differ.
        """
        if not len(reward) == len(by_candidate) == len(users):
            raise ValueError(f"{len(reward)} rewards, {len(by_candidate)} parts and {len(users)} users must be as many")
        counted, tally = self.tally.admit(users, fair_cap(self.rules.user_cap, n_users))
        reward, by_candidate = np.asarray(reward, np.float64)[counted], by_candidate[counted]
        if ((reward < 0.0) | (reward > 1.0)).any():
            raise ValueError("a reward is not in [0, 1]")
        prior = _PRIOR_N / (self.rules.share * (1.0 - self.rules.share))
        by_answer = weights(by_candidate, None if propensities is None else propensities[counted], self.rules)
        by_draw = weights(by_candidate, None, self.rules)
        values, weighed = _differences(reward, by_answer, self.weighed, prior)
        drawn, weighed_by_draw = _differences(reward, by_draw, self.weighed_by_draw, prior)
        new_n = int((~by_candidate).sum()), int(by_candidate.sum())
        new_total = float(reward[~by_candidate].sum()), float(reward[by_candidate].sum())
        return replace(
            self,
            gain=self.gain.update(values, drawn),
            loss=self.loss.update(-values, -drawn),
            tally=tally,
            n=(self.n[0] + new_n[0], self.n[1] + new_n[1]),
            total=(self.total[0] + new_total[0], self.total[1] + new_total[1]),
            moments=_plus(self.moments, values),
            moments_by_draw=_plus(self.moments_by_draw, drawn),
            weighed=weighed,
            weighed_by_draw=weighed_by_draw,
        )

    def finding(self) -> Finding:
        """Harm if harm is proven, else gain if gain is, else none."""
        if sum(self.n) < self.rules.min_events:
            return "none"
        if self.loss.e_value() >= 1.0 / self.rules.alpha:
            return "harm"
        return "gain" if self.gain.e_value() >= 1.0 / self.rules.alpha else "none"

    @property
    def suspected(self) -> bool:
        """Whether harm is likely though not proven: the mean of either d is below −margin by more than 1.5 standard
        errors.

        One more d is added, the largest possible: while the candidate has hardly served, all d are of live and hardly
        scatter.
        """
        return self._suspects(self.moments) or self._suspects(self.moments_by_draw)

    def _suspects(self, moments: tuple[int, float, float]) -> bool:
        n, total, squares = moments
        if n == 0:
            return False
        n, total, squares = n + 1, total + self.rules.bound, squares + self.rules.bound**2
        mean = total / n
        standard_error = math.sqrt(max(0.0, squares - n * mean**2) / (n - 1) / n)
        return mean + SUSPICION * standard_error < -self.rules.margin

    def reason(self) -> str:
        """Finding and its evidence, in one sentence."""
        live, candidate = (
            "none" if n == 0 else f"{total / n:.1%} of {n}" for n, total in zip(self.n, self.total, strict=True)
        )
        return (
            f"users satisfied: {candidate} by the candidate, {live} by live; e-value {self.gain.e_value():.3g} for a "
            f"gain, {self.loss.e_value():.3g} for harm, {1.0 / self.rules.alpha:g} is proof"
        )


def _plus(moments: tuple[int, float, float], values: Float64) -> tuple[int, float, float]:
    n, total, squares = moments
    return n + len(values), total + float(values.sum()), squares + float(np.square(values).sum())


def _differences(
    reward: Float64, weight: Float64, weighed: tuple[float, float], prior: float
) -> tuple[Float64, tuple[float, float]]:
    """d of each experience, ``[n]``, with m from those before it; and what ``weighed`` comes to."""
    squared = np.square(weight)
    seen = weighed[0] + np.cumsum(squared) - squared
    earned = weighed[1] + np.cumsum(squared * reward) - squared * reward
    values = weight * (reward - (earned + prior * _PRIOR_REWARD) / (seen + prior))
    return values, (weighed[0] + float(squared.sum()), weighed[1] + float((squared * reward).sum()))


def weights(by_candidate: Bool, propensities: Propensities | None, rules: TwoArmTestRules) -> Float64:
    """w of the notation above, ``[n]``.

    Raises:
        ValueError: a propensity is not in [0, 1], or an answer was given that neither would give.
    """
    by_draw = np.where(by_candidate, 1.0 / rules.share, -1.0 / (1.0 - rules.share))
    if propensities is None:
        return by_draw
    c, l = propensities.candidate, propensities.live  # noqa: E741 - the notation's
    known = ~(np.isnan(c) | np.isnan(l))
    mixed = rules.share * c + (1.0 - rules.share) * l
    wrong = known & ((c < 0.0) | (c > 1.0) | (l < 0.0) | (l > 1.0) | (mixed <= 0.0))
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(
            f"propensities: {c[i]} and {l[i]} of answer {i} are not probabilities of an answer that was given"
        )
    return np.where(known, np.divide(c - l, mixed, out=np.zeros_like(mixed), where=known), by_draw)


def new_two_arm_test(rules: TwoArmTestRules) -> TwoArmTest:
    """Evidence before the first experience."""
    return TwoArmTest(rules, _open_split_bet(rules.bound, 0.0), _open_split_bet(rules.bound, rules.margin))


def two_arm_test_from_dict(raw: Mapping[str, Any]) -> TwoArmTest:
    """Inverse of :func:`plaudit_models.evaluation.e_process.as_json`."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    fields |= {name: _split_bet_from_dict(raw[name]) for name in ("gain", "loss")}
    fields |= {"rules": TwoArmTestRules(**raw["rules"]), "tally": UserTally(**raw["tally"])}
    return TwoArmTest(**fields)
