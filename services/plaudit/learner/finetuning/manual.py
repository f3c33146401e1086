"""One fine-tuning job that an operator starts: trained and published, but not promoted.

It does not pass the gate, since it is trained on all experiences and none is left to evaluate it on. It only reads the
store, so a learner may run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plaudit.core.errors import NoLiveModel
from plaudit.core.job_run import CANDIDATE, last_progress
from plaudit.core.ports.jobs import JobLauncher, JobState
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import LeaderStore
from plaudit.learner.finetuning.job_spec import TrainingPlan, cannot_train, prepare_run
from plaudit.learner.state import LearnerState
from plaudit_models.bundle import Manifest


class FinetuningFailed(Exception):
    """A job that made no candidate; the message says why."""


def finetune_manually(
    run_dir: Path,
    *,
    jobs: JobLauncher,
    store: LeaderStore,
    registry: ModelRegistry,
    plan: TrainingPlan,
    now_s: float,
    reason: str,
    wait: Callable[[], None],
    on_progress: Callable[[Mapping[str, Any]], None] = lambda progress: None,
) -> Manifest:
    """Train from the live version on every experience so far and publish the result.

    Args:
        run_dir: folder of the run; must not be in use.
        wait: called between two polls of the job.
        on_progress: called with the job's latest report, a FinetuneProgress as a mapping; empty before the first.

    Raises:
        NoLiveModel: there is no version to start from.
        FinetuningFailed: the job failed, or cannot start from what is live.
    """
    version = registry.rollout().live
    if version is None:
        raise NoLiveModel(registry.model)
    live = registry.manifest(version)
    if not live.trainable:
        raise FinetuningFailed(cannot_train(live))
    prepare_run(run_dir, registry, live, LearnerState(store).progress, plan, now_s, reason)
    jobs.launch(run_dir)
    try:
        while (status := jobs.status(run_dir)).state == JobState.RUNNING:
            on_progress(last_progress(run_dir))
            wait()
    except BaseException:
        jobs.cancel(run_dir)
        raise
    if status.state == JobState.FAILED:
        raise FinetuningFailed(status.error)
    return registry.publish(run_dir / CANDIDATE)
