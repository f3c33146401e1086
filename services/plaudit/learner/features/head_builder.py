"""A head refresh: a version folder with the parent's trunk and a head built from the latest evidence, published.

Knows nothing about events or when a refresh is due.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from plaudit.core.events import Features
from plaudit.core.ports.registry import ModelRegistry
from plaudit.learner.features.evidence import stack
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionHead,
    DynamicActionSpace,
    DynamicActionState,
    bounded_dynamic_step,
)
from plaudit_models.bandit.features import FeatureSpace
from plaudit_models.bandit.head import build_head
from plaudit_models.bandit.improvement import HeadSettings, Step, bounded_step, head_scores
from plaudit_models.bandit.reward_model import RewardState
from plaudit_models.bundle import (
    CARD,
    DYNAMIC_HEAD,
    HEAD,
    HEAD_GOLDEN,
    TEXT_SCORER,
    TRUNK_FILES,
    TRUNK_GOLDEN,
    Manifest,
    seal,
)
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, SCORES
from plaudit_models.version_card import card


@dataclass(frozen=True, slots=True)
class HeadBuilder:
    """Builds heads.

    Attributes:
        settings: how boldly a head follows the evidence.
        floor: logged exploration floor ε in (0, 1] of the versions made.
        max_kl: the most one refresh may move the policy, in nats, counted where the base policy is sure.
        embedding_features: how many features the embedding is given; 0 leaves it out.
        exclusivity: how much praise of one answer speaks against each other one, as a share of an event; of a list of
            dynamic actions, against all its others together.
        pair_features: how many features a candidate and its context are given together.
    """

    settings: HeadSettings
    floor: float
    max_kl: float
    embedding_features: int = 192
    exclusivity: float = 0.1
    pair_features: int = 64

    def space(self, manifest: Manifest) -> FeatureSpace:
        """The feature space of the fast loop on a version's trunk."""
        spec = manifest.spec
        return FeatureSpace(
            manifest.trunk_digest, len(spec.actions), spec.embedding_size, self.embedding_features, self.exclusivity
        )

    def dynamic_space(self, manifest: Manifest) -> DynamicActionSpace | None:
        """The same of dynamic actions; None where the version cannot score any."""
        if not manifest.has(TEXT_SCORER):
            return None
        return DynamicActionSpace(
            manifest.trunk_digest,
            manifest.sha256(TEXT_SCORER),
            manifest.spec.embedding_size,
            self.pair_features,
            self.exclusivity,
        )

    def step(self, served: RewardState, latest: RewardState, recent: Sequence[Features]) -> Step[RewardState]:
        """From the evidence served towards the latest, as far as the KL bound allows on one or more ``recent`` rows."""
        return bounded_step(self.settings, served, latest, *stack(recent), floor=self.floor, max_kl=self.max_kl)

    def dynamic_step(
        self, served: DynamicActionState, latest: DynamicActionState, recent: Sequence[ActionList]
    ) -> Step[DynamicActionState]:
        """The same of dynamic actions, on one or more ``recent`` lists."""
        return bounded_dynamic_step(self.settings, served, latest, recent, floor=self.floor, max_kl=self.max_kl)

    def write(self, folder: Path, state: RewardState, dynamic_actions: DynamicActionState | None = None) -> None:
        """Write head and golden scores beside the trunk and its golden pairs, and the candidate head if there is one.

        The golden scores come from the formula, not from the graph, so that whoever runs the graph proves it right.
        """
        (folder / HEAD).write_bytes(build_head(self.settings, state).SerializeToString())
        golden = load_file(folder / TRUNK_GOLDEN)
        scores = head_scores(self.settings, state, golden[EMBEDDING], golden[BASE_LOGITS])
        save_file({SCORES: scores.astype("float32")}, folder / HEAD_GOLDEN)
        if dynamic_actions is not None:
            (folder / DYNAMIC_HEAD).write_bytes(DynamicActionHead(self.settings, dynamic_actions).to_bytes())


def publish_refresh(
    registry: ModelRegistry,
    work_dir: Path,
    maker: HeadBuilder,
    parent: Manifest,
    state: RewardState,
    dynamic_actions: DynamicActionState | None = None,
    *,
    created_at_s: float,
    reason: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Manifest:
    """Assemble and publish; the trunk's files are shared with the parent wherever the file system can.

    Args:
        dynamic_actions: what the candidate head is built from; None: there is nothing to build it from.
    """
    source = registry.folder(parent.version)
    with tempfile.TemporaryDirectory(dir=work_dir, prefix="refresh-") as temporary:
        folder = Path(temporary)
        for name in TRUNK_FILES:
            if parent.has(name):
                share(source / parent.stored_name(name), folder / name)
        maker.write(folder, state, dynamic_actions)
        manifest = seal(
            folder,
            Manifest(
                spec=parent.spec,
                kind="head",
                created_at_s=created_at_s,
                files={},
                parent=parent.version,
                floor=maker.floor,
                reason=reason,
                data=data,
                metrics=metrics,
            ),
        )
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
