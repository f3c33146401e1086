"""The whole loop in one process and on no clock: requests are answered, thumbs are logged, the learner does the rest.

Log, experience store, registry, runtime, learner and fine-tuning jobs are those that `plaudit up` composes, and answers
are made by the inference service's own evaluator; what is left out are its queue, its port and the waiting. A
fine-tuning job ends before the next request comes, as it does where thumbs are seconds apart and not milliseconds, so
that what is learned depends on thumbs and the seed, not on the machine's speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from plaudit.compose.learner import build_learner
from plaudit.compose.log import event_log
from plaudit.compose.paths import learner_dir
from plaudit.compose.registry import model_registry
from plaudit.compose.runtime import content_limits, model_runtime
from plaudit.compose.settings import settings_from
from plaudit.compose.store import experience_store
from plaudit.core.events import Content, Decision, Event, Features, Feedback, Role, Thumb
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.runtime import ModelRuntime, ServableModel
from plaudit.core.ports.store import ExperienceStore
from plaudit.core.rollout import in_experiment
from plaudit.core.settings import Settings
from plaudit.learner.finetuning.job import run_job
from plaudit.learner.loop import Learner
from plaudit.learner.metrics import LearnerMetrics
from plaudit.serving.engine.action_sets import fixed_actions
from plaudit.serving.engine.decoding import decode_content
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest, Evaluator
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import Statistics
from support.inline_jobs import InlineJobs


class WholeLoop:
    """One model's loop.

    Args:
        settings: as of `plaudit.toml`; a version must be live.
        chunk: requests that are answered before the learner's next step.
        seed: of the draws.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registry: ModelRegistry,
        log: EventLog,
        store: ExperienceStore,
        runtime: ModelRuntime,
        chunk: int,
        seed: int,
    ) -> None:
        self.registry = registry
        self._log = log
        self._runtime = runtime
        self._limits = content_limits(settings)
        self._rng = np.random.default_rng(seed)
        self._chunk = chunk
        self._evaluator = Evaluator(ServingMetrics(CollectorRegistry()), Statistics(), chunk, self._rng)
        self._loaded: dict[int, ServableModel] = {}
        self._numbers = itertools.count()
        self._time_s = 0.0
        self.learner: Learner = build_learner(
            settings,
            log=log,
            store=store,
            registry=registry,
            runtime=runtime,
            jobs=InlineJobs(lambda run_dir: run_job(run_dir, store, runtime)),
            work_dir=learner_dir(settings, registry.model),
            metrics=LearnerMetrics(CollectorRegistry()),
            clock=lambda: self._time_s,
        )

    @property
    def live(self) -> int:
        live = self.registry.rollout().live
        assert live is not None
        return live

    def ask(self, requests: Sequence[tuple[str, Mapping[str, Content]]]) -> list[Decision]:
        """Decisions on requests, each by the version that serves its user; at most ``chunk`` of them. Not logged
        yet.
        """
        rollout = self.registry.rollout()
        versions = [
            rollout.candidate if rollout.candidate is not None and in_experiment(rollout, user) else rollout.live
            for user, _ in requests
        ]
        questions = [self._question(version, content) for version, (_, content) in zip(versions, requests, strict=True)]
        decisions = []
        for version, (user, content), question, answer in zip(
            versions, requests, questions, self._evaluator.run(questions), strict=True
        ):
            assert isinstance(answer, Evaluation)
            assert version is not None
            manifest = question.model.manifest
            self._time_s += 1.0
            decisions.append(
                Decision(
                    prediction_id=f"p{next(self._numbers)}",
                    model=self.registry.model,
                    time_s=self._time_s,
                    user_id=user,
                    version=version,
                    version_digest=manifest.digest,
                    role=Role.LIVE if version == rollout.live else Role.CANDIDATE,
                    action=manifest.spec.actions[answer.action],
                    propensity=answer.propensity,
                    features=Features(manifest.trunk_digest, answer.embedding, answer.base_logits),
                    content=content,
                )
            )
        return decisions

    def observe(self, decisions: Sequence[Decision], up: Sequence[bool]) -> None:
        """Log the decisions with a thumb each, and let the learner do all that follows."""
        events: list[Event] = []
        for decision, thumb in zip(decisions, up, strict=True):
            feedback_id = f"f{next(self._numbers)}"
            events += [
                decision,
                Feedback(feedback_id, decision.prediction_id, self._time_s, decision.user_id, Thumb(thumb)),
            ]
        self._log.append(events)
        self.learner.step()
        while self.learner.busy or self.learner.report()["finetune"]["phase"] == "training":
            self.learner.step()

    def _question(self, version: int | None, content: Mapping[str, Content]) -> EvaluationRequest:
        assert version is not None
        if version not in self._loaded:
            self._loaded = {v: m for v, m in self._loaded.items() if v in self._serving()}
            self._loaded[version] = self._runtime.load(self.registry.folder(version))
        model = self._loaded[version]
        return EvaluationRequest(
            model, decode_content(content, model, self._limits), fixed_actions(model.manifest.spec, ())
        )

    def _serving(self) -> set[int | None]:
        rollout = self.registry.rollout()
        return {rollout.live, rollout.candidate}


@contextmanager
def whole_loop(settings: Settings, *, chunk: int, seed: int) -> Iterator[WholeLoop]:
    """A loop on the data directory of the settings, whose registry has a live version."""
    name = settings.spec().name
    log, store = event_log(settings), experience_store(settings, name)
    try:
        yield WholeLoop(
            settings,
            registry=model_registry(settings, name),
            log=log,
            store=store,
            runtime=model_runtime(settings),
            chunk=chunk,
            seed=seed,
        )
    finally:
        log.close()
        store.close()


def loop_settings(folder: Path, model: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The defaults, but for these sections, on a data directory."""
    return settings_from({"data_dir": folder, "model": model, **sections})
