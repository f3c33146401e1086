"""Guards of an experiment: does the candidate fail more often than live, or answer later? By counts of both.

Feedback is on answers that users saw; guards look at those that never came, or came late, and need no feedback. Counts
come from many services, a report at a time, so the order within a report is lost: it does not matter, because the bets
of :mod:`plaudit_models.evaluation.e_process` are constant. Knows nothing about services or versions.

With a share s of the users served by the candidate, x ∈ {0, 1} ("failed", or "slow") and a guess m made beforehand,

    e = (x − m)/s           if the candidate answered
    e = −(x − m)/(1 − s)    if live did

has as its mean how much more often the candidate fails (as in :mod:`plaudit_models.evaluation.two_arm_test`, the other
way round), and betting against "mean ≤ margin" may be looked at after every report. An answer is slow if it took more
than ``slow_factor`` times the 95th percentile of live's answers in *earlier* reports, so that what counts as slow is
never chosen with what it is held against. End to end: queues and batches are shared, and the draw by user evens them
out.

Notation:
    l: number of buckets of latencies
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit_models.bandit.features import Float64
from plaudit_models.evaluation.e_process import EProcess, e_process_from_dict, log_gains, log_total, open_e_process

Counts = npt.NDArray[np.int64]

SHORTEST_S: Final = 0.00025
"""Upper end of the first bucket."""
STEPS_PER_OCTAVE: Final = 4
BUCKETS: Final = 20 * STEPS_PER_OCTAVE
"""Bucket i holds durations up to ``SHORTEST_S`` · 2^(i/4), and the last one everything above 221 s."""

_BASELINE: Final = 50
"""Answers of live before "slow" means anything."""
_QUANTILE: Final = 0.95
_ALPHA_SHARE: Final = 0.1
"""A guard's part of the experiment's α, so that guards and feedback together stay near it."""

Guard = Literal["errors", "latency"]


def bucket(duration_s: float) -> int:
    """Number of the bucket that a duration falls in."""
    if duration_s <= SHORTEST_S:
        return 0
    return min(BUCKETS - 1, int(np.ceil(np.log2(duration_s / SHORTEST_S) * STEPS_PER_OCTAVE - 1e-9)))


def upper_s(index: int) -> float:
    """The longest duration that a bucket holds, seconds."""
    return float(SHORTEST_S * 2.0 ** (index / STEPS_PER_OCTAVE))


@dataclass(frozen=True, slots=True)
class GuardRules:
    """Thresholds of proof.

    Attributes:
        share: share of the users that the candidate serves, in (0, 1).
        alpha: α of the whole experiment; each guard is wrong with a tenth of this probability.
        error_margin: excess of failed answers that is not yet harm, as a share of all, in [0, 1].
        slow_factor: how many times live's 95th percentile an answer may take and not be slow, at least 1.
        slow_margin: excess of slow answers that is not yet harm, as a share of all, in [0, 1].
    """

    share: float
    alpha: float = 0.05
    error_margin: float = 0.01
    slow_factor: float = 2.0
    slow_margin: float = 0.05

    @property
    def bound(self) -> float:
        return max(1.0 / self.share, 1.0 / (1.0 - self.share))

    @property
    def proof(self) -> float:
        """E-value that is proof."""
        return 1.0 / (_ALPHA_SHARE * self.alpha)


@dataclass(frozen=True, slots=True)
class Arm:
    """Requests of one arm.

    Attributes:
        failed: number of requests without an answer.
        latencies: number of answers by bucket, at most l long; the rest is 0.
    """

    failed: int = 0
    latencies: tuple[int, ...] = ()

    @property
    def answered(self) -> int:
        return sum(self.latencies)

    @property
    def asked(self) -> int:
        return self.answered + self.failed

    def plus(self, other: Arm) -> Arm:
        """Sum of both. Raises ValueError: too many buckets."""
        return Arm(self.failed + other.failed, tuple((_full(self.latencies) + _full(other.latencies)).tolist()))

    def slower_than(self, index: int) -> int:
        """Answers in buckets above ``index``."""
        return sum(self.latencies[index + 1 :])

    def quantile_s(self, quantile: float) -> float | None:
        """A duration that at least this share of the answers did not exceed, seconds; None without answers."""
        index = _quantile(self.latencies, quantile)
        return None if index is None else upper_s(index)


@dataclass(frozen=True, slots=True, eq=False)
class Guards:
    """Counts and evidence of one experiment; immutable, every update returns a new one."""

    rules: GuardRules
    errors: EProcess
    slow: EProcess
    live: Arm = field(default_factory=Arm)
    candidate: Arm = field(default_factory=Arm)

    def update(self, live: Arm, candidate: Arm) -> Guards:
        """Guards with what both arms did since the last update, looked at once.

        Raises:
            ValueError: a report has too many buckets.
        """
        errors = _bet(
            self.errors,
            self.rules,
            (live.failed, live.asked),
            (candidate.failed, candidate.asked),
            before=(self.live.failed + self.candidate.failed, self.live.asked + self.candidate.asked),
        )
        slow, limit = self.slow, self._limit()
        if limit is not None:
            slow = _bet(
                slow,
                self.rules,
                (live.slower_than(limit), live.answered),
                (candidate.slower_than(limit), candidate.answered),
                before=(self.live.slower_than(limit), self.live.answered),
            )
        return replace(
            self, errors=errors, slow=slow, live=self.live.plus(live), candidate=self.candidate.plus(candidate)
        )

    def finding(self) -> Guard | None:
        """Guard with proof against the candidate; None if none has."""
        if self.errors.e_value(0) >= self.rules.proof:
            return "errors"
        return "latency" if self.slow.e_value(0) >= self.rules.proof else None

    def reason(self, guard: Guard) -> str:
        """Evidence of the guard, in one sentence."""
        arms = {"the candidate": self.candidate, "live": self.live}
        if guard == "errors":
            seen = ", ".join(f"{_share(arm.failed, arm.asked)} by {name}" for name, arm in arms.items())
            return f"answers failed: {seen}; e-value {self.errors.e_value(0):.3g}, {self.rules.proof:g} is proof"
        seen = ", ".join(f"{_ms(arm.quantile_s(_QUANTILE))} by {name}" for name, arm in arms.items())
        return (
            f"95 % of the answers came within: {seen}; e-value {self.slow.e_value(0):.3g} for more slow ones, "
            f"{self.rules.proof:g} is proof"
        )

    def _limit(self) -> int | None:
        """The last bucket that is not slow; None while too little is known of live."""
        if self.live.answered < _BASELINE:
            return None
        usual = _quantile(self.live.latencies, _QUANTILE)
        assert usual is not None
        return usual + int(np.ceil(np.log2(self.rules.slow_factor) * STEPS_PER_OCTAVE))


def new_guards(rules: GuardRules) -> Guards:
    """Guards before the first report."""
    return Guards(
        rules,
        open_e_process(rules.bound, np.array([rules.error_margin])),
        open_e_process(rules.bound, np.array([rules.slow_margin])),
    )


def guards_from_dict(raw: Mapping[str, Any]) -> Guards:
    """Inverse of :func:`plaudit_models.evaluation.e_process.as_json`."""
    arms = {name: Arm(raw[name]["failed"], tuple(raw[name]["latencies"])) for name in ("live", "candidate")}
    return Guards(
        GuardRules(**raw["rules"]), e_process_from_dict(raw["errors"]), e_process_from_dict(raw["slow"]), **arms
    )


def _bet(
    bets: EProcess,
    rules: GuardRules,
    live: tuple[int, int],
    candidate: tuple[int, int],
    *,
    before: tuple[int, int],
) -> EProcess:
    """Counts are (how many did, of how many); ``before`` is what the guess is made of."""
    guess = (before[0] + 0.1) / (before[1] + 10.0)
    values = np.array(
        [
            (1.0 - guess) / rules.share,
            -guess / rules.share,
            -(1.0 - guess) / (1.0 - rules.share),
            guess / (1.0 - rules.share),
        ]
    )
    counts = np.array([candidate[0], candidate[1] - candidate[0], live[0], live[1] - live[0]], np.float64)
    gains = log_gains(values, bets.means, bets.bound)  # [4, 1, j]
    log_wealth = bets.log_wealth + np.tensordot(counts, gains, axes=1)
    return replace(bets, log_wealth=log_wealth, best=np.maximum(bets.best, log_total(log_wealth)))


def _full(latencies: Sequence[int]) -> Counts:
    if len(latencies) > BUCKETS:
        raise ValueError(f"{len(latencies)} buckets of latencies; there are {BUCKETS}")
    return np.pad(np.asarray(latencies, np.int64), (0, BUCKETS - len(latencies)))


def _quantile(latencies: Sequence[int], quantile: float) -> int | None:
    total = sum(latencies)
    if not total:
        return None
    below: Float64 = np.cumsum(latencies) / total
    return int(np.argmax(below >= quantile - 1e-12))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.2%})" if whole else "none of none"


def _ms(duration_s: float | None) -> str:
    return "nothing" if duration_s is None else f"{1e3 * duration_s:.3g} ms"
