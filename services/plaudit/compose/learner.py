"""The learner of one model, and the rules of the maths from its settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypedDict

from plaudit.adapters.jobs.subprocess import SubprocessJobs
from plaudit.compose.paths import learner_dir
from plaudit.compose.registry import model_registry
from plaudit.compose.runtime import content_limits, model_runtime
from plaudit.compose.settings import from_section
from plaudit.compose.store import store_url
from plaudit.core.ports.jobs import JobLauncher
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.settings import CanaryPolicy, Settings
from plaudit.core.tracing import NO_TRACING, Tracing
from plaudit.learner.evaluation.experiment import ExperimentRules
from plaudit.learner.features.head_builder import HeadBuilder
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.features.recent_contexts import RecentContexts
from plaudit.learner.finetuning.experiment_runner import ExperimentRunner
from plaudit.learner.finetuning.job_spec import TrainingPlan
from plaudit.learner.finetuning.scheduler import FinetuningContext, FinetuningRules, FinetuningScheduler
from plaudit.learner.ingest.consumer import LogConsumer
from plaudit.learner.loop import Finetuner, Learner, NoFinetuning
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.outdated import OutdatedEvidence
from plaudit.learner.online.policy_shift import PolicyShift
from plaudit.learner.online.refresh import HeadRefresher
from plaudit.learner.online.revert import RefreshGuard
from plaudit.learner.online.update import OnlineUpdater
from plaudit.learner.state import LearnerState
from plaudit.learner.status import STATUS, StatusFile
from plaudit.learner.tracing import LearnerTrace
from plaudit_models.bandit.improvement import HeadSettings
from plaudit_models.bandit.reward_model import RewardPrior
from plaudit_models.data.config import DataConfig
from plaudit_models.evaluation.gate import GateRules
from plaudit_models.training.config import FinetuneConfig, LoraConfig, PretrainConfig, SamplingConfig

_KL_WEIGHT: Final = {"likelihood": 0.0, "target": 0.0, "sampled": 0.04}
"""β by objective. The likelihood is held by rehearsal alone, the target stays near the parent by itself, and sampled
actions may go as far as Shao et al. (2024, section 4.2) let them."""


def open_learner(
    settings: Settings,
    model: str,
    log: EventLog,
    store: ExperienceStore,
    metrics: LearnerMetrics,
    tracing: Tracing | None = None,
) -> Learner:
    """A learner on the adapters that the settings name. Raises ConfigError."""
    return build_learner(
        settings,
        log=log,
        store=store,
        registry=model_registry(settings, model),
        runtime=model_runtime(settings),
        jobs=job_launcher(settings, model),
        work_dir=learner_dir(settings, model),
        metrics=metrics,
        tracing=tracing,
    )


def job_launcher(settings: Settings, model: str) -> JobLauncher:
    """Launcher of fine-tuning jobs. They are told the store's URL, with its password: a run folder holds no secrets."""
    return SubprocessJobs(secret=store_url(settings, model).render_as_string(hide_password=False))


