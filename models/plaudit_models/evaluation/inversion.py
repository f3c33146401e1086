"""Evidence that a user says the opposite of others, whatever the user's taste, severity or luck.

Knows nothing about who users are and what follows.

A user's labels with reward y in [0, 1] are compared with what others led to expect, q, known with certainty c in [0, 1]
(0 where there is no similar label), both seen from the user's own mean (raters differ in severity: Raykar et al.,
Learning From Crowds, 2010; Davani et al., Dealing with Disagreements, 2022). So users whom the service fails, or who
are severe, say nothing against others by that: only liking what others dislike *and* disliking what others like does.
A bettor stakes

    b = BET·c·min(1, SLOPE·|q − q̄|)

of the wealth on surprise, at odds that are fair for a user whose labels have nothing to do with q:

    W ← max(1, W)·(1 + b·(ȳ₋ − y)/(1 − ȳ₋))    where q > q̄: others like it more than what this user mostly gets
    W ← max(1, W)·(1 + b·(y − ȳ₊)/ȳ₊)          where q < q̄

q̄, ȳ: means of the user's latest labels, about 1/(1 − KEEP) of them; ȳ₋ and ȳ₊ with one label of 0, or of 1, more, so
that what is not yet known of the user is not bet on; denominators are at least FEWEST. The bettor starts anew whenever
any of the wealth is lost: an e-detector (Shin, Ramdas, Rinaldo 2022). Evidence is found at W ≥ ALARM of which praise of
what others dislike has made PRAISE: who dislikes everything is unhappy, not dishonest.

How often users of other kinds are taken for attackers is measured: ``make bench-learning ONLY=people``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BET: Final = 0.9
SLOPE: Final = 10.0
KEEP: Final = 0.97
FEWEST: Final = 0.05
ALARM: Final = 1e3
PRAISE: Final = 10.0

Values = float | npt.NDArray[Any]
"""Of one user, or of any number of users at once, elementwise."""


@dataclass(frozen=True, slots=True)
class Inversion:
    """Evidence about one user, or arrays of it about many, all of one shape.

    Attributes:
        labels: Σ c of the latest labels.
        liked: Σ c·y of them.
        expected: Σ c·q of them.
        log_wealth: log W; ≤ 0 where something was lost.
        log_praise: part of it from what others dislike.
    """

    labels: Values = 0.0
    liked: Values = 0.0
    expected: Values = 0.0
    log_wealth: Values = 0.0
    log_praise: Values = 0.0

    def update(self, reward: Values, expected: Values, known: Values) -> Inversion:
        """Evidence after one more label of each user: y, q and c, each in [0, 1]."""
        usual = np.where(np.asarray(self.labels) > 1.0, self.expected / np.maximum(self.labels, 1.0), expected)
        above = expected - usual
        stake = BET * known * np.minimum(1.0, SLOPE * np.abs(above))
        least, most = self.liked / (self.labels + 1.0), (self.liked + 1.0) / (self.labels + 1.0)
        surprise = np.where(
            above > 0.0,
            (least - reward) / np.maximum(1.0 - least, FEWEST),
            (reward - most) / np.maximum(most, FEWEST),
        )
        gain = np.log1p(stake * np.maximum(surprise, -1.0))
        goes_on = np.asarray(self.log_wealth) > 0.0
        return Inversion(
            labels=KEEP * self.labels + known,
            liked=KEEP * self.liked + known * reward,
            expected=KEEP * self.expected + known * expected,
            log_wealth=np.where(goes_on, self.log_wealth, 0.0) + gain,
            log_praise=np.where(goes_on, self.log_praise, 0.0) + np.where(above < 0.0, gain, 0.0),
        )

    def update_one(self, reward: float, expected: float, known: float) -> Inversion:
        """The same as :meth:`update` for one user, without the cost of arrays of one number."""
        labels, liked = float(self.labels), float(self.liked)
        above = expected - float(self.expected) / labels if labels > 1.0 else 0.0
        gain = 0.0
        if above > 0.0:
            least = liked / (labels + 1.0)
            gain = _gain(known, above, (least - reward) / max(1.0 - least, FEWEST))
        elif above < 0.0:
            most = (liked + 1.0) / (labels + 1.0)
            gain = _gain(known, -above, (reward - most) / max(most, FEWEST))
        goes_on = float(self.log_wealth) > 0.0
        return Inversion(
            labels=KEEP * labels + known,
            liked=KEEP * liked + known * reward,
            expected=KEEP * float(self.expected) + known * expected,
            log_wealth=(float(self.log_wealth) if goes_on else 0.0) + gain,
            log_praise=(float(self.log_praise) if goes_on else 0.0) + (gain if above < 0.0 else 0.0),
        )

    def up_to(self, log_wealth: float) -> Inversion:
        """Evidence about one user with no more wealth than this, so that it is lost again the sooner."""
        return replace(self, log_wealth=min(float(self.log_wealth), log_wealth))

    @property
    def found_one(self) -> bool:
        """Whether there is evidence enough about one user."""
        return float(self.log_wealth) >= math.log(ALARM) and float(self.log_praise) >= math.log(PRAISE)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Where there is evidence enough."""
        wealthy = np.asarray(self.log_wealth) >= math.log(ALARM)
        return wealthy & (np.asarray(self.log_praise) >= math.log(PRAISE))


def _gain(known: float, distance: float, surprise: float) -> float:
    return math.log1p(BET * known * min(1.0, SLOPE * distance) * max(surprise, -1.0))
