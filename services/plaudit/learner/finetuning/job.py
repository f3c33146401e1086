"""One fine-tuning job: ``python -m plaudit.learner.finetuning.job RUN_DIR`` with the URL of the experience store on
standard input (:mod:`plaudit.core.job_run` and :mod:`.job_spec` say what is in the folder).

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from plaudit.core.experience import Experience
from plaudit.core.job_run import CANDIDATE, ERROR, PROGRESS, RESULT, read_json, write_json
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.ports.store import ExperienceReader
from plaudit.learner.features.action_heads import DynamicActions, FixedActions
from plaudit.learner.features.features import contexts_on, learned_from
from plaudit.learner.features.head_builder import write_card
from plaudit.learner.features.policies import LoadedPolicy
from plaudit.learner.finetuning.job_spec import (
    CHECKPOINT,
    FEATURES,
    PARENT,
    REWARD_MODEL,
    REWARD_REPORT,
    STATE,
    TrainingPlan,
    read_job_spec,
    write_features,
)
from plaudit.learner.finetuning.training_data import CHUNK, TrainingData, select_training_data
from plaudit_models.bandit.dynamic_actions import cautious_rewards
from plaudit_models.bundle import TOKENIZER, TRUNK, TRUNK_GOLDEN, Manifest, read_manifest, seal
from plaudit_models.data.labelled import LabelledData
from plaudit_models.data.loader import load_data_folder
from plaudit_models.preprocess import read_tokenizer
from plaudit_models.spec import BASE_LOGITS, EMBEDDING
from plaudit_models.training.checkpoint import load_checkpoint
from plaudit_models.training.config import RewardConfig
from plaudit_models.training.export import export_version, load_policy
from plaudit_models.training.finetune import Finetuned, FinetuneProgress, finetune
from plaudit_models.training.networks.fusion import FusionPolicy
from plaudit_models.training.replay import Listed, Served
from plaudit_models.training.reward import (
    RewardModel,
    fit_reward_model,
    load_reward_model,
    rewards_on,
    save_reward_model,
)
from plaudit_models.training.schedule import use_threads

_NICENESS: Final = 10
"""Serving comes first on the processors that both use."""
_REWARD_SHARE: Final = 0.4
"""Share of the job's time for the reward model, where it needs one first."""
_REWARD_REPLAYS: Final = 3.0
"""Replays of an experience in training the reward model, per replay in training the policy: a thumb tells less than the
reward model's opinion of every answer."""


def run_job(run_dir: Path, store: ExperienceReader, runtime: ModelRuntime) -> None:
    """Do what ``job.json`` says; ``result.json`` is written last.

    Raises:
        ValueError: there is nothing to train on.
        InvalidData: the rehearsal folder is wrong.
        FloatingPointError: training diverged.
        ExportMismatch: the graphs do not do what torch does.
    """
    job = read_job_spec(run_dir)
    plan = job.plan
    use_threads(plan.threads)
    parent = run_dir / PARENT
    before = read_manifest(parent)
    spec = before.spec
    tokenizer = read_tokenizer(parent / TOKENIZER) if TOKENIZER in before.files else None
    data = select_training_data(store, spec, tokenizer, job, version=before.version)
    if plan.rehearsal is None:
        raise ValueError("finetune.rehearsal: is not set, and no pre-trained version says what it was trained on")
    rehearsal = load_data_folder(Path(plan.rehearsal), spec, "train", tokenizer, plan.data)
    # With its heads, which have learned from feedback what the trunk has not.
    served = runtime.load(parent).head
    listed = _listed(data, LoadedPolicy(parent, runtime, plan.limits), store, plan)
    trained, measured = _train(run_dir, load_policy(parent, spec), served, data, listed, rehearsal, plan)
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
        created_at_s=job.created_at_s,
        files={},
        parent=before.version,
        floor=plan.head_builder.floor,
        reason=f"Fine-tuned: {job.reason}",
        data={**job.data, **data.facts},
        metrics=measured,
    )
    manifest = export_version(trained.model, candidate, manifest, inputs, parent_trunk=parent / TRUNK)
    n_features = _build_heads(run_dir, candidate, manifest, data.used, store, runtime, plan)
    write_json(run_dir / RESULT, {**measured, **data.facts, "features": n_features})


