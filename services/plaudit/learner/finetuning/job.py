"""One fine-tuning job: ``python -m plaudit.learner.finetuning.job RUN_DIR`` with the URL of the experience store on
standard input (see plaudit.core.job_run for what is in the folder).

Reads experiences up to the snapshot, trains, exports a version folder, builds its head on the experiences as the new
trunk sees them. It writes to its run folder and nowhere else: judging and publishing what it made is the learner's
business. Killed and launched again on the same folder, it goes on from its last checkpoint. Beside pretraining.py this
is the only module of the learner that needs torch.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from safetensors.numpy import load_file

from plaudit.core.events import Content, Features
from plaudit.core.experience import Experience
from plaudit.core.job_run import CANDIDATE, ERROR, PROGRESS, RESULT, read_json, write_json
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.ports.store import ExperienceStore
from plaudit.learner.features.action_heads import FixedActions
from plaudit.learner.features.context import Context, LabelledContext
from plaudit.learner.features.head_builder import write_card
from plaudit.learner.features.policies import LoadedPolicy
from plaudit.learner.finetuning.job_spec import (
    CHECKPOINT,
    FEATURES,
    PARENT,
    REWARD_MODEL,
    REWARD_REPORT,
    STATE,
    JobSpec,
    TrainingPlan,
    read_job_spec,
    write_features,
)
from plaudit.learner.finetuning.training_data import CHUNK, TrainingData, lessons
from plaudit_models.bandit.reward_model import empty_state
from plaudit_models.bundle import TOKENIZER, TRUNK, TRUNK_GOLDEN, Manifest, read_manifest, seal
from plaudit_models.dataset import LabelledData, load_data_folder
from plaudit_models.preprocess import read_tokenizer
from plaudit_models.spec import BASE_LOGITS, EMBEDDING
from plaudit_models.training.checkpoint import load_checkpoint
from plaudit_models.training.export import export_version, load_policy
from plaudit_models.training.finetune import (
    Finetuned,
    FinetuneProgress,
    FinetuneSettings,
    LoraSettings,
    Served,
    finetune,
)
from plaudit_models.training.fusion import FusionPolicy
from plaudit_models.training.objectives import SampledSettings
from plaudit_models.training.reward import (
    RewardModel,
    RewardSettings,
    fit_reward_model,
    load_reward_model,
    rewards_on,
    save_reward_model,
)
from plaudit_models.training.threads import use_threads

_NICENESS: Final = 10
"""Serving comes first on the processors that both use."""
_REWARD_SHARE: Final = 0.4
"""Of the time a job may train, where it needs a reward model first."""
_REWARD_REPLAYS: Final = 3.0
"""How many times as often as the policy the reward model looks at each experience: a thumb tells it less than the
reward model's opinion of every answer tells the policy."""


def run_job(run_dir: Path, store: ExperienceStore, runtime: ModelRuntime) -> None:
    """Do what ``job.json`` says; ``result.json`` is there when this returns.

    Raises:
        ValueError: there is nothing to train on.
        InvalidData: the rehearsal folder is wrong.
        FloatingPointError: training diverged.
        ExportMismatch: the graphs do not do what torch does.
    """
    task = read_job_spec(run_dir)
    plan = task.plan
    use_threads(plan.threads)
    parent = run_dir / PARENT
    before = read_manifest(parent)
    spec = before.spec
    tokenizer = read_tokenizer(parent / TOKENIZER) if TOKENIZER in before.files else None
    learned = lessons(store, spec, tokenizer, task, version=before.version)
    if plan.rehearsal is None:
        raise ValueError("finetune.rehearsal: is not set, and no pre-trained version says what it was trained on")
    rehearsal = load_data_folder(Path(plan.rehearsal), spec, "train", tokenizer)
    # With its head, which has learned from feedback what the trunk has not.
    served = runtime.load(parent).head
    trained, measured = _train(run_dir, load_policy(parent, spec), served, learned, rehearsal, plan)
    candidate = run_dir / CANDIDATE
    shutil.rmtree(candidate, ignore_errors=True)
    candidate.mkdir()
    if tokenizer is not None:
        shutil.copyfile(parent / TOKENIZER, candidate / TOKENIZER)
    golden = load_file(parent / TRUNK_GOLDEN)
    inputs = {name: array for name, array in golden.items() if name not in (EMBEDDING, BASE_LOGITS)}
    manifest = Manifest(
        spec=spec,
        kind="finetuned",
        created_at_s=task.created_at_s,
        files={},
        parent=before.version,
        floor=task.maker.floor,
        reason=f"Fine-tuned: {task.reason}",
        data={**task.data, **learned.facts},
        metrics=measured,
    )
    manifest = export_version(trained.model, candidate, manifest, inputs, parent_trunk=parent / TRUNK)
    features = _build_head(run_dir, candidate, manifest, learned.used, store, runtime, task)
    write_json(run_dir / RESULT, {**measured, **learned.facts, "features": features})


