"""Concept drift: changes of what users want, found slice by slice, and which evidence of a slice counts after them.

A slice is a set of contexts that are alike, such as those with the same base answer. Knows nothing about where
expectations come from, nor how evidence is kept.

*Finding.* With reward y in [0, 1] and expected reward q of the answer that was given, a slice's detector bets on
disappointment:

    W = max(1, W)·(1 + b(q)·(q − y − MARGIN))     alarm: W ≥ ALARM·√max(1, n / STEADY),  n labels of the slice so far
    b(q) = min(2·MARGIN/(q(1 − q) + MARGIN²), MOST/(1 + MARGIN − q), MAX_BET)

W is the best of the bets begun at each label (an e-detector: Shin, Ramdas, Rinaldo, E-detectors, 2022, section 2).
The surer it is of a reward, the more it stakes on it: never more than MOST of what it has, and so that where rewards
are as expected on average no bet's square grows, because y in [0, 1] has variance ≤ q(1 − q):

    E[(1 + b·(q − y − MARGIN))²] ≤ 1 − 2·b·MARGIN + b²·(q(1 − q) + MARGIN²) ≤ 1

So a bet ever reaches w with probability ≤ w⁻² (Ville 1939), and the alarm of a slice only rises: over N labels there
are no more than ALARM⁻²·Σ_n 1/max(1, n / STEADY) ≤ 0.01·(1 + ln(N / STEADY)) false alarms in expectation, which is 0.1
in a million. A change is found one to three labels later for each tenfold of labels before it.
Labels whose expectation rests on little evidence do not count, because disappointment of the prior is no change, nor do
those whose expectation rests on evidence that is about to go; nor do labels of one user beyond that user's share, so
that nobody makes the others' evidence go.

*Dating.* A change begins with the label since which the bettor has never lost everything, which is the maximum
likelihood estimate of CUSUM (Page 1954).

*Epochs.* Evidence from before a change does not count after it. An epoch in which most answers were liked is
remembered: where it explains the first labels after a later change as well as no evidence does, users may have come
back to it, and it counts again. If that was wrong, the detector finds out as fast as it found the change, and only the
former epoch goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, NamedTuple

from plaudit_models.bandit.features import Floats
from plaudit_models.evaluation.raters import UserTally

MAX_BET: Final = 1.2
"""More would find a change three labels sooner, and let as many users fewer make evidence go."""
MOST: Final = 0.9
"""Share of the wealth that one label can cost."""
MARGIN: Final = 0.1
ALARM: Final = 100.0
STEADY: Final = 100
"""Labels of a slice after which its alarm rises with their square root."""
LEAST_KNOWN: Final = 0.75
"""Share of what could be known that an expectation must rest on to count."""
MAX_SLICES: Final = 4_096
"""Slices that are followed, those with the latest labels; all others begin anew."""
MAX_EPOCHS: Final = 4
"""Former epochs of a slice that may count again."""
MAX_TALLY: Final = 1_000
"""Labels of a bet after which the users' shares are counted anew, so that a long one does not list all users."""
TRIED: Final = 40
"""Labels of a slice after which a former epoch that counts again is taken to be right."""
AS_GOOD: Final = 0.05
"""A former epoch may explain the labels after a change by this mean squared error worse than no evidence does."""


class Range(NamedTuple):
    """Labels of a slice by number: from ``first`` up to, but not including, ``end``."""

    first: int
    end: int


Epoch = tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """Drift of what users want of a slice.

    Attributes:
        slice: name of the slice.
        since: number of the first label after the change.
        outdated: evidence of the slice that counts no more.
        former: epochs that may count again, the latest first.
    """

    slice: str
    since: int
    outdated: Epoch
    former: tuple[Epoch, ...] = ()


_NO_TALLY: Final = UserTally()


@dataclass(frozen=True, slots=True)
class _Slice:
    """One slice.

    Attributes:
        log_wealth: log of max(1, W); 0 where everything was lost.
        since: number of the label since which not everything was lost; 0 if it was.
        tally: labels of each user since then.
        first: number from which on evidence counts.
        labels: number of labels since then.
        liked: sum of their rewards.
        former: epochs that do not count, the latest last.
        again: former epoch that counts again.
        tried: labels since it does.
    """

    log_wealth: float = 0.0
    since: int = 0
    tally: UserTally = _NO_TALLY
    first: int = 0
    labels: int = 0
    liked: float = 0.0
    former: tuple[Epoch, ...] = ()
    again: Epoch = ()
    tried: int = 0

    def bet(self, number: int, user: str, reward: float, expected: float, cap: float) -> _Slice:
        """The slice after one label."""
        bets = self.log_wealth > 0.0
        tally = self.tally if bets and self.tally.seen < MAX_TALLY else _NO_TALLY
        admitted, tally = tally.admit_one(user, cap)
        gain = math.log1p(stake(expected) * (expected - reward - MARGIN)) if admitted else 0.0
        log_wealth = max(0.0, self.log_wealth + gain)
        return _Slice(
            log_wealth=log_wealth,
            since=0 if log_wealth == 0.0 else self.since if bets else number,
            tally=tally if log_wealth > 0.0 else _NO_TALLY,
            first=self.first,
            labels=self.labels + 1,
            liked=self.liked + reward,
            former=self.former,
            again=self.again,
            tried=self.tried + 1 if self.again else 0,
        )

    @property
    def alarmed(self) -> bool:
        """Whether the wealth has reached the alarm, which rises with the number of labels."""
        return self.log_wealth >= math.log(ALARM) + 0.5 * math.log(max(1.0, self.labels / STEADY))

    def drifted(self, name: str) -> tuple[_Slice, Drift]:
        """The slice after its detector's alarm, and the drift that was found."""
        calm = replace(self, log_wealth=0.0, since=0, tally=UserTally(), again=(), tried=0)
        if self.again and self.tried <= TRIED:
            kept = (*self.former, self.again)[-MAX_EPOCHS:]
            return replace(calm, former=kept), Drift(name, self.first, self.again)
        ended = (*self.again, Range(self.first, self.since))
        pleased = (ended,) if self.liked >= self.labels / 2.0 else ()
        after = replace(calm, first=self.since, labels=0, liked=0.0, former=(*self.former, *pleased)[-MAX_EPOCHS:])
        return after, Drift(name, self.since, ended, self.former[::-1])


