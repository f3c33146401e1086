"""The version of one model that serves, kept in step with the registry: load beside, prove, warm, flip one reference.

Requests read ``current`` once and use that object to the end, so a version that was replaced drains by itself and is
released with its last request. Knows nothing about threads: its owner calls :meth:`LiveModel.sync`, on a thread that
neither answers requests nor evaluates models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from plaudit.core.errors import NoLiveModel, NotFound, PlauditError, UnprovenVersion
from plaudit.core.events import ExperimentReport, Role
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.runtime import ModelRuntime, ServableModel
from plaudit.core.rollout import Rollout, in_experiment
from plaudit.core.text.reasons import told_reason
from plaudit.core.tracing import NO_TRACING, TRACEPARENT, Attributes, Tracing
from plaudit.serving.models.batch_size import measure_best_batch
from plaudit.serving.models.experiment_reporter import NOT_COUNTED, ExperimentReporter
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.bundle import CorruptBundle

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A version that could not be loaded.

    Attributes:
        retry_s: when it is tried again, on the monotonic clock.
        pause_s: the pause before that.
        proof: problem that its proof found; "" if it failed otherwise.
        problem: the same or another one, as it may be told to clients.
    """

    retry_s: float
    pause_s: float
    proof: str
    problem: str


class LiveModel:
    """One model as it serves here.

    Args:
        registry: holds its versions and its rollout.
        max_batch: the most requests of one evaluation.
        tracing: records when another version serves, below the span that made it.
        clock: monotonic, seconds; paces how often a version that failed is tried again.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        runtime: ModelRuntime,
        metrics: ServingMetrics,
        *,
        max_batch: int,
        tracing: Tracing = NO_TRACING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.name: Final = registry.model
        self.current: ServableModel | None = None
        self.rollout = Rollout(registry.model)
        self._runtime = runtime
        self._metrics = metrics
        self._max_batch = max_batch
        self._tracing = tracing
        self._best_batches: dict[str, int] = {}
        self._clock = clock
        self._loaded: dict[int, ServableModel] = {}
        self._failures: dict[int, _Failure] = {}
        self.experiment: ExperimentReporter | None = None
        self._ended: list[ExperimentReporter] = []
        self._canary: tuple[Rollout, ServableModel] | None = None
        self._problem = ""
        self._has_live_version = False
        self._learned_s: float | None = None
        self._lock = threading.Lock()
        metrics.live_version.labels(self.name).set(0)

    @property
    def has_live_version(self) -> bool:
        """Whether a version of it is live and can be found; a model without one is none to wait for."""
        return self._has_live_version

    def serving(self) -> ServableModel:
        """The version that serves. Raises NoLiveModel."""
        model = self.current
        if model is None:
            failure = self._failures.get(self.rollout.live or 0)
            raise NoLiveModel(self.name, "" if failure is None else failure.problem)
        return model

    def count_request(self, user_id: str, role: Role) -> AbstractContextManager[None]:
        """Around one request of this user: counts how it was answered, while an experiment is under way."""
        experiment = self.experiment
        return NOT_COUNTED if experiment is None else experiment.count_request(user_id, role)

    def experiment_reports(self, time_s: float) -> list[ExperimentReport]:
        """Counts of experiments since the last call, of one that has ended meanwhile too."""
        with self._lock:
            experiments, self._ended = self._ended, []
            if self.experiment is not None:
                experiments = [*experiments, self.experiment]
        return [report for experiment in experiments if (report := experiment.report(time_s)) is not None]

    @property
    def best_batch(self) -> int:
        """Batch size that suits the live version best, as measured when it was loaded."""
        model = self.current
        return (
            self._max_batch if model is None else self._best_batches.get(model.manifest.trunk_digest, self._max_batch)
        )

    def bound(self, version: int | None, user_id: str = "") -> tuple[ServableModel, Role]:
        """A loaded version, whether it serves or not, and its role; None: the version that serves this user.

        Raises:
            NoLiveModel: nothing serves.
            NotFound: the version is not loaded.
        """
        canary = self._canary
        if version is None:
            if canary is not None and in_experiment(canary[0], user_id):
                return canary[1], Role.CANDIDATE
            return self.serving(), Role.LIVE
        model = self._loaded.get(version)
        if model is None:
            raise NotFound(
                f"version: {version} is not loaded here; loaded are {list(self.loaded_versions())}, "
                "and none asks for the live one"
            )
        return model, Role.CANDIDATE if canary is not None and canary[1] is model else Role.LIVE

    def loaded_versions(self) -> Sequence[int]:
        return sorted(self._loaded)

    def sync(self) -> None:
        """Read the registry's rollout once and serve what it names.

        The versions that the rollout names are kept loaded, so that going back to one is a flip; others are released.
        What fails is counted and logged, and what serves goes on.
        """
        with self._lock:
            try:
                rollout = self.registry.rollout()
                self._has_live_version = self._finds_live_version(rollout)
            except Exception as error:  # of whatever kind the registry's storage has; the next sync may succeed
                self._complain(str(error) if isinstance(error, PlauditError) else f"{type(error).__name__}: {error}")
                return
            if rollout.live is None:
                # A registry always has a live version once it had one: this one is new, or its storage is gone.
                return
            if not self._has_live_version:
                self._complain(f"version {rollout.live} is live by the rollout, and there is no such version")
                return
            self._problem = ""
            moved = rollout.generation != self.rollout.generation
            candidate = self._get(rollout.candidate)
            self._canary = None if candidate is None or rollout.shadow else (rollout, candidate)
            self._sync_experiment(rollout, candidate)
            self._metrics.candidate_version.labels(self.name).set(0 if candidate is None else rollout.candidate or 0)
            self._metrics.candidate_share.labels(self.name).set(
                0.0 if self._canary is None else rollout.candidate_share
            )
            if self._serve(rollout) or moved:
                self._release(rollout)
            self.rollout = rollout  # watchers are sent it once it serves here
            for version in (rollout.previous, rollout.gated):
                if version is not None:
                    self._get(version)
            if moved and rollout.live is not None:
                with suppress(PlauditError):  # so that this thread reads what was added to the ledger, and no receipt
                    self.registry.first_live(rollout.live)

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

    def _finds_live_version(self, rollout: Rollout) -> bool:
        """Whether something that the rollout names could serve, or serves already."""
        if self.current is not None:
            return True
        named = {rollout.live, rollout.previous, rollout.gated} - {None}
        return rollout.live is not None and not named.isdisjoint(self.registry.versions())

    def _sync_experiment(self, rollout: Rollout, candidate: ServableModel | None) -> None:
        experiment = self.experiment
        if experiment is not None and experiment.key != (rollout.experiment, rollout.candidate):
            self._ended.append(experiment)
            self.experiment = experiment = None
        if rollout.candidate is None:
            return
        failure = self._failures.get(rollout.candidate)
        problem = failure.proof if failure is not None and candidate is None else ""
        if experiment is None:
            self.experiment = ExperimentReporter(rollout, candidate, problem)
        else:
            experiment.candidate, experiment.problem = candidate, problem

    def _serve(self, rollout: Rollout) -> bool:
        """True if another version serves now."""
        before = self.current
        if before is not None and before.manifest.version == rollout.live:
            return False
        started_s, began_ns = time.perf_counter(), time.time_ns()
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
        self._note_freshness(model)
        made_by = str(model.manifest.data.get(TRACEPARENT, ""))
        of_version: Attributes = {"plaudit.model": self.name, "plaudit.version": version}
        self._tracing.record("swap", began_ns, parent=made_by, attributes=of_version)
        logger.info("live", model=self.name, version=version, digest=model.digest, took_s=round(took_s, 4))
        return True

    def _note_freshness(self, model: ServableModel) -> None:
        """Observe the age of its latest feedback; not of the first version here, nor if one before had learned more."""
        learned_s = float(model.manifest.data.get("last_feedback_time_s", 0.0))
        if self._learned_s is not None and learned_s > self._learned_s:
            self._metrics.freshness_seconds.labels(self.name).observe(max(0.0, time.time() - learned_s))
        self._learned_s = max(learned_s, self._learned_s or 0.0)

    def _get(self, version: int | None) -> ServableModel | None:
        """The version, loaded now if need be; None if it cannot be loaded, or could not a moment ago."""
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
                problem = f"version {version} does not run here: {told_reason(error)}"
                self._failures[version] = _Failure(self._clock() + pause_s, pause_s, proof, problem)
                logger.error("version_not_loaded", model=self.name, version=version, problem=str(error))
        return self._loaded.get(version)

    def _load(self, version: int) -> ServableModel:
        folder = self.registry.folder(version)
        try:
            with self._metrics.proof_seconds.labels(self.name).time():
                model = self._runtime.load(folder)
            if (model.manifest.spec.name, model.manifest.version) != (self.name, version):
                raise CorruptBundle(
                    f"its folder holds version {model.manifest.version} of {model.manifest.spec.name!r}"
                )
        except CorruptBundle as error:
            self._metrics.failed_proofs.labels(self.name).inc()
            raise UnprovenVersion(version, str(error)) from error
        try:
            self._warm(model)
        except (OSError, MemoryError):  # of this machine, now
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base
            self._metrics.failed_proofs.labels(self.name).inc()
            raise UnprovenVersion(version, f"it cannot run batches of recorded rows: {told_reason(error)}") from error
        return model

    def _warm(self, model: ServableModel) -> None:
        digest = model.manifest.trunk_digest
        if digest not in self._best_batches:
            best = measure_best_batch(lambda size: model.warm([size], again=True), self._max_batch)
            self._best_batches[digest] = best
            logger.info("best_batch", model=self.name, version=model.manifest.version, requests=best)
        with self._metrics.warming_seconds.labels(self.name).time():
            model.warm(range(1, self._best_batches[digest] + 1))

    def _release(self, rollout: Rollout) -> None:
        """Release versions that neither serve nor are named."""
        named = {rollout.live, rollout.previous, rollout.gated, rollout.candidate}
        serving = None if self.current is None else self.current.manifest.version
        self._loaded = {v: model for v, model in self._loaded.items() if v in named or v == serving}
        self._failures = {v: failure for v, failure in self._failures.items() if v in named}
        trunks = {model.manifest.trunk_digest for model in self._loaded.values()}
        self._best_batches = {digest: size for digest, size in self._best_batches.items() if digest in trunks}

    def _complain(self, problem: str) -> None:
        """Log a problem once, not with every sync."""
        if problem != self._problem:
            self._problem = problem
            logger.error("registry_unreadable", model=self.name, problem=problem)
