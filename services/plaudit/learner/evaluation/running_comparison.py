"""The running comparison: do the head refreshes that serve do better than the last gated version?

Each experience of a refresh counts once, judged by what was known before it was learned. Knows nothing about what
follows from a finding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plaudit.core.experience import Experience
from plaudit.core.ports.registry import ModelRegistry
from plaudit.learner.evaluation.off_policy import (
    Compared,
    Policy,
    compare,
    compare_lists,
    counts_as_proof,
    logged_policies,
)
from plaudit.learner.features.policies import PolicyCache, allowed_mask
from plaudit_models.bandit.features import Float64
from plaudit_models.evaluation.gate import Comparison, comparison_from_dict


@dataclass(frozen=True, slots=True, eq=False)
class RunningComparison:
    """Attributes:
    gated: the version compared with; 0 if there is none.
    after_version: refreshes with a greater number are compared; those before were judged by an earlier comparison.
    """

    gated: int
    after_version: int
    comparison: Comparison

    def to_bytes(self) -> bytes:
        raw = {"gated": self.gated, "after_version": self.after_version, "comparison": self.comparison.to_dict()}
        return json.dumps(raw).encode()


def running_from_bytes(raw: bytes) -> RunningComparison:
    fields = json.loads(raw)
    return RunningComparison(fields["gated"], fields["after_version"], comparison_from_dict(fields["comparison"]))


def update(
    running: RunningComparison,
    fresh: Sequence[Compared],
    q_hat: Mapping[int, Float64],
    registry: ModelRegistry,
    versions: PolicyCache,
    *,
    n_users: int,
) -> RunningComparison:
    """Take in experiences that are about to be learned for the first time.

    Args:
        running: so far.
        fresh: in order; features are those of the gated version's trunk.
        q_hat: predicted rewards ``[a]``, or ``[k]`` of the dynamic actions, before they are learned, by experience
        number. n_users: how many users there were before these experiences.
    """
    if running.gated == 0:
        return running
    gated = versions.version(running.gated)
    spec = gated.manifest.spec
    rows = [
        row
        for row in fresh
        if row.experience.decision.version > running.after_version
        and row.features.trunk_digest == gated.manifest.trunk_digest
        and counts_as_proof(row.experience)
        and _is_refresh(row.experience, registry)
    ]
    comparison = running.comparison
    between = [row for row in rows if row.listed is not None]
    if between and gated.scores_dynamic_actions:
        own = [row.experience.probabilities or () for row in between]
        comparison = compare_lists(
            comparison,
            between,
            spec,
            candidate=own,
            baseline=[gated.list_probabilities(row.listed.seen).tolist() for row in between if row.listed is not None],
            logged=own,
            q_hat=[q_hat[row.experience.number].tolist() for row in between],
            n_users=n_users,
        )
    rows = [row for row in rows if not row.experience.decision.dynamic_actions]
    if not rows:
        return replace(running, comparison=comparison)
    logged = logged_policies(rows, registry, spec.actions)
    allowed = allowed_mask(spec, [row.experience.decision for row in rows])
    compared = compare(
        comparison,
        rows,
        spec,
        candidate=logged,
        baseline=Policy(spec.actions, gated.probabilities([row.features for row in rows], allowed)),
        logged=logged,
        q_hat=Policy(spec.actions, np.array([q_hat[row.experience.number] for row in rows])),
        n_users=n_users,
    )
    return replace(running, comparison=compared)


def _is_refresh(experience: Experience, registry: ModelRegistry) -> bool:
    return registry.manifest(experience.decision.version).kind == "head"
