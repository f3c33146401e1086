"""What a fine-tuning job is told, and the files it hands back besides the candidate folder: as JSON and safetensors.

Learner and job share this; it imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from plaudit.core.events import Features
from plaudit.core.runs import JOB, read_json, write_json
from plaudit.learner.evidence import stack
from plaudit.learner.refresh import HeadMaker
from plaudit_models.improvement import HeadSettings
from plaudit_models.preprocess import Limits
from plaudit_models.reward_model import RewardPrior
from plaudit_models.spec import BASE_LOGITS, EMBEDDING

PARENT: Final = "parent"
"""In the run folder: the trunk files and the manifest of the version to start from."""
FEATURES: Final = "features.safetensors"
"""In the run folder: what the candidate's trunk made of the experiences it was trained on."""
STATE: Final = "state.safetensors"
"""In the run folder: the reward state that the candidate's head was built from."""

_IDS: Final = "prediction_ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How to train.

    Attributes:
        replays: how often each experience is replayed.
        max_duration_s: time the job may train.
        max_experiences: the most recent experiences it trains on.
        rehearsal: labelled data folder that must not be forgotten; None: that of the latest pre-training.
        threads: that the job may use.
        seed: decides order and augmentation.
    """

    replays: float
    max_duration_s: float
    max_experiences: int
    rehearsal: str | None
    threads: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDescription:
    """Attributes:
    snapshot: number of the last experience that it may look at.
    created_at_s: when it was started, UTC seconds since the epoch.
    reason: why it was started, in one sentence.
    data: goes into the candidate's manifest.
    """

    snapshot: int
    created_at_s: float
    reason: str
    plan: TrainingPlan
    maker: HeadMaker
    limits: Limits
    data: Mapping[str, Any] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / JOB, asdict(self))


def read_description(run_dir: Path) -> JobDescription:
    raw = read_json(run_dir / JOB)
    maker = raw.pop("maker")
    settings = maker.pop("settings")
    prior = RewardPrior(**settings.pop("prior"))
    return JobDescription(
        plan=TrainingPlan(**raw.pop("plan")),
        maker=HeadMaker(settings=HeadSettings(prior=prior, **settings), **maker),
        limits=Limits(**raw.pop("limits")),
        **raw,
    )


def write_features(path: Path, features: Mapping[str, Features]) -> None:
    """By prediction id; one at least, all of one trunk."""
    embedding, base_logits = stack(list(features.values()))
    ids = np.frombuffer("\n".join(features).encode(), np.uint8)
    save_file({_IDS: ids, EMBEDDING: embedding, BASE_LOGITS: base_logits}, path)


def read_features(path: Path, trunk_digest: str) -> dict[str, Features]:
    arrays = load_file(path)
    ids = arrays[_IDS].tobytes().decode().split("\n")
    return {
        id_: Features(trunk_digest, embedding, base_logits)
        for id_, embedding, base_logits in zip(ids, arrays[EMBEDDING], arrays[BASE_LOGITS], strict=True)
    }
