"""Running comparison of the head refreshes that serve with the last gated version.

Each experience of a refresh counts once, with rewards that were predicted before it was learned. Knows nothing about
what follows from a finding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from plaudit.core.errors import UnknownVersion, UnprovenVersion
from plaudit.core.ports.registry import VersionReader
from plaudit.learner.evaluation.off_policy import Compared, Policy, Values, compare, counts_as_proof
from plaudit.learner.features.policies import PolicyCache
from plaudit_models.bandit.features import Float64
from plaudit_models.bundle import CorruptBundle
from plaudit_models.evaluation.e_process import as_json
from plaudit_models.evaluation.gate import Comparison, comparison_from_dict


@dataclass(frozen=True, slots=True, eq=False)
class RunningComparison:
    """Attributes:
    gated: version that refreshes are compared with; 0 if there is none.
    after_version: refreshes with a greater number are compared; earlier ones were in an earlier comparison.
    comparison: the evidence so far.
    """

    gated: int
    after_version: int
    comparison: Comparison

    def to_bytes(self) -> bytes:
        return json.dumps(as_json(self)).encode()


def running_from_bytes(raw: bytes) -> RunningComparison:
    fields = json.loads(raw)
    return RunningComparison(fields["gated"], fields["after_version"], comparison_from_dict(fields["comparison"]))


def update(
    running: RunningComparison,
    fresh: Sequence[Compared],
    q_hat: Mapping[int, Float64],
    registry: VersionReader,
    policies: PolicyCache,
    *,
    n_users: int,
) -> RunningComparison:
    """The comparison with experiences that are about to be learned for the first time.

    Args:
        fresh: in order. Those on another trunk than the gated version's, or not of a refresh, are left out.
        q_hat: rewards ``[k]`` predicted before the experiences are learned, by experience number.
        n_users: number of users before these experiences.
    """
    if running.gated == 0:
        return running
    try:
        gated = policies.version(running.gated)
    except (UnknownVersion, UnprovenVersion):
        return running  # it is damaged or was taken away: what cannot be compared is no evidence
    versions = {row.experience.decision.version for row in fresh}
    refreshes = {version for version in versions if version > running.after_version and _is_refresh(version, registry)}
    rows = [
        row
        for row in fresh
        if row.experience.decision.version in refreshes
        and row.context.features.trunk_digest == gated.manifest.trunk_digest
        and counts_as_proof(row.experience)
    ]
    if not rows:
        return running

    def over(values: Sequence[Values]) -> list[Policy]:
        """Policies of one trunk decide between the same actions."""
        return [Policy(row.context.actions, of_row) for row, of_row in zip(rows, values, strict=True)]

    served = over([row.experience.probabilities or () for row in rows])
    compared = compare(
        running.comparison,
        rows,
        candidate=served,
        baseline=over(gated.answers([row.context for row in rows])),
        logged=served,
        q_hat=over([q_hat[row.experience.number] for row in rows]),
        n_users=n_users,
    )
    return replace(running, comparison=compared)


def _is_refresh(version: int, registry: VersionReader) -> bool:
    try:
        return registry.manifest(version).kind == "head"
    except (UnknownVersion, CorruptBundle):
        return False  # removed or damaged since it served, or never there: nothing is known of it
