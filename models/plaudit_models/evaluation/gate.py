"""Off-policy comparison of a candidate with live on logged decisions; it may be looked at after every event.

Two uses of one machinery: the gate before a fine-tuned version serves, and the running comparison of a head refresh
that already serves with the last gated version. Knows nothing about versions, models or where decisions are kept.

Each decision gives a doubly robust difference of the two policies' rewards (see :mod:`plaudit_models.evaluation.ope`),
once so that it cannot be far below 0 and once so that it cannot be far above; both are unbiased, whatever q̂. Betting
e-processes (see :mod:`plaudit_models.evaluation.e_process`) test three claims with them:
    gain ≤ 0                     refuted → gain
    gain ≥ −margin               refuted → harm
    gain ≥ −slice_margin on a slice, for every slice seen, at level α/(k(k+1)) for the k-th   refuted → harm
Together, a wrong finding of gain has probability at most α, and so have a wrong finding of overall harm and a wrong
finding of harm on any slice, over all looks. Proof of harm on a slice takes long where the slice is small, so gain is
not found while a slice is suspected: while its estimated gain is below −slice_margin by more than 1.5 standard errors.
A decision belongs to one slice by its input and to one by the group of its user: each slice is a test of its own, so
the union bound holds whatever they share. Group names come from clients, so only the first 16 are tested; decisions
of others count over all, and their number is reported.

What the caller owes: decisions that neither policy nor ``q_hat`` was trained on, or, where policies change on the way,
probabilities and predictions of what was current before the decision was learned from; slices that depend on what was
known before the outcome. Where a policy changes on the way, a finding says that its gain was above (below) the claim at
some time, not at all times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from plaudit_models.bandit.features import Float64, Floats
from plaudit_models.evaluation.e_process import EProcess, e_process_from_dict, open_e_process
from plaudit_models.evaluation.ope import LoggedRounds, dr_outcomes_above, dr_outcomes_below, importance_weights
from plaudit_models.evaluation.raters import UserTally, fair_cap

Finding = Literal["gain", "harm", "none"]
Verdict = Literal["promote", "reject", "insufficient"]

_VERDICTS: Final[dict[Finding, Verdict]] = {"gain": "promote", "harm": "reject", "none": "insufficient"}

SUSPICION: Final = 1.5
"""Standard errors below −slice_margin at which a slice is suspected: one in 15 slices that lose just the margin."""

MAX_GROUPS: Final = 16
"""User groups that are tested, the first that come."""
GROUP: Final = "user group {}"
"""Name of a group's slice."""
_BENEFIT: Final = 1.0
"""A group is suspected as if the candidate had been better by this once more: two decisions that happen to agree have
no scatter, and a label that hardly ever comes must not hold back what is good for all."""

_STEPS: Final = np.linspace(-1.0, 1.0, 101)
_GRID: Final = _STEPS * np.abs(_STEPS)
"""Claims about the gain: 0.0004 apart near 0, 0.04 apart near ±1."""


@dataclass(frozen=True, slots=True)
class GateRules:
    """Thresholds of proof.

    Attributes:
        alpha: probability of a wrong finding, in (0, 1), for each of the three kinds of finding.
        margin: loss of reward against live that is not yet harm, in [0, 1].
        slice_margin: the same on a single slice.
        min_events: counted decisions before any finding.
        user_cap: largest share of the decisions seen that one user's may count for, in (0, 1].
        slack: > 0; how far a single difference may go beyond what predictions alone allow (see
            :func:`plaudit_models.evaluation.ope.dr_outcomes_below`). Less makes bolder bets, more makes steadier
            differences.
        max_difference: ≥ 1; no single decision counts for more than this, so that proof needs more than one thumb on
            something hardly ever tried. It can hide an effect, never make one.
    """

    alpha: float = 0.05
    margin: float = 0.0
    slice_margin: float = 0.03
    min_events: int = 100
    user_cap: float = 0.01
    slack: float = 2.0
    max_difference: float = 10.0

    def __post_init__(self) -> None:
        if not (
            0.0 < self.alpha < 1.0
            and 0.0 <= self.margin <= 1.0
            and 0.0 <= self.slice_margin <= 1.0
            and 0.0 < self.user_cap <= 1.0
            and self.slack > 0.0
            and self.max_difference >= 1.0
        ):
            raise ValueError(
                f"{self}: needs alpha in (0, 1), margins in [0, 1], user_cap in (0, 1], slack > 0 and "
                f"max_difference ≥ 1"
            )

    @property
    def bound(self) -> float:
        """Bound of differences on their bounded side: 1 from the predictions and slack from the outcome."""
        return 1.0 + self.slack


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """Candidate minus live, decision by decision.

    Attributes:
        low: differences ≥ −``GateRules.bound``, for proving gain, shape ``[n]``.
        high: differences ≤ ``GateRules.bound``, for proving harm, shape ``[n]``.
        weight: the larger of the two policies' importance weights, shape ``[n]``.
    """

    low: Float64
    high: Float64
    weight: Float64


