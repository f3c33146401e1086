"""Head builder, and a head refresh as a version: the parent's trunk with heads built from the latest evidence.

Knows nothing about events or when a refresh is due.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.core.ports.registry import ModelRegistry
from plaudit.learner.features.action_heads import ActionHead, DynamicActions, FixedActions, Learned, StepRules
from plaudit_models.bandit.dynamic_actions import DynamicActionSpace, empty_dynamic_action_state
from plaudit_models.bandit.features import FeatureSpace
from plaudit_models.bandit.reward_model import empty_state
from plaudit_models.bundle import CARD, TEXT_SCORER, TRUNK_FILES, Manifest, check_digest, seal
from plaudit_models.version_card import card


@dataclass(frozen=True, slots=True)
class HeadBuilder(StepRules):
    """Settings of the heads that the learner makes, and the feature spaces that follow from them.

    Attributes:
        embedding_features: number of features of the embedding; 0 leaves it out.
        exclusivity: how much praise of one action speaks against each other one, as a share of an event; of a list of
            dynamic actions, against all its others together.
        pair_features: number of features of a dynamic action together with its context.
    """

    embedding_features: int = 192
    exclusivity: float = 0.1
    pair_features: int = 64

    def space(self, manifest: Manifest) -> FeatureSpace:
        """Feature space of fixed actions on a version's trunk."""
        spec = manifest.spec
        return FeatureSpace(
            manifest.trunk_digest, len(spec.actions), spec.embedding_size, self.embedding_features, self.exclusivity
        )

    def dynamic_space(self, manifest: Manifest) -> DynamicActionSpace | None:
        """Feature space of dynamic actions on a version's trunk; None if the version scores no text."""
        if not manifest.has(TEXT_SCORER):
            return None
        return DynamicActionSpace(
            manifest.trunk_digest,
            manifest.sha256(TEXT_SCORER),
            manifest.spec.embedding_size,
            self.pair_features,
            self.exclusivity,
        )

    def spaces(self, manifest: Manifest) -> list[FeatureSpace | DynamicActionSpace]:
        """Feature space of each kind of decision that the version can answer."""
        dynamic = self.dynamic_space(manifest)
        return [self.space(manifest)] if dynamic is None else [self.space(manifest), dynamic]

    def empty(self, manifest: Manifest) -> Learned:
        """No evidence, with a head for each kind of decision that the version can answer."""
        heads: list[ActionHead] = [FixedActions(empty_state(self.space(manifest)))]
        dynamic = self.dynamic_space(manifest)
        if dynamic is not None:
            heads.append(DynamicActions(empty_dynamic_action_state(dynamic)))
        return Learned(tuple(heads))


def publish_refresh(
    registry: ModelRegistry,
    work_dir: Path,
    builder: HeadBuilder,
    parent: Manifest,
    heads: Iterable[ActionHead],
    *,
    created_at_s: float,
    reason: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Manifest:
    """Assemble and publish; the trunk's files are shared with the parent wherever the file system can.

    Raises:
        CorruptBundle: a file of the parent is not what its manifest says.
    """
    source = registry.folder(parent.version)
    with tempfile.TemporaryDirectory(dir=work_dir, prefix="refresh-") as temporary:
        folder = Path(temporary)
        for name in TRUNK_FILES:
            if parent.has(name):
                share(source / parent.stored_name(name), folder / name)
        for head in heads:
            head.write(folder, builder.settings)
        manifest = seal(
            folder,
            Manifest(
                spec=parent.spec,
                kind="head",
                created_at_s=created_at_s,
                files={},
                parent=parent.version,
                floor=builder.floor,
                reason=reason,
                data=data,
                metrics=metrics,
            ),
        )
        for name in TRUNK_FILES:
            if parent.has(name):
                # Sealed again as it is now, a damaged file would pass for the trunk of a version of its own.
                check_digest(name, manifest.files[name], parent.files[parent.stored_name(name)])
        write_card(folder, manifest)
        return registry.publish(folder)


def share(source: Path, target: Path) -> None:
    """Hard-link, or copy where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_card(folder: Path, manifest: Manifest) -> None:
    """The manifest for people."""
    (folder / CARD).write_text(card(json.loads(manifest.to_json())), encoding="utf-8")
