"""Trust in users: caps on one user's share of the evidence, reliability, and quarantine.

Knows nothing about versions, events or what is learned.

*Caps.* No user outvotes the rest: an event counts only while its user has had less than a share of the events so far
(:class:`UserTally`, :meth:`Raters.admit`).

*Reliability.* A user's labels are compared with what the reward model expected from the labels before them. With reward
y in [0, 1], expected reward q and its certainty c in [0, 1] (0 where there is no similar label), each label gives

    v = c·(2q − 1)     expectation of the others, in [−1, 1]
    s = (2y − 1)·v     agreement

A user who is right with probability ρ (the one-coin model of Dawid and Skene 1979, with the reward model in the place
of the unknown truth) has E[s] = (2ρ − 1)·v², so ρ is estimated by ½ + ½·(Σ s + prior)/(Σ v² + prior): sums only, which
add up over batches and over learners.

*Quarantine.* A user who contradicts all others, from the start or from one day on, is found by an e-detector: a bettor
stakes BET of the wealth on disagreement, and starts anew whenever any of it is lost:

    W = max(1, W)·(1 − BET·s)

While a user agrees at least as often as not, E[W] does not grow, and the mean time to a false alarm at W ≥ ALARM is at
least ALARM labels, whatever they are about (an e-detector: Shin, Ramdas, Rinaldo 2022). Users with tastes of their
own, and those who press thumbs at random, agree at least as often as not. If very many disagree, it is the reward model
that is wrong: no more than MAX_QUARANTINED of the users are ever quarantined, unless by operators.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit_models.bandit.features import Floats

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class UserTally:
    """Cap on events that come one after another: an event counts or not, decided before its outcome is looked at.

    Attributes:
        seen: events so far.
        counted: events so far that counted, by user.
    """

    seen: int = 0
    counted: Mapping[str, int] = field(default_factory=dict)

    def admit(self, users: Sequence[str], cap: float) -> tuple[Bool, UserTally]:
        """Mask of the next events that count: those of users with fewer than ``cap`` of the events seen, or with none
        yet.

        Returns:
            A mask, shape ``[n]``, True where the event counts, and the tally after these events.
        """
        _require_cap(cap)
        counted = dict(self.counted)
        admitted = np.zeros(len(users), dtype=np.bool_)
        for i, user in enumerate(users):
            allowance = max(1.0, cap * (self.seen + i + 1))
            if counted.get(user, 0) + 1 <= allowance:
                counted[user] = counted.get(user, 0) + 1
                admitted[i] = True
        return admitted, UserTally(self.seen + len(users), counted)


def fair_cap(cap: float, n_users: int, shares: float = 1.0) -> float:
    """Cap where there may be few users: ``cap``, or ``shares`` equal shares among ``n_users``, if that is more.

    ``n_users`` must come from before the evidence at hand, or the first user has everything; 0 if it is not known.
    More users only ever tighten it, so an attacker gains nothing by inventing some.
    """
    _require_cap(cap)
    return cap if n_users == 0 else max(cap, min(1.0, shares / n_users))


BET: Final = 0.8
ALARM: Final = 1e3
MAX_QUARANTINED: Final = 0.2
MAX_RATERS: Final = 5_000
"""Users kept, those with the latest labels; all others count as new."""

_PRIOR_AGREEMENT: Final = 0.8
_PRIOR_WEIGHT: Final = 4.0
"""Prior of users: right nine times in ten, as if seen in four certain labels."""

TrustLevel = Literal["heard", "quarantined", "trusted"]
"""heard: the default. quarantined: not learned from. trusted: never quarantined, as an operator decided."""


@dataclass(frozen=True, slots=True)
class Rater:
    """One user.

    Attributes:
        n: labels that counted.
        refused: labels beyond the user's share.
        agreement: Σ s.
        decided: Σ v².
        log_wealth: log W of the bettor; ≥ 0 where nothing was lost.
        trust_level: see :data:`TrustLevel`.
    """

    n: int = 0
    refused: int = 0
    agreement: float = 0.0
    decided: float = 0.0
    log_wealth: float = 0.0
    trust_level: TrustLevel = "heard"

    @property
    def reliability(self) -> float:
        """ρ, in [0, 1]."""
        leaning = (self.agreement + _PRIOR_AGREEMENT * _PRIOR_WEIGHT) / (self.decided + _PRIOR_WEIGHT)
        return 0.5 + 0.5 * min(1.0, max(-1.0, leaning))

    @property
    def floods(self) -> bool:
        """Whether most of what the user sends is beyond the user's share."""
        return self.refused > self.n


_values: Final = attrgetter(*(each.name for each in fields(Rater)))
"""Fields as of ``dataclasses.astuple``, without its copies: a learner saves all raters with every batch."""