@dataclass(frozen=True, slots=True)
class DriftDetector:
    """Detectors of all slices, in the order of their latest labels; immutable, every change returns a new one.

    Attributes:
        pending: drifts that were found, and whose outdated evidence still counts.
    """

    slices: Mapping[str, _Slice] = field(default_factory=dict)
    pending: tuple[Drift, ...] = ()

    def observe(
        self,
        slices: Sequence[str],
        numbers: Sequence[int],
        users: Sequence[str],
        rewards: Floats,
        expected: Floats,
        known: Floats,
        cap: float = 1.0,
    ) -> DriftDetector:
        """Detectors after the next labels, compared with what was expected before them; drifts found are pending.

        Args:
            slices: slice of each label, n.
            numbers: their numbers, ascending.
            users: who gave them.
            rewards: y in [0, 1], shape ``[n]``.
            expected: q, shape ``[n]``; clipped to [0, 1].
            known: share of what could be known that each expectation rests on, in [0, 1], shape ``[n]``.
            cap: largest share of one user in what a detector goes by.
        """
        followed = dict(self.slices)
        pending = list(self.pending)
        drifting = {drift.slice for drift in pending}
        rows = zip(slices, numbers, users, rewards.tolist(), expected.tolist(), known.tolist(), strict=True)
        for name, number, user, y, q, certain in rows:
            if certain < LEAST_KNOWN or name in drifting:
                continue  # what was expected rests on too little, or on evidence that goes
            slice_ = followed.pop(name, None) or _Slice()
            slice_ = slice_.bet(number, user, y, min(1.0, max(0.0, q)), cap)
            if slice_.alarmed:
                slice_, drift = slice_.drifted(name)
                pending.append(drift)
                drifting.add(name)
            followed[name] = slice_
        surplus = max(0, len(followed) - MAX_SLICES)
        return DriftDetector(dict(list(followed.items())[surplus:]), tuple(pending))

    def settled(self, again: Epoch = ()) -> DriftDetector:
        """Detectors after the first pending drift was dealt with.

        Args:
            again: former epoch of its slice that counts again.
        """
        drift, *pending = self.pending
        slices = dict(self.slices)
        if again and drift.slice in slices:
            slice_ = slices[drift.slice]
            former = tuple(each for each in slice_.former if each != again)
            slices[drift.slice] = replace(slice_, former=former, again=again, tried=0)
        return DriftDetector(slices, tuple(pending))

    def to_bytes(self) -> bytes:
        """JSON; :func:`drift_detector_from_bytes` is its inverse.

        A slice without a bet takes few bytes, because all are saved with every batch.
        """
        rows = [_row(name, slice_) for name, slice_ in self.slices.items()]
        pending = [asdict(drift) for drift in self.pending]
        return json.dumps({"slices": rows, "pending": pending}, separators=(",", ":")).encode()


def drift_detector_from_bytes(raw: bytes) -> DriftDetector:
    """Inverse of :meth:`DriftDetector.to_bytes`."""
    fields = json.loads(raw)
    pending = [
        Drift(each["slice"], each["since"], _epoch(each["outdated"]), tuple(_epoch(epoch) for epoch in each["former"]))
        for each in fields["pending"]
    ]
    return DriftDetector({name: _slice(*row) for name, *row in fields["slices"]}, tuple(pending))


def _row(name: str, slice_: _Slice) -> list[object]:
    row: list[object] = [name, slice_.first, slice_.labels, slice_.liked]
    if slice_.log_wealth > 0.0 or slice_.former or slice_.again:
        bet = [slice_.log_wealth, slice_.since, slice_.tally.seen, slice_.tally.counted]
        row += [*bet, slice_.former, slice_.again, slice_.tried]
    return row


def _slice(
    first: int,
    labels: int,
    liked: float,
    log_wealth: float = 0.0,
    since: int = 0,
    seen: int = 0,
    counted: Mapping[str, int] | None = None,
    former: Sequence[Sequence[Sequence[int]]] = (),
    again: Sequence[Sequence[int]] = (),
    tried: int = 0,
) -> _Slice:
    """Slice of a row without its name."""
    tally, epochs = UserTally(seen, counted or {}), tuple(_epoch(each) for each in former)
    return _Slice(log_wealth, since, tally, first, labels, liked, epochs, _epoch(again), tried)


def explains_best(errors: Sequence[float], without: float) -> int | None:
    """Place of the epoch that explains the labels after a change as well as no evidence does; None if none does.

    Args:
        errors: mean squared error of each former epoch's expectations, the latest first.
        without: that of no evidence from before the change.
    """
    good = [place for place, error in enumerate(errors) if error <= without + AS_GOOD]
    return min(good, key=lambda place: errors[place]) if good else None


def stake(expected: float) -> float:
    """Stake b of the module's notation on disappointment of an expected reward in [0, 1]."""
    steady = 2.0 * MARGIN / (expected * (1.0 - expected) + MARGIN * MARGIN)
    return min(steady, MOST / (1.0 + MARGIN - expected), MAX_BET)


def _epoch(ranges: Sequence[Sequence[int]]) -> Epoch:
    return tuple(Range(*each) for each in ranges)
