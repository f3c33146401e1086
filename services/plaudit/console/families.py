"""Families of versions: a trunk, and the head refreshes made on it. Pure.

Satisfaction is shown per trunk, not for each of its hundreds of heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plaudit.core.rollout import Rollout
from plaudit_models.bundle import Manifest


def families(manifests: Mapping[int, Manifest], ledger: Sequence[Rollout]) -> dict[int, int]:
    """The first version with the same trunk, by version.

    A head that was removed since has no manifest; its family is that of the version that it was compared with.

    Args:
        manifests: manifests of the versions that still exist.
        ledger: all rollouts, oldest first.
    """
    first: dict[str, int] = {}
    family: dict[int, int] = {}
    for version in sorted(manifests):
        family[version] = first.setdefault(manifests[version].trunk_digest, version)
    for rollout in ledger:
        live, gated = rollout.live, rollout.gated
        if live is not None and live not in family and gated is not None and gated in family:
            family[live] = family[gated]
    return family
