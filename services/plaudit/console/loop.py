"""View of the loop for the page: versions with their evidence, the rollout's history, satisfaction, the learner.

From the registry, the learner's status and the labelled answers to one JSON-ready mapping. Changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from plaudit.console.families import families
from plaudit.console.ports import LearnerView
from plaudit.console.satisfaction import LabelledAnswer, Mean, by_version, mean_of, over_time
from plaudit.core.errors import UnknownVersion
from plaudit.core.limits import MAX_LEDGER_SHOWN
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Rollout
from plaudit_models.bundle import CorruptBundle, Manifest

LATELY: Final = 200
"""Number of labelled answers that present satisfaction is measured on."""
POINTS: Final = 80
"""Number of points on the curve of satisfaction, over all versions."""
HEADS_SHOWN: Final = 30
"""Number of head refreshes shown, the latest; all versions of other kinds are shown."""
CHANGES_SHOWN: Final = 60


def view(registry: ModelRegistry, learner: LearnerView, *, now_s: float) -> dict[str, Any]:
    """View of one model's loop.

    Args:
        now_s: UTC seconds, for the page, whose own clock may be wrong.
    """
    rollout, manifests = registry.rollout(), _manifests(registry)
    ledger = list(registry.ledger(after=max(0, rollout.generation - MAX_LEDGER_SHOWN)))
    answers = learner.answers.latest()
    family = families(manifests, ledger)
    lately = mean_of([answer.reward for answer in answers[-LATELY:]])
    return {
        "now_s": now_s,
        "model": registry.model,
        "rollout": asdict(replace(rollout, salt="")),
        "versions": _versions(manifests, rollout, ledger, by_version(answers), family),
        "changes": [
            asdict(change) | {"place": bisect_left(answers, change.changed_at_s, key=lambda answer: answer.time_s)}
            for change in reversed(changes(ledger)[-CHANGES_SHOWN:])
        ],
        "labelled": len(answers),
        "lately": asdict(lately) if lately else None,
        "satisfaction": _satisfaction(answers, family, manifests),
        "learner": learner.status(),
    }


def changes(ledger: Sequence[Rollout]) -> list[Rollout]:
    """Rollouts that did more than make the next head refresh live.

    Args:
        ledger: the latest rollouts; what the first one did is unknown unless it is the first there was.
    """
    shown = []
    cut_off = bool(ledger) and ledger[0].generation > 1
    before = ledger[0] if cut_off else Rollout("")
    for rollout in ledger[int(cut_off) :]:
        newer = before.live is not None and rollout.live is not None and rollout.live > before.live
        if not newer or _comparison_of(rollout) != _comparison_of(before):
            shown.append(rollout)
        before = rollout
    return shown


def went_live_s(ledger: Sequence[Rollout]) -> dict[int, float]:
    """Time at which each version last went live, UTC seconds, by version."""
    when: dict[int, float] = {}
    live: int | None = None
    for rollout in ledger:
        if rollout.live is not None and rollout.live != live:
            when[rollout.live] = rollout.changed_at_s
        live = rollout.live
    return when


def roles(version: int, rollout: Rollout) -> list[str]:
    """Roles of the version in the rollout."""
    versions = {
        "live": rollout.live,
        "pinned": rollout.live if rollout.pinned else None,
        "candidate": rollout.candidate,
        "gated": rollout.gated,
        "previous": rollout.previous,
    }
    return [role for role, number in versions.items() if number == version]


def _comparison_of(rollout: Rollout) -> tuple[object, ...]:
    return rollout.gated, rollout.candidate, rollout.candidate_share, rollout.pinned


def _manifests(registry: ModelRegistry) -> dict[int, Manifest]:
    manifests = {}
    for version in registry.versions():
        try:
            manifests[version] = registry.manifest(version)
        except (UnknownVersion, CorruptBundle):
            continue  # pruned since it was listed, or damaged: `plaudit doctor` says so
    return manifests


def _versions(
    manifests: Mapping[int, Manifest],
    rollout: Rollout,
    ledger: Sequence[Rollout],
    satisfaction: Mapping[int, Mean],
    family: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Versions with their evidence, newest first."""
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
            "satisfaction": asdict(satisfaction[version]) if version in satisfaction else None,
            "data": dict(manifests[version].data),
            "gate": dict(manifests[version].gate),
        }
        for version in newest
        if version not in hidden
    ]


def _satisfaction(
    answers: Sequence[LabelledAnswer], family: Mapping[int, int], manifests: Mapping[int, Manifest]
) -> list[dict[str, Any]]:
    """One curve per family, oldest family first."""
    return [
        {
            "family": name,
            "kind": manifests[name].kind if name in manifests else "removed",
            "points": [{"place": point.place, "time_s": point.time_s} | asdict(point.mean) for point in points],
        }
        for name, points in sorted(over_time(answers, family, points=POINTS).items())
    ]