def _train(
    run_dir: Path,
    parent: FusionPolicy,
    served: Served,
    data: TrainingData,
    listed: Listed | None,
    rehearsal: LabelledData,
    plan: TrainingPlan,
) -> tuple[Finetuned, dict[str, Any]]:
    """The fine-tuned policy, and what was measured. Goes on from a checkpoint, if the run folder has one."""
    config, rewards, measured = plan.finetune, None, dict[str, Any]()
    if config.objective != "likelihood":
        measured["pessimism"] = plan.pessimism
    if config.objective != "likelihood" and len(data.experiences):
        model, measured["reward_model"] = _reward_model(run_dir, parent, data, plan)
        rewards = rewards_on(model, data.experiences, pessimism=plan.pessimism)
        if config.max_duration_s is not None:
            config = replace(config, max_duration_s=(1.0 - _REWARD_SHARE) * config.max_duration_s)
    if config.sampling is not None:
        measured["sample_staleness_max_steps"] = config.sampling.sample_reuse - 1
    trained = finetune(
        parent,
        data.experiences,
        rehearsal,
        config=config,
        rewards=rewards,
        served=served,
        listed=listed,
        resume=load_checkpoint(run_dir / CHECKPOINT),
        on_progress=lambda progress: _report(run_dir, progress),
        on_checkpoint=lambda checkpoint: checkpoint.save(run_dir / CHECKPOINT),
    )
    return trained, {
        "method": "full" if config.lora is None else "lora",
        "objective": config.objective,
        "steps": trained.steps,
        "duration_s": trained.duration_s,
        "cut_short": trained.cut_short,
        "trained_weights": trained.trained_weights,
        "kl_to_parent_nats": trained.kl_to_parent,
        **measured,
    }


def _listed(data: TrainingData, parent: LoadedPolicy, store: ExperienceReader, plan: TrainingPlan) -> Listed | None:
    """Experiences of dynamic actions; None if there are none.

    Where the objective asks, with what the parent serves there, and the rewards that the regression which all dynamic
    actions share expects: it is the reward model over content and text.
    """
    if data.listed is None:
        return None
    if plan.finetune.objective == "likelihood":
        return Listed(data.listed)  # it asks for neither
    empty, prior, used = plan.head_builder.empty(parent.manifest), plan.head_builder.settings.prior, data.used_listed
    learned, features = learned_from(empty, parent, store, used)
    evidence = learned.require(DynamicActions).state
    rewards, logits = np.zeros(data.listed.listed.shape), np.zeros(data.listed.listed.shape)
    for start in range(0, len(used), CHUNK):  # the vectors of all lists at once may not fit into memory
        contexts = contexts_on(parent, store, used[start : start + CHUNK], features)
        for i, experience in enumerate(used[start : start + CHUNK], start):
            actions = contexts[experience.decision.prediction_id].action_list
            k = len(actions.base_logits)
            rewards[i, :k] = cautious_rewards(evidence, prior, actions, plan.pessimism)
            logits[i, :k] = parent.scores_among(actions)
    return Listed(data.listed, rewards, logits)


def _reward_model(
    run_dir: Path, parent: FusionPolicy, data: TrainingData, plan: TrainingPlan
) -> tuple[RewardModel, Mapping[str, Any]]:
    """Fitted, or as an earlier process of this run has left it in the run folder."""
    if (run_dir / REWARD_REPORT).exists():
        return load_reward_model(run_dir / REWARD_MODEL, parent), read_json(run_dir / REWARD_REPORT)
    budget_s = plan.finetune.max_duration_s
    config = RewardConfig(
        replays_per_experience=_REWARD_REPLAYS * plan.finetune.replays_per_experience,
        max_duration_s=None if budget_s is None else _REWARD_SHARE * budget_s,
        learning_rate=plan.finetune.learning_rate,
        seed=plan.finetune.seed,
    )
    model, report = fit_reward_model(parent, data.experiences, data.feedback_targets, config=config)
    save_reward_model(model, run_dir / REWARD_MODEL)
    write_json(run_dir / REWARD_REPORT, report.to_dict())
    return model, report.to_dict()


def _build_heads(
    run_dir: Path,
    candidate: Path,
    manifest: Manifest,
    used: Sequence[Experience],
    store: ExperienceReader,
    runtime: ModelRuntime,
    plan: TrainingPlan,
) -> int:
    """Build the candidate's heads on features of its own trunk; returns for how many experiences there are any."""
    policy = LoadedPolicy(candidate, runtime, plan.limits)
    learned, features = learned_from(plan.head_builder.empty(manifest), policy, store, used)
    for head in learned.heads:
        head.write(candidate, plan.head_builder.settings)
    write_card(candidate, seal(candidate, manifest))
    write_features(run_dir / FEATURES, features)
    (run_dir / STATE).write_bytes(learned.require(FixedActions).to_bytes())
    return len(features)


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
        threads = read_job_spec(run_dir).plan.threads
        store = SqlStore(sys.stdin.read())
        try:
            run_job(run_dir, store, OnnxRuntime("cpu", threads))
        finally:
            store.close()
    except Exception as error:
        traceback.print_exc()
        write_json(run_dir / ERROR, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
