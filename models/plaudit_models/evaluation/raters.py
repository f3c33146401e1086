"""Trust in users: caps on one user's share of the evidence, reliability, and quarantine.

Knows nothing about versions, events or what is learned.

*Caps.* No user outvotes the rest: an event counts only while its user has had less than a share of the events so far
(:class:`UserTally`, :meth:`Raters.admit`).

*Reliability.* A user's labels are compared with what the reward model expected from the labels before them: the
correlation r of reward y and expectation q, each minus the user's own mean, weighted by how certain the expectation
was. It is for people to read: ½ + ½·r, shrunk towards that of a user who is right nine times in ten.

*Quarantine.* A user who contradicts all others, from the start or from one day on, is found by
:mod:`plaudit_models.evaluation.inversion`; who dislikes more than others, or other things in places, is not. If very
many contradict, it is the reward model that is wrong: no more than MAX_QUARANTINED of the users are ever quarantined,
unless by operators. Nor are those of a user group that is hit more than twice as often as all others: they stay
:attr:`Rater.suspected`, and people decide.

*Newcomers.* Users of fewer than SETTLED labels, of whom too little is known, are watched together as if they were one.
Where together they contradict the others, and are fewer, their labels do not count until they are settled or agree: a
new name for every thumb gains nothing, and where all raters are new nobody is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit_models.bandit.features import Floats
from plaudit_models.evaluation.inversion import ALARM, Inversion

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

    def admit_one(self, user: str, cap: float) -> tuple[bool, UserTally]:
        """Whether the next event counts, and the tally after it; see :meth:`admit`."""
        n = self.counted.get(user, 0) + 1
        if n > max(1.0, cap * (self.seen + 1)):
            return False, UserTally(self.seen + 1, self.counted)
        return True, UserTally(self.seen + 1, {**self.counted, user: n})

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


MAX_QUARANTINED: Final = 0.2
MAX_RATERS: Final = 5_000
"""Users kept: of those with fewer than SETTLED labels, and then of all, those with the latest labels. All others count
as new. A flood of fresh ids so displaces fresh ids alone."""
SETTLED: Final = 8
"""Labels from which on a user is no newcomer."""
NEWCOMERS: Final = 0.5
"""Share of newcomers in the latest labels below which they may be refused together."""
_SHARE_KEEP: Final = 0.99
_MAX_LOG_WEALTH: Final = 2.0 * math.log(ALARM)
"""Most that is held against newcomers together, so that some labels in agreement end it."""
GROUP_FACTOR: Final = 2.0
SMALL_GROUP: Final = 20
"""Users from which on a group may have one in quarantine where others have none: it is less than one in twenty."""

_FIELDS_OF_0_1: Final = 6
"""Values of a rater as the release before saved them; what was summed up then is not comparable."""
_PRIOR_AGREEMENT: Final = 0.8
_PRIOR_WEIGHT: Final = 4.0
"""Prior of users: right nine times in ten, as if seen in four certain labels."""

TrustLevel = Literal["heard", "quarantined", "trusted"]
"""heard: the default. quarantined: not learned from. trusted: never quarantined, as an operator decided."""


_NO_EVIDENCE: Final = Inversion()


@dataclass(frozen=True, slots=True)
class Rater:
    """One user.

    Attributes:
        n: labels that counted.
        refused: labels beyond the user's share.
        agreement: Σ c·Δy·Δq, with y and q minus their means over the user's labels so far.
        reward_spread: Σ c·Δy².
        expected_spread: Σ c·Δq².
        inversion: evidence that the user says the opposite of others.
        trust_level: see :data:`TrustLevel`.
        group: user group, as last seen in a request of the user's own; "" for none.
    """

    n: int = 0
    refused: int = 0
    agreement: float = 0.0
    reward_spread: float = 0.0
    expected_spread: float = 0.0
    inversion: Inversion = _NO_EVIDENCE
    trust_level: TrustLevel = "heard"
    group: str = ""

    @property
    def reliability(self) -> float:
        """ρ, in [0, 1]."""
        spread = math.sqrt(self.reward_spread * self.expected_spread)
        leaning = (self.agreement + _PRIOR_AGREEMENT * _PRIOR_WEIGHT) / (spread + _PRIOR_WEIGHT)
        return 0.5 + 0.5 * min(1.0, max(-1.0, leaning))

    @property
    def is_newcomer(self) -> bool:
        """Whether too few labels were seen to know the user."""
        return self.n + self.refused < SETTLED and self.trust_level != "trusted"

    @property
    def suspected(self) -> bool:
        """Whether there is evidence against the user that has not led to quarantine."""
        return self.trust_level == "heard" and self.inversion.found_one

    def observe(self, reward: float, expected: float, known: float, group: str) -> Rater:
        """The user after one more label, compared with what was expected."""
        before = self.inversion
        gap, unexpected = 0.0, 0.0
        labels = float(before.labels)
        if labels > 0.0:
            gap, unexpected = reward - float(before.liked) / labels, expected - float(before.expected) / labels
        return Rater(
            n=self.n,
            refused=self.refused,
            agreement=self.agreement + known * gap * unexpected,
            reward_spread=self.reward_spread + known * gap**2,
            expected_spread=self.expected_spread + known * unexpected**2,
            inversion=before.update_one(reward, expected, known),
            trust_level=self.trust_level,
            group=group or self.group,
        )

    @property
    def floods(self) -> bool:
        """Whether most of what the user sends is beyond the user's share."""
        return self.refused > self.n


