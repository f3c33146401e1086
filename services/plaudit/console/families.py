"""Which versions belong together: a trunk, and the head refreshes made on it. Pure.

People follow a trunk's satisfaction, not that of each of its hundreds of heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plaudit.core.rollout import Rollout
from plaudit_models.bundle import Manifest


def families(manifests: Mapping[int, Manifest], ledger: Sequence[Rollout]) -> dict[int, int]:
    """Version → the first version with the same trunk.

    A head that was removed since has no manifest; it belongs where the version did that it was compared with.

    Args:
        manifests: of the versions that are still there.
        ledger: every rollout, oldest first.
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
