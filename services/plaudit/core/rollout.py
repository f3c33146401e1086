"""The rollout, which version of a model serves: one immutable value and the pure transitions between its states.

Every transition returns the next generation; the registry stores it by compare-and-set, so two writers cannot both win.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from plaudit.core.errors import (
    ExperimentActive,
    NoActiveExperiment,
    NoPreviousVersion,
    VersionAlreadyLive,
    VersionPinned,
)

_NO_EXPERIMENT: Final[Any] = {"candidate": None, "candidate_share": 0.0, "shadow": False, "experiment": 0, "salt": ""}


@dataclass(frozen=True, slots=True)
class Rollout:
    """Rollout of a model: which version serves, and why.

    Attributes:
        generation: grows by one with every change; 0 before the first.
        live: the version that serves.
        previous: the version that rollback returns to.
        gated: the last version that passed the gate or that an operator made live; head refreshes are compared with it.
        candidate: the version in an experiment, serving ``candidate_share`` of the users.
        shadow: True: the candidate serves no user; its answers to ``candidate_share`` of the requests are logged.
        experiment: generation with which the experiment began; 0 if there is none.
        salt: secret of the experiment's draw; no client sees it.
        pinned: True: only unpin or another pin may change the live version.
        changed_at_s: UTC seconds since the epoch.
        reason: reason for the change, in one sentence.
        actor: ``learner`` or the operator's name.
    """

    model: str
    generation: int = 0
    live: int | None = None
    previous: int | None = None
    gated: int | None = None
    candidate: int | None = None
    candidate_share: float = 0.0
    shadow: bool = False
    experiment: int = 0
    salt: str = field(default="", repr=False)
    pinned: bool = False
    changed_at_s: float = 0.0
    reason: str = ""
    actor: str = ""


def rollout_from_dict(raw: Mapping[str, Any]) -> Rollout:
    """Rollout from the output of :func:`dataclasses.asdict`, perhaps of another version of Plaudit: unknown fields are
    ignored, missing ones get their defaults.

    Raises:
        ValueError: ``raw`` is no rollout.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{str(raw)[:80]!r} is no rollout")
    known: dict[str, Any] = {}
    for name, value in raw.items():
        name = _RENAMED.get(name, name)
        types = _TYPES.get(name)
        if types is None:
            continue
        if not isinstance(value, types):
            raise ValueError(f"{name}: {str(value)[:80]!r} is wrong in a rollout")
        known[name] = value
    if "model" not in known:
        raise ValueError(f"{str(dict(raw))[:200]} is no rollout: its model is missing")
    return Rollout(**known)


_RENAMED: Final = {"trial": "experiment"}
"""Fields that rollouts of earlier releases have by another name."""
_VERSION: Final = (int, type(None))
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("live", "previous", "gated", "candidate"), _VERSION),
    **dict.fromkeys(("generation", "experiment"), (int,)),
    **dict.fromkeys(("candidate_share", "changed_at_s"), (int, float)),
    **dict.fromkeys(("shadow", "pinned"), (bool,)),
    **dict.fromkeys(("model", "reason", "actor", "salt"), (str,)),
}


@dataclass(frozen=True, slots=True)
class Change:
    """Author, time (UTC seconds since the epoch) and reason of a change to the rollout."""

    actor: str
    time_s: float
    reason: str


def promote(rollout: Rollout, version: int, change: Change) -> Rollout:
    """Make ``version`` live and the new gated version; an experiment that is under way ends.

    Raises:
        VersionPinned: another version is pinned.
    """
    return replace(refresh(rollout, version, change), gated=version, **_NO_EXPERIMENT)


def fresh_salt() -> str:
    """Salt of an experiment that begins: 128 random bits."""
    return secrets.token_hex(16)