_values: Final = attrgetter(*(each.name for each in fields(Rater) if each.name != "inversion"))
"""Fields as of ``dataclasses.astuple``, without its copies: a learner saves all raters with every batch."""
_evidence: Final = attrgetter(*(each.name for each in fields(Inversion)))


@dataclass(frozen=True, slots=True)
class Raters:
    """All users, in the order of their latest labels; immutable, every change returns a new one.

    What comes without a user's id counts as one user's ("") for the cap, and is never quarantined.

    Attributes:
        seen: number of labels ever.
        users: by id; at most MAX_RATERS, besides those in quarantine.
        newcomers: evidence that users of fewer than SETTLED labels together say the opposite of others.
        newcomer_share: their share of the latest labels.
    """

    seen: int = 0
    users: Mapping[str, Rater] = field(default_factory=dict)
    newcomers: Inversion = _NO_EVIDENCE
    newcomer_share: float = 1.0

    @property
    def refuses_newcomers(self) -> bool:
        """Whether labels of newcomers do not count: together they contradict the others, who are more."""
        return self.newcomer_share < NEWCOMERS and self.newcomers.found_one

    def __getitem__(self, user: str) -> Rater:
        return self.users.get(user) or Rater()

    def admit(self, users: Sequence[str], cap: float) -> tuple[Bool, Raters]:
        """Mask of the next labels that count, decided before their rewards are looked at.

        Those of users in quarantine do not, nor those of users who have had ``cap`` of all there are, nor those of
        newcomers while they are refused.

        Returns:
            A mask, shape ``[n]``, True where the label counts, and the raters after these.
        """
        _require_cap(cap)
        known, refuses_newcomers = dict(self.users), self.refuses_newcomers
        admitted = np.zeros(len(users), dtype=np.bool_)
        for i, user in enumerate(users):
            rater = known.pop(user, None) or Rater()
            allowance = max(1.0, cap * (self.seen + i + 1))
            refused = rater.trust_level == "quarantined" or (refuses_newcomers and rater.is_newcomer)
            admitted[i] = not refused and rater.n + 1 <= allowance
            counts = int(admitted[i])
            # Not dataclasses.replace, which would cost as much as everything else here.
            known[user] = Rater(
                n=rater.n + counts,
                refused=rater.refused + 1 - counts,
                agreement=rater.agreement,
                reward_spread=rater.reward_spread,
                expected_spread=rater.expected_spread,
                inversion=rater.inversion,
                trust_level=rater.trust_level,
                group=rater.group,
            )
        return admitted, replace(self, seen=self.seen + len(users), users=_remembered(known))

    def observe(
        self,
        users: Sequence[str],
        rewards: Floats,
        expected: Floats,
        known: Floats,
        groups: Sequence[str] | None = None,
    ) -> tuple[Raters, tuple[str, ...]]:
        """Compare the next labels with what was expected before them.

        Args:
            users: ids of the users, n.
            rewards: y in [0, 1], shape ``[n]``.
            expected: q, shape ``[n]``; clipped to [0, 1].
            known: c in [0, 1], shape ``[n]``.
            groups: user group of each user, n labels; "" where there is none, or it is not known. None: not known.

        Returns:
            The raters after these, and the users who were put in quarantine.

        Raises:
            ValueError: the lengths differ, or a value is out of range.
        """
        groups = [""] * len(users) if groups is None else groups
        if not len(users) == len(rewards) == len(expected) == len(known) == len(groups):
            raise ValueError(
                f"{len(users)} users, {len(rewards)} rewards, {len(expected)} expected, {len(known)} known and "
                f"{len(groups)} groups"
            )
        for name, values in (("rewards", rewards), ("known", known)):
            bad = np.flatnonzero(~((values >= 0.0) & (values <= 1.0)))
            if bad.size:
                raise ValueError(f"{name}[{bad[0]}]: {values[bad[0]]} is not in [0, 1]")
        if not np.isfinite(expected).all():
            raise ValueError(f"expected[{np.flatnonzero(~np.isfinite(expected))[0]}] is not finite")
        expected = np.clip(expected, 0.0, 1.0)
        raters = dict(self.users)
        in_quarantine = sum(rater.trust_level == "quarantined" for rater in raters.values())
        caught: list[str] = []
        newcomers, newcomer_share = self.newcomers, self.newcomer_share
        rows = zip(users, rewards.tolist(), expected.tolist(), known.tolist(), groups, strict=True)
        for user, y, q, c, group in rows:
            rater = (raters.pop(user, None) or Rater()).observe(y, q, c, group)
            newcomer_share = _SHARE_KEEP * newcomer_share + (1.0 - _SHARE_KEEP) * rater.is_newcomer
            if rater.is_newcomer:
                newcomers = newcomers.update_one(y, q, c).up_to(_MAX_LOG_WEALTH)
            found = rater.suspected and user != ""
            if found and in_quarantine < _room(len(raters) + 1) and not _singles_out(rater.group, raters.values()):
                rater = replace(rater, trust_level="quarantined")
                caught.append(user)
                in_quarantine += 1
            raters[user] = rater
        after = Raters(self.seen, _remembered(raters), newcomers, newcomer_share)
        return after, tuple(caught)

    def set_trust_level(self, user: str, trust_level: TrustLevel) -> Raters:
        """Raters after an operator's decision. The bettor starts anew."""
        changed = replace(self[user], trust_level=trust_level, inversion=Inversion())
        return replace(self, users={**self.users, user: changed})

    def without(self, user: str) -> Raters:
        """Raters without anything about the user."""
        return replace(self, users={name: rater for name, rater in self.users.items() if name != user})

    def to_bytes(self) -> bytes:
        """JSON; :func:`raters_from_bytes` is its inverse."""
        rows = [[user, *_values(rater), *map(float, _evidence(rater.inversion))] for user, rater in self.users.items()]
        pool = [*map(float, _evidence(self.newcomers)), self.newcomer_share]
        return json.dumps({"seen": self.seen, "users": rows, "newcomers": pool}).encode()