def build_learner(
    settings: Settings,
    *,
    log: EventLog,
    store: ExperienceStore,
    registry: ModelRegistry,
    runtime: ModelRuntime,
    jobs: JobLauncher,
    work_dir: Path,
    metrics: LearnerMetrics,
    tracing: Tracing | None = None,
    clock: Callable[[], float] = time.time,
) -> Learner:
    """A learner on the given adapters, ready to run.

    Args:
        work_dir: made if it is not there; best on the registry's file system. Run folders of jobs and the status file
            are in it.
        clock: UTC seconds since the epoch.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    builder, rules, limits = head_builder(settings), gate_rules(settings), content_limits(settings)
    policies = PolicyCache(registry, runtime, limits)
    canary = settings.canary.of(registry.model)
    trace = LearnerTrace(tracing or NO_TRACING)
    state = LearnerState(store, rules)
    contexts = RecentContexts(store, policies)
    shared: _Shared = {"store": store, "state": state, "registry": registry, "metrics": metrics, "clock": clock}
    experiments = ExperimentRunner(log=log, policies=policies, rules=experiment_rules(settings, canary), **shared)
    finetuning: Finetuner = NoFinetuning()
    if settings.finetune.enabled:
        finetuning = FinetuningScheduler(
            FinetuningContext(
                rules=FinetuningRules(
                    job_interval=settings.finetune.every,
                    plan=training_plan(settings),
                    gate=rules,
                    max_gate_events=settings.gate.max_events,
                    canary_share=canary.share,
                ),
                jobs=jobs,
                policies=policies,
                experiments=experiments,
                runs_dir=work_dir / "runs",
                trace=trace,
                **shared,
            )
        )
    return Learner(
        consumer=LogConsumer(
            log=log,
            store=store,
            model=registry.model,
            limit=settings.learner.poll_limit,
            metrics=metrics,
            clock=clock,
            trace=trace,
        ),
        updater=OnlineUpdater(
            policies=policies,
            builder=builder,
            contexts=contexts,
            settings=settings.learner,
            retention_s=settings.store.retention_s,
            **shared,
        ),
        outdated=OutdatedEvidence(
            state=state, store=store, policies=policies, prior=builder.settings.prior, metrics=metrics, clock=clock
        ),
        guard=RefreshGuard(policies=policies, rules=rules, **shared),
        refresher=HeadRefresher(
            contexts=contexts, builder=builder, work_dir=work_dir, settings=settings.learner, trace=trace, **shared
        ),
        experiments=experiments,
        finetuning=finetuning,
        shift=PolicyShift(
            model=registry.model, contexts=contexts, store=store, policies=policies, state=state, metrics=metrics
        ),
        poll_limit=settings.learner.poll_limit,
        status=StatusFile(work_dir / STATUS),
        **shared,
    )


class _Shared(TypedDict):
    """What every part of the leader works with."""

    store: ExperienceStore
    state: LearnerState
    registry: ModelRegistry
    metrics: LearnerMetrics
    clock: Callable[[], float]


def head_builder(settings: Settings) -> HeadBuilder:
    policy = settings.policy
    prior = from_section(RewardPrior, policy, precision=policy.prior_precision, own_precision=policy.base_precision)
    head = from_section(HeadSettings, policy, temperature=policy.beta, prior=prior)
    return from_section(HeadBuilder, policy, settings=head)


def gate_rules(settings: Settings) -> GateRules:
    return from_section(GateRules, settings.gate)


def experiment_rules(settings: Settings, policy: CanaryPolicy) -> ExperimentRules:
    """Rules of experiments: proof as for the gate, limits from ``policy``, the model's canary rules."""
    return from_section(ExperimentRules, settings.gate, policy, promotes=policy.promote)


def training_plan(settings: Settings) -> TrainingPlan:
    section = settings.finetune
    config = from_section(
        FinetuneConfig,
        section,
        replays_per_experience=section.steps_per_event,
        kl_weight=_KL_WEIGHT[section.objective] if section.kl_weight is None else section.kl_weight,
        target=settings.policy.beta if section.objective == "target" else None,
        sampling=from_section(SamplingConfig, section) if section.objective == "sampled" else None,
        lora=LoraConfig(rank=section.lora_rank, alpha=section.lora_alpha) if section.method == "lora" else None,
    )
    return from_section(
        TrainingPlan,
        section,
        finetune=config,
        head_builder=head_builder(settings),
        limits=content_limits(settings),
        rehearsal=None if section.rehearsal is None else str(section.rehearsal.resolve()),
        data=data_config(settings),
    )


def data_config(settings: Settings) -> DataConfig:
    return from_section(DataConfig, settings.data)


def pretrain_config(settings: Settings) -> PretrainConfig:
    return from_section(PretrainConfig, settings.pretrain)
