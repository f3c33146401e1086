"""Contents of a run folder: what a fine-tuning job is told, and the files it leaves besides the candidate folder.

JSON and safetensors. Learner and job share this; it imports no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from plaudit.core.events import Features
from plaudit.core.job_run import JOB, read_json, write_json
from plaudit.core.ports.registry import ModelRegistry
from plaudit.learner.features.head_builder import HeadBuilder, share
from plaudit.learner.progress import Progress
from plaudit_models.bundle import MANIFEST, Manifest
from plaudit_models.data.config import DEFAULT_DATA, DataConfig
from plaudit_models.limits import Limits
from plaudit_models.spec import BASE_LOGITS, EMBEDDING
from plaudit_models.training.config import FinetuneConfig

PARENT: Final = "parent"
"""Folder of the version to start from."""
FEATURES: Final = "features.safetensors"
"""Features of the training experiences on the candidate's trunk."""
STATE: Final = "state.safetensors"
"""Reward state that the candidate's head was built from."""

CHECKPOINT: Final = "checkpoint.safetensors"
"""Latest checkpoint of the training."""
REWARD_MODEL: Final = "reward_model.safetensors"
"""Full reward model, where the objective needs one."""
REWARD_REPORT: Final = "reward_model.json"
"""Quality of the reward model on held-out experiences; written after the model."""

_IDS: Final = "prediction_ids"
_LENGTHS: Final = "lengths"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """Plan of all jobs, as the settings say.

    Attributes:
        finetune: hyperparameters; the time limit is that of the whole job.
        head_builder: builds the candidate's head.
        limits: what content is decoded.
        pessimism: κ, standard deviations subtracted from what the reward model expects.
        max_experiences: the most recent experiences it trains on.
        max_versions_behind: experiences that were served by an older version than this many before are left out.
        rehearsal: labelled data folder that must not be forgotten; None: that of the latest pre-training.
        data: columns of that folder.
        threads: threads that the job may use.
    """

    finetune: FinetuneConfig
    head_builder: HeadBuilder
    limits: Limits
    pessimism: float
    max_experiences: int
    max_versions_behind: int
    rehearsal: str | None
    threads: int
    data: DataConfig = DEFAULT_DATA


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job.

    Attributes:
        snapshot: number of the last experience that it may look at.
        created_at_s: start, UTC seconds since the epoch.
        reason: why it was started, in one sentence.
        data: goes into the candidate's manifest.
    """

    snapshot: int
    created_at_s: float
    reason: str
    plan: TrainingPlan
    data: Mapping[str, Any] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / JOB, asdict(self))


def read_job_spec(run_dir: Path) -> JobSpec:
    return _from_dict(JobSpec, read_json(run_dir / JOB))


def _from_dict(kind: type[_T], raw: Mapping[str, Any]) -> _T:
    """Inverse of :func:`dataclasses.asdict` after JSON, for fields of plain values, tuples of them and dataclasses."""
    hints = get_type_hints(kind)
    return kind(**{name: _field(hints[name], value) for name, value in raw.items()})


def _field(hint: Any, value: Any) -> Any:
    """Value of a field; ``hint`` may be a dataclass or None."""
    nested = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
    if nested is not None and value is not None:
        return _from_dict(nested, value)  # type: ignore[arg-type]  # a class: hints hold no instances
    return tuple(value) if get_origin(hint) is tuple else value


def cannot_train(live: Manifest) -> str:
    """Why no job can start from a version that is not ``trainable``."""
    return f"version {live.version} is an imported graph without weights to train; its head is refreshed all the same"


def prepare_run(
    run_dir: Path,
    registry: ModelRegistry,
    live: Manifest,
    progress: Progress,
    plan: TrainingPlan,
    created_at_s: float,
    reason: str,
) -> Path:
    """Write the run folder of a job that starts from ``live`` and sees all experiences so far; returns ``run_dir``."""
    if run_dir.exists():
        shutil.rmtree(run_dir)  # prepared by a learner that died before it launched
    parent = run_dir / PARENT
    parent.mkdir(parents=True)
    source = registry.folder(live.version)
    for name in (*live.files, MANIFEST):
        share(source / name, parent / name)
    JobSpec(
        snapshot=progress.last_number,
        created_at_s=created_at_s,
        reason=reason,
        plan=replace(plan, rehearsal=plan.rehearsal or _pretraining_folder(registry)),
        data={"run": run_dir.name, **progress.data()},
    ).write(run_dir)
    return run_dir


def _pretraining_folder(registry: ModelRegistry) -> str | None:
    for version in reversed(registry.versions()):
        manifest = registry.manifest(version)
        if manifest.kind == "pretrained" and "folder" in manifest.data:
            return str(manifest.data["folder"])
    return None


def write_features(path: Path, features: Mapping[str, Features]) -> None:
    """Write features by prediction id: at least one, all of one trunk, each over its own actions."""
    rows = list(features.values())
    arrays: dict[str, npt.NDArray[Any]] = {
        _IDS: np.frombuffer("\n".join(features).encode(), np.uint8),
        EMBEDDING: np.stack([row.embedding for row in rows]),
        BASE_LOGITS: np.concatenate([row.base_logits for row in rows]),
        _LENGTHS: np.array([len(row.base_logits) for row in rows]),
    }
    save_file(arrays, path)


def read_features(path: Path, trunk_digest: str) -> dict[str, Features]:
    """Inverse of :func:`write_features`. Raises ValueError if another release wrote them."""
    arrays = load_file(path)
    if _LENGTHS not in arrays:
        raise ValueError(f"{path.name}: was written by another release; let the job run again")
    ids = arrays[_IDS].tobytes().decode().split("\n")
    base_logits = np.split(arrays[BASE_LOGITS], np.cumsum(arrays[_LENGTHS])[:-1])
    rows = zip(ids, arrays[EMBEDDING], base_logits, strict=True)
    return {id_: Features(trunk_digest, embedding, own) for id_, embedding, own in rows}


def checkpoint_step(run_dir: Path) -> int:
    """Gradient steps that a job which was killed need not take again; 0 if it left no checkpoint."""
    try:
        with safe_open(run_dir / CHECKPOINT, framework="numpy") as file:
            return int(file.metadata()["step"])
    except (FileNotFoundError, SafetensorError):
        return 0
