"""What the page shows of the loop: versions with their evidence, the rollout's history, satisfaction, the learner.

From the registry, the learner's status and the judged answers to one JSON-ready mapping. Changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from plaudit.console.families import families
from plaudit.console.ports import Learning
from plaudit.console.satisfaction import Mean, Rewarded, by_version, mean_of, over_time
from plaudit.core.errors import UnknownVersion
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Rollout
from plaudit_models.bundle import CorruptBundle, Manifest

LATELY: Final = 200
"""Judged answers that show how satisfied users are now."""
POINTS: Final = 80
"""On the curve of satisfaction, all versions together."""
HEADS_SHOWN: Final = 30
"""Of the head refreshes the latest; versions of other kinds are all shown."""
CHANGES_SHOWN: Final = 60


def view(registry: ModelRegistry, learning: Learning, *, now_s: float) -> dict[str, Any]:
    """Everything there is to see of one model's loop.

    Args:
        now_s: UTC seconds, so that the page need not trust its own clock.
    """
    rollout, ledger, manifests = registry.rollout(), registry.ledger(), _manifests(registry)
    rewarded = learning.judged.latest()
    family = families(manifests, ledger)
    return {
        "now_s": now_s,
        "model": registry.model,
        "rollout": asdict(rollout),
        "versions": _versions(manifests, rollout, ledger, by_version(rewarded), family),
        "changes": [
            asdict(change) | {"place": bisect_left(rewarded, change.changed_at_s, key=lambda one: one.time_s)}
            for change in reversed(changes(ledger)[-CHANGES_SHOWN:])
        ],
        "judged": len(rewarded),
        "lately": _mean(rewarded[-LATELY:]),
        "satisfaction": _satisfaction(rewarded, family, manifests),
        "learner": learning.status(),
    }


def changes(ledger: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts that mean more than that the next head refresh serves."""
    kept = []
    before = Rollout("")
    for rollout in ledger:
        newer = before.live is not None and rollout.live is not None and rollout.live > before.live
        if not newer or _standing(rollout) != _standing(before):
            kept.append(rollout)
        before = rollout
    return kept


def went_live_s(ledger: Sequence[Rollout]) -> dict[int, float]:
    """Version → when it last went live, UTC seconds."""
    when: dict[int, float] = {}
    live: int | None = None
    for rollout in ledger:
        if rollout.live is not None and rollout.live != live:
            when[rollout.live] = rollout.changed_at_s
        live = rollout.live
    return when


def roles(version: int, rollout: Rollout) -> list[str]:
    """Every part the version plays."""
    parts = {
        "live": rollout.live,
        "pinned": rollout.live if rollout.pinned else None,
        "candidate": rollout.candidate,
        "gated": rollout.gated,
        "previous": rollout.previous,
    }
    return [role for role, number in parts.items() if number == version]


def _standing(rollout: Rollout) -> tuple[object, ...]:
    return rollout.gated, rollout.candidate, rollout.candidate_share, rollout.pinned


def _manifests(registry: ModelRegistry) -> dict[int, Manifest]:
    found = {}
    for version in registry.versions():
        try:
            found[version] = registry.manifest(version)
        except (UnknownVersion, CorruptBundle):
            continue  # pruned since it was listed, or damaged: `plaudit doctor` says so
    return found


def _versions(
    manifests: Mapping[int, Manifest],
    rollout: Rollout,
    ledger: Sequence[Rollout],
    judged: Mapping[int, Mean],
    family: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Newest first."""
    live_since = went_live_s(ledger)
    newest = sorted(manifests, reverse=True)
    heads = [version for version in newest if manifests[version].kind == "head"]
    hidden = {version for version in heads[HEADS_SHOWN:] if not roles(version, rollout)}
    return [
        {
            "version": version,
            "kind": manifests[version].kind,
            "parent": manifests[version].parent,
            "family": family[version],
            "created_at_s": manifests[version].created_at_s,
            "live_since_s": live_since.get(version),
            "reason": manifests[version].reason,
            "digest": manifests[version].digest,
            "roles": roles(version, rollout),
            "satisfaction": asdict(judged[version]) if version in judged else None,
            "data": dict(manifests[version].data),
            "gate": dict(manifests[version].gate),
        }
        for version in newest
        if version not in hidden
    ]


def _mean(rewarded: Sequence[Rewarded]) -> dict[str, Any] | None:
    mean = mean_of([one.reward for one in rewarded])
    return asdict(mean) if mean else None


def _satisfaction(
    rewarded: Sequence[Rewarded], family: Mapping[int, int], manifests: Mapping[int, Manifest]
) -> list[dict[str, Any]]:
    """One curve per family, oldest family first."""
    return [
        {
            "family": name,
            "kind": manifests[name].kind if name in manifests else "removed",
            "points": [{"place": point.place, "time_s": point.time_s} | asdict(point.mean) for point in points],
        }
        for name, points in sorted(over_time(rewarded, family, points=POINTS).items())
    ]