@dataclass(frozen=True, slots=True)
class Raters:
    """All users, in the order of their latest labels; immutable, every change returns a new one.

    What comes without a user's id counts as one user's ("") for the cap, and is never quarantined.

    Attributes:
        seen: number of labels ever.
        users: by id; at most MAX_RATERS, besides those in quarantine.
    """

    seen: int = 0
    users: Mapping[str, Rater] = field(default_factory=dict)

    def __getitem__(self, user: str) -> Rater:
        return self.users.get(user) or Rater()

    def admit(self, users: Sequence[str], cap: float) -> tuple[Bool, Raters]:
        """Mask of the next labels that count, decided before their rewards are looked at.

        Those of users in quarantine do not, nor those of users who have had ``cap`` of all there are.

        Returns:
            A mask, shape ``[n]``, True where the label counts, and the raters after these.
        """
        _require_cap(cap)
        known = dict(self.users)
        admitted = np.zeros(len(users), dtype=np.bool_)
        for i, user in enumerate(users):
            rater = known.pop(user, None) or Rater()
            allowance = max(1.0, cap * (self.seen + i + 1))
            admitted[i] = rater.trust_level != "quarantined" and rater.n + 1 <= allowance
            counts = int(admitted[i])
            # Not dataclasses.replace, which would cost as much as everything else here.
            known[user] = Rater(
                n=rater.n + counts,
                refused=rater.refused + 1 - counts,
                agreement=rater.agreement,
                decided=rater.decided,
                log_wealth=rater.log_wealth,
                trust_level=rater.trust_level,
            )
        return admitted, Raters(self.seen + len(users), _remembered(known))

    def observe(
        self, users: Sequence[str], rewards: Floats, expected: Floats, known: Floats
    ) -> tuple[Raters, tuple[str, ...]]:
        """Compare the next labels with what was expected before them.

        Args:
            users: ids of the users, n.
            rewards: y in [0, 1], shape ``[n]``.
            expected: q, shape ``[n]``; clipped to [0, 1].
            known: c in [0, 1], shape ``[n]``.

        Returns:
            The raters after these, and the users who were put in quarantine.

        Raises:
            ValueError: the lengths differ, or a value is out of range.
        """
        if not len(users) == len(rewards) == len(expected) == len(known):
            raise ValueError(
                f"{len(users)} users, {len(rewards)} rewards, {len(expected)} expected and {len(known)} known"
            )
        for name, values in (("rewards", rewards), ("known", known)):
            bad = np.flatnonzero(~((values >= 0.0) & (values <= 1.0)))
            if bad.size:
                raise ValueError(f"{name}[{bad[0]}]: {values[bad[0]]} is not in [0, 1]")
        if not np.isfinite(expected).all():
            raise ValueError(f"expected[{np.flatnonzero(~np.isfinite(expected))[0]}] is not finite")
        decided = known * (2.0 * np.clip(expected, 0.0, 1.0) - 1.0)
        agreement = (2.0 * rewards - 1.0) * decided
        raters = dict(self.users)
        in_quarantine = sum(rater.trust_level == "quarantined" for rater in raters.values())
        caught: list[str] = []
        for user, s, v in zip(users, agreement.tolist(), decided.tolist(), strict=True):
            rater = raters.pop(user, None) or Rater()
            rater = Rater(
                n=rater.n,
                refused=rater.refused,
                agreement=rater.agreement + s,
                decided=rater.decided + v * v,
                log_wealth=max(0.0, rater.log_wealth) + math.log1p(-BET * s),
                trust_level=rater.trust_level,
            )
            alarmed = rater.log_wealth >= math.log(ALARM) and rater.trust_level == "heard" and user != ""
            if alarmed and in_quarantine < _room(len(raters) + 1):
                rater = replace(rater, trust_level="quarantined")
                caught.append(user)
                in_quarantine += 1
            raters[user] = rater
        return replace(self, users=_remembered(raters)), tuple(caught)

    def set_trust_level(self, user: str, trust_level: TrustLevel) -> Raters:
        """Raters after an operator's decision. The bettor starts anew."""
        changed = replace(self[user], trust_level=trust_level, log_wealth=0.0)
        return replace(self, users={**self.users, user: changed})

    def without(self, user: str) -> Raters:
        """Raters without anything about the user."""
        return replace(self, users={name: rater for name, rater in self.users.items() if name != user})

    def to_bytes(self) -> bytes:
        """JSON; :func:`raters_from_bytes` is its inverse."""
        rows = [[user, *_values(rater)] for user, rater in self.users.items()]
        return json.dumps({"seen": self.seen, "users": rows}).encode()


def raters_from_bytes(raw: bytes | None) -> Raters:
    """Raters that were saved; none if nothing was."""
    if raw is None:
        return Raters()
    fields = json.loads(raw)
    return Raters(fields["seen"], {user: Rater(*rest) for user, *rest in fields["users"]})


def _room(n_users: int) -> int:
    """Number of users that may be in quarantine: none of one or two, since it is open which of them is right."""
    return 0 if n_users < 3 else max(1, int(MAX_QUARANTINED * n_users))


def _remembered(users: dict[str, Rater]) -> Mapping[str, Rater]:
    surplus = len(users) - MAX_RATERS
    if surplus > 0:
        forgotten = [user for user, rater in users.items() if rater.trust_level == "heard"][:surplus]
        for user in forgotten:
            del users[user]
    return users


def _require_cap(cap: float) -> None:
    if not 0.0 < cap <= 1.0:
        raise ValueError(f"cap {cap} is not in (0, 1]; 1 means no cap")