def differences(
    log: LoggedRounds,
    candidate_probs: Floats,
    live_probs: Floats,
    q_hat: Floats,
    *,
    logging_probs: Floats,
    rules: GateRules,
) -> Differences:
    """Doubly robust differences of candidate and live for each decision.

    Args:
        log: n decisions with their outcomes.
        candidate_probs: shape ``[n, a]``, floor and allowed actions included.
        live_probs: the same.
        q_hat: predicted rewards, shape ``[n, a]``; clipped to [0, 1].
        logging_probs: of the policy that logged, shape ``[n, a]``, or of the nearest at hand: live in the gate, the
            candidate where it already serves. Weights come from the logged propensities; these only keep differences
            within bounds, and what is out of bounds because they are not exact is cut.
        rules: slack and max_difference.
    """
    q_hat = np.clip(q_hat, 0.0, 1.0)

    def below(probs: Floats) -> Float64:
        return dr_outcomes_below(log, probs, q_hat, logging_probs, rules.slack)

    def above(probs: Floats) -> Float64:
        return dr_outcomes_above(log, probs, q_hat, logging_probs, rules.slack)

    low = below(candidate_probs) - above(live_probs)
    high = above(candidate_probs) - below(live_probs)
    return Differences(
        low=np.clip(low, -rules.bound, rules.max_difference),
        high=np.clip(high, -rules.max_difference, rules.bound),
        weight=np.maximum(importance_weights(log, candidate_probs), importance_weights(log, live_probs)),
    )


@dataclass(frozen=True, slots=True)
class SliceReport:
    """One slice: its counted decisions, estimated gain, evidence of harm and what that must exceed.

    Attributes:
        standard_error: of ``gain``; infinite for fewer than two decisions.
        suspected: harm is likely though not proven; no gain is found meanwhile.
    """

    name: str
    n: int
    gain: float
    standard_error: float
    suspected: bool
    e_value_harm: float
    threshold: float

    @property
    def harmed(self) -> bool:
        return self.e_value_harm >= self.threshold