def raters_from_bytes(raw: bytes | None) -> Raters:
    """Raters that were saved; none if nothing was."""
    if raw is None:
        return Raters()
    saved = json.loads(raw)
    users = {user: _rater(rest) for user, *rest in saved["users"]}
    if "newcomers" not in saved:
        return Raters(saved["seen"], users)
    *evidence, newcomer_share = saved["newcomers"]
    return Raters(saved["seen"], users, Inversion(*evidence), newcomer_share)


def _rater(values: Sequence[Any]) -> Rater:
    if len(values) == _FIELDS_OF_0_1:
        return Rater(n=values[0], refused=values[1], trust_level=values[-1])
    n_own = len(fields(Rater)) - 1
    n, refused, agreement, reward_spread, expected_spread, trust_level, group = values[:n_own]
    evidence = Inversion(*values[n_own:])
    return Rater(n, refused, agreement, reward_spread, expected_spread, evidence, trust_level, group)


def _singles_out(group: str, others: Iterable[Rater]) -> bool:
    """Whether one more user of the group in quarantine makes it hit more than GROUP_FACTOR times as often as others."""
    if not group:
        return False
    n = {True: 1, False: 0}
    quarantined = {True: 1, False: 0}
    for rater in others:
        inside = rater.group == group
        n[inside] += 1
        quarantined[inside] += rater.trust_level == "quarantined"
    elsewhere = quarantined[False] / n[False] if n[False] else 0.0
    allowed = GROUP_FACTOR * elsewhere * n[True]
    return quarantined[True] > (max(1.0, allowed) if n[True] >= SMALL_GROUP else allowed)


def _room(n_users: int) -> int:
    """Number of users that may be in quarantine: none of one or two, since it is open which of them is right."""
    return 0 if n_users < 3 else max(1, int(MAX_QUARANTINED * n_users))


def _remembered(users: dict[str, Rater]) -> Mapping[str, Rater]:
    surplus = len(users) - MAX_RATERS
    if surplus > 0:
        heard = [user for user, rater in users.items() if rater.trust_level == "heard"]
        heard.sort(key=lambda user: not users[user].is_newcomer)
        forgotten = heard[:surplus]
        for user in forgotten:
            del users[user]
    return users


def _require_cap(cap: float) -> None:
    if not 0.0 < cap <= 1.0:
        raise ValueError(f"cap {cap} is not in (0, 1]; 1 means no cap")
