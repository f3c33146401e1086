"""Holds the version that serves, and follows the registry: load beside, prove, warm, flip one reference.

Requests read ``current`` once and use that object to the end, so a version that was replaced drains by itself and is
released with its last request. Knows nothing about threads: whoever owns it calls :meth:`LiveModel.step`, on a thread
that neither answers requests nor evaluates models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import structlog

from plaudit.core.errors import NoLiveModel, NotFound, UnprovenVersion
from plaudit.core.events import Role, TrialReport
from plaudit.core.ports import ModelRegistry, ModelRuntime, ServableModel
from plaudit.core.rollout import Rollout, on_trial
from plaudit.serving.capacity import best_batch
from plaudit.serving.metrics import ServingMetrics
from plaudit.serving.trials import UNWATCHED, Trial
from plaudit_models.bundle import CorruptBundle

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """``retry_s`` is on the monotonic clock; ``pause_s`` the pause before it; ``proof`` what its proof found wrong."""

    retry_s: float
    pause_s: float
    proof: str


class LiveModel:
    """One model as it serves here.

    Args:
        registry: what to follow.
        max_batch: the most requests of one evaluation.
        clock: monotonic, seconds; paces how often a version that failed is tried again.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        runtime: ModelRuntime,
        metrics: ServingMetrics,
        *,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.name: Final = registry.model
        self.current: ServableModel | None = None
        self.rollout = Rollout(registry.model)
        self._runtime = runtime
        self._metrics = metrics
        self._max_batch = max_batch
        self._caps: dict[str, int] = {}
        self._clock = clock
        self._loaded: dict[int, ServableModel] = {}
        self._failures: dict[int, _Failure] = {}
        self.trial: Trial | None = None
        self._ended: list[Trial] = []
        self._trial: tuple[Rollout, ServableModel] | None = None
        self._problem = ""
        self._lock = threading.Lock()
        metrics.live_version.labels(self.name).set(0)

    def serving(self) -> ServableModel:
        """The version that serves. Raises NoLiveModel."""
        model = self.current
        if model is None:
            raise NoLiveModel(self.name)
        return model

    def serving_for(self, user_id: str) -> tuple[ServableModel, Role]:
        """The version that serves this user, and the part it plays. Raises NoLiveModel."""
        trial = self._trial
        if trial is not None and on_trial(trial[0], user_id):
            return trial[1], Role.CANDIDATE
        return self.serving(), Role.LIVE

    def watch(self, user_id: str) -> AbstractContextManager[None]:
        """Around one request of this user: counts how it was answered, while a trial is under way."""
        trial = self.trial
        return UNWATCHED if trial is None else trial.watch(user_id)

    def trial_reports(self, time_s: float) -> list[TrialReport]:
        """What was seen of trials since the last time, of one that has ended meanwhile too."""
        with self._lock:
            trials, self._ended = self._ended, []
            if self.trial is not None:
                trials = [*trials, self.trial]
        return [report for trial in trials if (report := trial.report(time_s)) is not None]

    @property
    def batch_cap(self) -> int:
        """The most requests that one evaluation of the live version should hold, as measured when it was loaded."""
        model = self.current
        return self._max_batch if model is None else self._caps.get(model.manifest.trunk_digest, self._max_batch)

    def bound(self, version: int | None, user_id: str = "") -> tuple[ServableModel, Role]:
        """The version of that number, if it is kept loaded, whether it serves or not; None is what serves this user.

        Raises:
            NoLiveModel: nothing serves.
            NotFound: it is not loaded.
        """
        if version is None:
            return self.serving_for(user_id)
        model = self._loaded.get(version)
        if model is None:
            raise NotFound(
                f"version: {version} is not loaded here; loaded are {list(self.loaded_versions())}, "
                "and none asks for the live one"
            )
        trial = self._trial
        return model, Role.CANDIDATE if trial is not None and trial[1] is model else Role.LIVE

    def loaded_versions(self) -> Sequence[int]:
        return sorted(self._loaded)

    def step(self) -> None:
        """Look at the registry once and do what its rollout asks for.

        The versions that the rollout names are kept loaded, so that going back to one is a flip; others are released.
        What fails is counted and logged, and what serves goes on.
        """
        with self._lock:
            try:
                rollout = self.registry.rollout()
            except Exception as error:  # of whatever kind the registry's storage has; the next look may succeed
                self._complain(f"{type(error).__name__}: {error}")
                return
            if rollout.live is None:
                # A registry always has a live version once it had one: this one is new, or gone from under us.
                return
            self._problem = ""
            moved = rollout.generation != self.rollout.generation
            candidate = self._get(rollout.candidate)
            self._trial = None if candidate is None or rollout.shadow else (rollout, candidate)
            self._follow_trial(rollout, candidate)
            if self._serve(rollout) or moved:
                self._release(rollout)
            self.rollout = rollout  # who watches hears of it once it serves here
            for version in (rollout.previous, rollout.gated):
                if version is not None:
                    self._get(version)

    def prepare(self, version: int) -> None:
        """Load, prove and warm a version ahead of a rollout that will name it.

        Raises:
            UnknownVersion: the registry does not have it.
            UnprovenVersion: it failed its proof.
        """
        with self._lock:
            if version not in self._loaded:
                self._loaded[version] = self._load(version)
                self._failures.pop(version, None)

    def _follow_trial(self, rollout: Rollout, candidate: ServableModel | None) -> None:
        trial = self.trial
        if trial is not None and trial.key != (rollout.trial, rollout.candidate):
            self._ended.append(trial)
            self.trial = trial = None
        if rollout.candidate is None:
            return
        failure = self._failures.get(rollout.candidate)
        problem = failure.proof if failure is not None and candidate is None else ""
        if trial is None:
            self.trial = Trial(rollout, candidate, problem)
        else:
            trial.candidate, trial.problem = candidate, problem

    def _serve(self, rollout: Rollout) -> bool:
        """True if another version serves now."""
        before = self.current
        if before is not None and before.manifest.version == rollout.live:
            return False
        started_s = time.perf_counter()
        model = self._get(rollout.live)
        if model is None and before is None:
            # Nothing serves yet: a proven version that served before is better than none.
            model = self._get(rollout.previous) or self._get(rollout.gated)
        if model is None:
            return False
        self.current = model
        took_s = time.perf_counter() - started_s
        version = model.manifest.version
        self._metrics.live_version.labels(self.name).set(version)
        self._metrics.live_since.labels(self.name).set_to_current_time()
        if before is not None:
            self._metrics.swaps.labels(self.name).inc()
            self._metrics.swap_seconds.labels(self.name).observe(took_s)
        logger.info("live", model=self.name, version=version, digest=model.digest, took_s=round(took_s, 4))
        return True

    def _get(self, version: int | None) -> ServableModel | None:
        """The version if it is loaded or can be; None if it cannot, or could not a moment ago."""
        if version is None:
            return None
        failure = self._failures.get(version)
        if version not in self._loaded and (failure is None or self._clock() >= failure.retry_s):
            try:
                self._loaded[version] = self._load(version)
                self._failures.pop(version, None)
            except Exception as error:  # whatever is wrong with this version, the one that serves goes on
                pause_s = _FIRST_PAUSE_S if failure is None else min(2 * failure.pause_s, _LONGEST_PAUSE_S)
                proof = str(error) if isinstance(error, UnprovenVersion) else ""
                self._failures[version] = _Failure(self._clock() + pause_s, pause_s, proof)
                logger.error("version_not_loaded", model=self.name, version=version, problem=str(error))
        return self._loaded.get(version)

    def _load(self, version: int) -> ServableModel:
        folder = self.registry.folder(version)
        try:
            model = self._runtime.load(folder)
            if (model.manifest.spec.name, model.manifest.version) != (self.name, version):
                raise CorruptBundle(f"{folder} holds version {model.manifest.version} of {model.manifest.spec.name!r}")
        except CorruptBundle as error:
            self._metrics.failed_proofs.labels(self.name).inc()
            raise UnprovenVersion(version, str(error)) from error
        digest = model.manifest.trunk_digest
        if digest not in self._caps:
            self._caps[digest] = best_batch(lambda size: model.warm([size], again=True), self._max_batch)
            logger.info("batch_cap", model=self.name, version=version, requests=self._caps[digest])
        model.warm(range(1, self._caps[digest] + 1))
        return model

    def _release(self, rollout: Rollout) -> None:
        """Let go of what neither serves nor is named."""
        named = {rollout.live, rollout.previous, rollout.gated, rollout.candidate}
        serving = None if self.current is None else self.current.manifest.version
        self._loaded = {v: model for v, model in self._loaded.items() if v in named or v == serving}
        self._failures = {v: failure for v, failure in self._failures.items() if v in named}
        trunks = {model.manifest.trunk_digest for model in self._loaded.values()}
        self._caps = {digest: cap for digest, cap in self._caps.items() if digest in trunks}

    def _complain(self, problem: str) -> None:
        """Once per problem, not once per look."""
        if problem != self._problem:
            self._problem = problem
            logger.error("registry_unreadable", model=self.name, problem=problem)