@dataclass(frozen=True, slots=True)
class GateReport:
    """Finding with its evidence.

    Attributes:
        verdict: promote on proven gain and no harm proven or suspected, reject on proven harm, else insufficient.
        gain: estimated difference in reward, candidate minus live.
        lower: below the true gain at every look at once, with probability 1 − α.
        upper: above it, likewise.
        e_value_gain: evidence against "gain ≤ 0"; 1/α proves gain.
        e_value_harm: evidence against "gain ≥ −margin"; 1/α proves harm.
        n: decisions that counted.
        capped: decisions left out because their user's share was used up.
        effective_n: how many unweighted decisions the counted ones are worth.
        raters: users whose decisions counted.
        slices: in order of appearance.
        reasons: the verdict in sentences.
        untested: counted decisions of user groups that are not among ``slices``, because there are too many groups.
    """

    verdict: Verdict
    gain: float
    lower: float
    upper: float
    e_value_gain: float
    e_value_harm: float
    n: int
    capped: int
    effective_n: float
    raters: int
    slices: tuple[SliceReport, ...]
    reasons: tuple[str, ...]
    untested: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the manifest's gate evidence."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class _ComparedGroup:
    bets: EProcess
    is_group: bool
    n: int = 0
    gain_sum: float = 0.0
    gain_square_sum: float = 0.0

    @property
    def gain(self) -> float:
        return self.gain_sum / self.n if self.n else 0.0

    @property
    def standard_error(self) -> float:
        if self.n < 2:
            return math.inf
        variance = max(0.0, self.gain_square_sum - self.n * self.gain**2) / (self.n - 1)
        return math.sqrt(variance / self.n)

    def update(self, low: Float64, high: Float64) -> _ComparedGroup:
        """Slice with further differences, both bounds of each, ``[n]``."""
        middle = (low + high) / 2.0
        return replace(
            self,
            bets=self.bets.update(-high),
            n=self.n + len(middle),
            gain_sum=self.gain_sum + float(middle.sum()),
            gain_square_sum=self.gain_square_sum + float(np.square(middle).sum()),
        )

    def suspected(self, margin: float) -> bool:
        """Whether it is likely to have lost more than ``margin``."""
        seen = self
        if self.is_group:
            total, squares = self.gain_sum + _BENEFIT, self.gain_square_sum + _BENEFIT**2
            seen = replace(self, n=self.n + 1, gain_sum=total, gain_square_sum=squares)
        return seen.gain + SUSPICION * seen.standard_error < -margin


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Evidence on one candidate against one live version; immutable, every update returns a new one.

    Attributes:
        untested: decisions whose group is none of the first :data:`MAX_GROUPS`.
    """

    rules: GateRules
    gain: EProcess
    loss: EProcess
    slices: Mapping[str, _ComparedGroup] = field(default_factory=dict)
    tally: UserTally = field(default_factory=UserTally)
    n: int = 0
    gain_sum: float = 0.0
    weight_sum: float = 0.0
    weight_square_sum: float = 0.0
    untested: int = 0

    def update(
        self,
        seen: Differences,
        users: Sequence[str],
        slices: Sequence[str],
        *,
        groups: Sequence[str] | None = None,
        n_users: int = 0,
    ) -> Comparison:
        """Evidence with n further decisions, in the order they were made, looked at once.

        Args:
            seen: shape ``[n]`` each.
            users: ids of the users who gave the feedback, n; all events without one count as one user's.
            slices: slice that each decision belongs to, n names; "" for none.
            groups: group that its user belongs to, n labels; "" for none. None: no user belongs to any.
            n_users: number of users before these decisions; 0 if that is not known. Where they are so few
                that an equal share is more than ``user_cap``, that is the cap
                (:func:`plaudit_models.evaluation.raters.fair_cap`).

        Raises:
            ValueError: the lengths differ, or a difference is out of bounds.
        """
        groups = [""] * len(users) if groups is None else groups
        if not len(seen.low) == len(users) == len(slices) == len(groups):
            raise ValueError(
                f"{len(seen.low)} differences, {len(users)} users, {len(slices)} slices and {len(groups)} groups must "
                f"be as many"
            )
        counted, tally = self.tally.admit(users, fair_cap(self.rules.user_cap, n_users))
        low, high, weight = seen.low[counted], seen.high[counted], seen.weight[counted]
        updated, untested = dict(self.slices), self.untested
        for labels, is_group in ((slices, False), (groups, True)):
            label_of = np.asarray(labels, dtype=np.str_)[counted]
            for label in filter(None, dict.fromkeys(label_of.tolist())):
                name, inside = GROUP.format(label) if is_group else label, label_of == label
                part = updated.get(name)
                if part is None:
                    if is_group and sum(each.is_group for each in updated.values()) >= MAX_GROUPS:
                        untested += int(inside.sum())
                        continue
                    part = _ComparedGroup(
                        open_e_process(self.rules.bound, np.array([self.rules.slice_margin])), is_group
                    )
                updated[name] = part.update(low[inside], high[inside])
        return replace(
            self,
            gain=self.gain.update(low),
            loss=self.loss.update(-high),
            slices=updated,
            tally=tally,
            n=self.n + len(weight),
            gain_sum=self.gain_sum + float((low + high).sum()) / 2.0,
            weight_sum=self.weight_sum + float(weight.sum()),
            weight_square_sum=self.weight_square_sum + float(np.square(weight).sum()),
            untested=untested,
        )

    def finding(self) -> Finding:
        """Harm if anything proves harm; gain if gain is proven and no slice is suspected; else none."""
        if self.n < self.rules.min_events:
            return "none"
        proof, slices = 1.0 / self.rules.alpha, self._slice_reports()
        if self._e_value_harm() >= proof or any(part.harmed for part in slices):
            return "harm"
        gained = self._e_value_gain() >= proof and not any(part.suspected for part in slices)
        return "gain" if gained else "none"

    def report(self) -> GateReport:
        slices = self._slice_reports()
        return GateReport(
            verdict=_VERDICTS[self.finding()],
            gain=self.gain_sum / self.n if self.n else 0.0,
            lower=self.gain.lower_bound(self.rules.alpha),
            upper=-self.loss.lower_bound(self.rules.alpha),
            e_value_gain=self._e_value_gain(),
            e_value_harm=self._e_value_harm(),
            n=self.n,
            capped=self.tally.seen - self.n,
            effective_n=self.weight_sum**2 / self.weight_square_sum if self.weight_square_sum > 0.0 else 0.0,
            raters=len(self.tally.counted),
            slices=slices,
            reasons=self._reasons(slices),
            untested=self.untested,
        )

    def _e_value_gain(self) -> float:
        return self.gain.e_value(_claim(self.gain, 0.0))

    def _e_value_harm(self) -> float:
        return self.loss.e_value(_claim(self.loss, self.rules.margin))

    def _slice_reports(self) -> tuple[SliceReport, ...]:
        return tuple(
            SliceReport(
                name=name,
                n=part.n,
                gain=part.gain,
                standard_error=part.standard_error,
                suspected=part.suspected(self.rules.slice_margin),
                e_value_harm=part.bets.e_value(0),
                threshold=k * (k + 1) / self.rules.alpha,
            )
            for k, (name, part) in enumerate(self.slices.items(), start=1)
        )

    def _reasons(self, slices: tuple[SliceReport, ...]) -> tuple[str, ...]:
        rules, proof = self.rules, 1.0 / self.rules.alpha
        if self.n < rules.min_events:
            return (f"{self.n} decisions counted, {rules.min_events} are needed before any verdict",)
        reasons = []
        if self._e_value_harm() >= proof:
            reasons.append(
                f"worse than live by more than {rules.margin:g}: e-value {self._e_value_harm():.3g} ≥ {proof:g}"
            )
        reasons += [
            f"slice {part.name!r} worse by more than {rules.slice_margin:g}: e-value {part.e_value_harm:.3g} ≥ "
            f"{part.threshold:g}"
            for part in slices
            if part.harmed
        ]
        if self._e_value_gain() >= proof:
            reasons.append(f"better than live: e-value {self._e_value_gain():.3g} ≥ {proof:g}")
            reasons += [
                f"slice {part.name!r} may be worse: {part.gain:+.3f} ± {part.standard_error:.3f} on {part.n} decisions"
                for part in slices
                if part.suspected and not part.harmed
            ]
        if not reasons:
            reasons.append(
                f"after {self.n} decisions neither gain (e-value {self._e_value_gain():.3g}) nor harm "
                f"(e-value {self._e_value_harm():.3g}) is proven; {proof:g} would be proof"
            )
        if self.tally.seen > 2 * self.n:
            reasons.append(
                f"{self.tally.seen - self.n} of {self.tally.seen} decisions are left out because their users have had "
                f"their share; decisions without a user id count as one user's (user_cap {rules.user_cap:g})"
            )
        if self.untested:
            reasons.append(
                f"{self.untested} decisions are of further user groups and count over all only: the first {MAX_GROUPS} "
                f"groups are tested"
            )
        return tuple(reasons)


def new_comparison(rules: GateRules) -> Comparison:
    """Comparison before the first decision."""
    return Comparison(
        rules,
        gain=open_e_process(rules.bound, np.union1d(_GRID, [0.0])),
        loss=open_e_process(rules.bound, np.union1d(_GRID, [rules.margin])),
    )


def comparison_from_dict(raw: Mapping[str, Any]) -> Comparison:
    """Inverse of :func:`plaudit_models.evaluation.e_process.as_json`.

    Raises:
        KeyError, TypeError: ``raw`` is no comparison.
    """
    slices = {
        name: _ComparedGroup(**{**part, "bets": e_process_from_dict(part["bets"])})
        for name, part in raw["slices"].items()
    }
    evidence = {name: e_process_from_dict(raw[name]) for name in ("gain", "loss")}
    rules, tally = GateRules(**raw["rules"]), UserTally(**raw["tally"])
    return Comparison(**{**raw, **evidence, "rules": rules, "slices": slices, "tally": tally})


def _claim(bets: EProcess, mean: float) -> int:
    return int(np.searchsorted(bets.means, mean))
