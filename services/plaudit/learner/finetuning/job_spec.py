"""What a fine-tuning job is told, and the files it hands back besides the candidate folder: as JSON and safetensors.

Learner and job share this; it imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from plaudit.core.events import Features
from plaudit.core.job_run import JOB, read_json, write_json
from plaudit.learner.features.context import stack
from plaudit.learner.features.head_builder import HeadBuilder
from plaudit_models.bandit.improvement import HeadSettings
from plaudit_models.bandit.reward_model import RewardPrior
from plaudit_models.preprocess import Limits
from plaudit_models.spec import BASE_LOGITS, EMBEDDING

PARENT: Final = "parent"
"""In the run folder: the version to start from."""
FEATURES: Final = "features.safetensors"
"""In the run folder: what the candidate's trunk made of the experiences it was trained on."""
STATE: Final = "state.safetensors"
"""In the run folder: the reward state that the candidate's head was built from."""

CHECKPOINT: Final = "checkpoint.safetensors"
"""In the run folder: where training stands, from time to time."""
REWARD_MODEL: Final = "reward_model.safetensors"
"""In the run folder: the full reward model, where the objective needs one."""
REWARD_REPORT: Final = "reward_model.json"
"""In the run folder, written after the model: how it does on what it was not trained on."""

_IDS: Final = "prediction_ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How to train.

    Attributes:
        replays: how often each experience is replayed.
        learning_rate: peak of the schedule.
        max_duration_s: time the job may train.
        method: whether all weights of the trained parts change, or low-rank updates of them.
        lora_rank: of the updates.
        lora_alpha: their scale, α/r.
        objective: what is descended: what users said, or the distance to what a reward model thinks best, or what it
            says of sampled answers.
        temperature: β of what it thinks best.
        kl_weight: β, the price of a nat of divergence from the parent.
        pessimism: κ, standard deviations taken off what the reward model expects.
        samples: answers sampled for each content.
        clip: ε, how far one draw may move the ratio of the policy to what it was.
        sample_reuse: gradient steps on one draw.
        max_experiences: the most recent experiences it trains on.
        max_versions_behind: experiences that were served by an older version than this many before are left out.
        checkpoint_steps: gradient steps between two checkpoints.
        rehearsal: labelled data folder that must not be forgotten; None: that of the latest pre-training.
        threads: that the job may use.
        seed: decides order and augmentation.
    """

    replays: float
    learning_rate: float
    max_duration_s: float
    method: Literal["full", "lora"]
    lora_rank: int
    lora_alpha: float
    objective: Literal["likelihood", "target", "sampled"]
    temperature: float
    kl_weight: float
    pessimism: float = 0.0  # descriptions of before it was there have none
    samples: int
    clip: float
    sample_reuse: int
    max_experiences: int
    max_versions_behind: int
    checkpoint_steps: int
    rehearsal: str | None
    threads: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
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
    maker: HeadBuilder
    limits: Limits
    data: Mapping[str, Any] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / JOB, asdict(self))


def read_job_spec(run_dir: Path) -> JobSpec:
    raw = read_json(run_dir / JOB)
    maker = raw.pop("maker")
    settings = maker.pop("settings")
    prior = RewardPrior(**settings.pop("prior"))
    return JobSpec(
        plan=TrainingPlan(**raw.pop("plan")),
        maker=HeadBuilder(settings=HeadSettings(prior=prior, **settings), **maker),
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


def checkpoint_step(run_dir: Path) -> int:
    """Gradient steps that a job which was killed need not take again; 0 if it left no checkpoint."""
    try:
        with safe_open(run_dir / CHECKPOINT, framework="numpy") as file:
            return int(file.metadata()["step"])
    except (FileNotFoundError, SafetensorError):
        return 0