def start_canary(
    rollout: Rollout, version: int, share: float, change: Change, *, shadow: bool = False, salt: str = ""
) -> Rollout:
    """Let ``version`` serve ``share`` of the users, in (0, 1), beside what is live.

    Args:
        shadow: it serves no user; its answers to ``share`` of the requests, in (0, 1], are logged.
        salt: secret that the draw of users is keyed with, see :func:`fresh_salt`.

    Raises:
        VersionPinned: a version is pinned, and ``shadow`` is False.
        ExperimentActive: there is a candidate already.
        VersionAlreadyLive: ``version`` is the live one.
    """
    if rollout.pinned and rollout.live is not None and not shadow:
        raise VersionPinned(rollout.live)
    if rollout.candidate is not None:
        raise ExperimentActive(rollout.candidate)
    if rollout.live == version:
        raise VersionAlreadyLive(version)
    began = rollout.generation + 1
    return _next(rollout, change, candidate=version, candidate_share=share, shadow=shadow, experiment=began, salt=salt)


def end_canary(rollout: Rollout, change: Change, *, version: int = 0) -> Rollout:
    """End the experiment: the live version serves all users again.

    Args:
        version: expected candidate; 0: any.

    Raises:
        NoActiveExperiment: ``version`` is not the candidate, or there is none.
    """
    if rollout.candidate is None or version not in (0, rollout.candidate):
        raise NoActiveExperiment(version, rollout.candidate or 0)
    return _next(rollout, change, **_NO_EXPERIMENT)


def in_experiment(rollout: Rollout, user_id: str) -> bool:
    """Whether the candidate serves this user: the same answer for the whole experiment, another draw for the next
    candidate.

    Without the experiment's salt nobody can tell beforehand which ids it draws.
    An empty id is never in an experiment, as it may stand for many users.
    """
    if rollout.candidate is None or rollout.shadow or not user_id:
        return False
    drawn_from = f"{rollout.model}\0{rollout.candidate}\0{user_id}".encode()
    if rollout.salt:
        drawn = hmac.digest(rollout.salt.encode(), drawn_from, "sha256")
    else:  # it began before there was a salt, and goes on with the same users
        drawn = hashlib.sha256(drawn_from).digest()
    return int.from_bytes(drawn[:8], "big") < rollout.candidate_share * 2**64


def refresh(rollout: Rollout, version: int, change: Change) -> Rollout:
    """Make a head refresh live; the gated version stays, as the refresh is compared with it.

    Raises:
        VersionPinned: a version is pinned.
    """
    if rollout.pinned and rollout.live is not None:
        raise VersionPinned(rollout.live)
    previous = rollout.previous if rollout.live == version else rollout.live
    return _next(rollout, change, live=version, previous=previous)


def confirm(rollout: Rollout, change: Change) -> Rollout:
    """Make the live version the gated one, as it has proven itself."""
    return _next(rollout, change, gated=rollout.live)


def revert(rollout: Rollout, change: Change) -> Rollout:
    """Go back to the gated version on evidence of harm.

    Raises:
        NoPreviousVersion: there is no gated version, or it is already live.
        VersionPinned: a version is pinned.
    """
    if rollout.gated is None or rollout.gated == rollout.live:
        raise NoPreviousVersion
    return refresh(rollout, rollout.gated, change)


def rollback(rollout: Rollout, change: Change) -> Rollout:
    """Make the previous version live again and the gated one; a second rollback undoes the first.

    Raises:
        NoPreviousVersion: there is none.
        VersionPinned: a version is pinned.
    """
    if rollout.previous is None:
        raise NoPreviousVersion
    return promote(rollout, rollout.previous, change)


def pin(rollout: Rollout, version: int, change: Change) -> Rollout:
    """Make ``version`` live and keep it, whatever is pinned now."""
    unpinned = replace(rollout, pinned=False, **_NO_EXPERIMENT)
    if rollout.live == version:
        return _next(unpinned, change, pinned=True)
    return replace(promote(unpinned, version, change), pinned=True)


def unpin(rollout: Rollout, change: Change) -> Rollout:
    return _next(rollout, change, pinned=False)


def _next(rollout: Rollout, change: Change, **changed: float | str | None) -> Rollout:
    return replace(
        rollout,
        **changed,  # type: ignore[arg-type]
        generation=rollout.generation + 1,
        changed_at_s=change.time_s,
        reason=change.reason,
        actor=change.actor,
    )