def _train(
    run_dir: Path,
    parent: FusionPolicy,
    served: Served,
    learned: TrainingData,
    rehearsal: LabelledData,
    plan: TrainingPlan,
) -> tuple[Finetuned, dict[str, Any]]:
    """The fine-tuned policy, and what was measured. Goes on from a checkpoint, if the run folder has one."""
    rewards, judged = None, dict[str, Any]()
    budget_s = plan.max_duration_s
    if plan.objective != "likelihood":
        budget_s *= 1.0 - _REWARD_SHARE
        model, judged["reward_model"] = _reward_model(run_dir, parent, learned, plan)
        rewards = rewards_on(model, learned.experiences, pessimism=plan.pessimism)
        judged["pessimism"] = plan.pessimism
    sampled = None
    if plan.objective == "sampled":
        sampled = SampledSettings(samples=plan.samples, clip=plan.clip, reuse=plan.sample_reuse)
        judged["sample_staleness_max_steps"] = plan.sample_reuse - 1
    settings = FinetuneSettings(
        replays_per_experience=plan.replays,
        max_duration_s=budget_s,
        learning_rate=plan.learning_rate,
        kl_weight=plan.kl_weight,
        target=plan.temperature if plan.objective == "target" else None,
        sampled=sampled,
        lora=LoraSettings(plan.lora_rank, plan.lora_alpha) if plan.method == "lora" else None,
        checkpoint_steps=plan.checkpoint_steps,
        seed=plan.seed,
    )
    trained = finetune(
        parent,
        learned.experiences,
        rehearsal,
        settings=settings,
        rewards=rewards,
        served=served,
        resume=load_checkpoint(run_dir / CHECKPOINT),
        on_progress=lambda progress: _report(run_dir, progress),
        on_checkpoint=lambda checkpoint: checkpoint.save(run_dir / CHECKPOINT),
    )
    return trained, {
        "method": plan.method,
        "objective": plan.objective,
        "steps": trained.steps,
        "duration_s": trained.duration_s,
        "cut_short": trained.cut_short,
        "trained_weights": trained.trained_weights,
        "kl_to_parent_nats": trained.kl_to_parent,
        **judged,
    }


def _reward_model(
    run_dir: Path, parent: FusionPolicy, learned: TrainingData, plan: TrainingPlan
) -> tuple[RewardModel, Mapping[str, Any]]:
    """Fitted, or as an earlier process of this run has left it in the run folder."""
    if (run_dir / REWARD_REPORT).exists():
        return load_reward_model(run_dir / REWARD_MODEL, parent), read_json(run_dir / REWARD_REPORT)
    settings = RewardSettings(
        replays_per_experience=_REWARD_REPLAYS * plan.replays,
        max_duration_s=_REWARD_SHARE * plan.max_duration_s,
        learning_rate=plan.learning_rate,
        seed=plan.seed,
    )
    model, report = fit_reward_model(parent, learned.experiences, learned.feedback_targets, settings=settings)
    save_reward_model(model, run_dir / REWARD_MODEL)
    write_json(run_dir / REWARD_REPORT, report.to_dict())
    return model, report.to_dict()


def _build_head(
    run_dir: Path,
    candidate: Path,
    manifest: Manifest,
    used: Sequence[Experience],
    store: ExperienceStore,
    runtime: ModelRuntime,
    task: JobSpec,
) -> int:
    """Give the candidate a head built on the experiences as its trunk sees them; returns how many it could see."""
    version = LoadedPolicy(candidate, runtime, task.limits)
    head = FixedActions(empty_state(task.maker.space(manifest)))
    found: dict[str, Features] = {}
    for start in range(0, len(used), CHUNK):
        chunk = used[start : start + CHUNK]
        ids = [experience.decision.prediction_id for experience in chunk]
        contents: Mapping[str, Mapping[str, Content]] = store.contents(ids)
        made = zip(chunk, version.embed([contents[id_] for id_ in ids]), strict=True)
        judged = [(row, e, e.label) for e, row in made if row is not None and e.label is not None]
        found |= {e.decision.prediction_id: row for row, e, _ in judged}
        head = head.add([LabelledContext(Context(row, manifest.spec.actions), label) for row, _, label in judged])
    head.write(candidate, task.maker.settings)
    write_card(candidate, seal(candidate, manifest))
    write_features(run_dir / FEATURES, found)
    (run_dir / STATE).write_bytes(head.to_bytes())
    return len(found)


def _report(run_dir: Path, progress: FinetuneProgress) -> None:
    with (run_dir / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(progress)) + "\n")


def main(arguments: Sequence[str]) -> int:
    """A composition root: the run folder says what to do, the standard input where the store is."""
    from plaudit.adapters.runtime.onnx import OnnxRuntime
    from plaudit.adapters.store.sql import SqlStore

    run_dir = Path(arguments[0])
    os.nice(_NICENESS)
    try:
        task = read_job_spec(run_dir)
        store = SqlStore(sys.stdin.read())
        try:
            run_job(run_dir, store, OnnxRuntime("cpu", task.plan.threads))
        finally:
            store.close()
    except Exception as error:
        traceback.print_exc()
        write_json(run_dir / ERROR, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
