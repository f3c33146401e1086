"""The models that are served here, each with its queue and its workers; found, loaded and unloaded while it serves.

Knows nothing about transports.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import structlog

from plaudit.core.errors import InvalidInput, NoLiveModel, UnknownModel
from plaudit.core.events import Role
from plaudit.core.limits import MAX_NAMED_MODELS
from plaudit.core.ports.registry import IgnoredEntry, ModelCatalog
from plaudit.core.ports.runtime import ModelRuntime, ServableModel
from plaudit.core.tracing import Tracing
from plaudit.serving.engine.admission import Admission
from plaudit.serving.engine.batcher import Batcher, Run
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest, Evaluator, traced
from plaudit.serving.models.experiment_reporter import NOT_COUNTED
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.models.problems import Problems
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import Statistics

_IGNORED_INTERVAL_S: Final = 1.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One model: its versions, its workers, and how many requests may be under way."""

    live: LiveModel
    batcher: Batcher[EvaluationRequest, Evaluation]
    admission: Admission


class Binding(NamedTuple):
    """The version that one request is answered by, whatever is swapped meanwhile.

    Attributes:
        counting: around the request; counts how it was answered if an experiment is under way.
    """

    served: ServedModel
    model: ServableModel
    role: Role
    counting: AbstractContextManager[None]


class ServedModels:
    """Args:
    max_batch: the most requests that share one evaluation, of whatever model.
    workers: evaluations of one model that may run at once.
    queue_limit: requests of one model that may be decoded, wait or be computed.
    seed: of the sampling of actions; None is fresh entropy.
    tracing: of batches and swaps.
    clock: monotonic, seconds.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        runtime: ModelRuntime,
        metrics: ServingMetrics,
        *,
        max_batch: int,
        workers: int,
        queue_limit: int,
        seed: int | None,
        tracing: Tracing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._runtime = runtime
        self._metrics = metrics
        self._max_batch = max_batch
        self._workers = workers
        self._queue_limit = queue_limit
        self._seeds = np.random.SeedSequence(seed)
        self._tracing = tracing
        self._served: dict[str, ServedModel] = {}  # replaced, never changed: readers take no lock
        self._unloaded: set[str] = set()
        self.statistics = Statistics()
        self._lock = threading.Lock()
        self._clock = clock
        self._problems = Problems(metrics)
        self._ignored_due_s = -math.inf
        self._told: frozenset[IgnoredEntry] = frozenset()

    def names(self) -> Sequence[str]:
        """Names of the models that are served, sorted."""
        return sorted(self._served)

    def all(self) -> Sequence[ServedModel]:
        return list(self._served.values())

    def ready(self) -> bool:
        """True if a model serves, and with it every model that has a live version."""
        expected = [model.live for model in self._served.values() if model.live.has_live_version]
        return bool(expected) and all(live.current is not None for live in expected)

    def known(self) -> Sequence[str]:
        """Names of all models, served or not, sorted. Raises RegistryUnavailable."""
        return sorted({*self._catalog.models(), *self._served})

    def get(self, name: str) -> ServedModel | None:
        return self._served.get(name)

    def pick(self, name: str) -> ServedModel:
        """The model of that name, or the only one if the name is empty.

        Raises:
            UnknownModel: there is none.
            InvalidInput: several are served and none is named.
            NoLiveModel: none is served yet and none is named.
        """
        served = self._served
        if name in served:
            return served[name]
        if name:
            raise UnknownModel(name[:80], sorted(served))
        if not served:
            raise NoLiveModel("")
        # One that has no live version is none that a client could mean.
        meant = [model for model in served.values() if model.live.has_live_version] or list(served.values())
        if len(meant) != 1:
            names = sorted(model.live.name for model in meant)
            raise InvalidInput("model", f"is empty; name one of {names[:MAX_NAMED_MODELS]}")
        return meant[0]

    def bind(self, name: str, user_id: str, version: int | None = None) -> Binding:
        """Bind a request to a version.

        Args:
            name: as for :meth:`pick`.
            version: a version that is loaded; None: the one that serves this user.

        Raises:
            UnknownModel, InvalidInput, NoLiveModel: as :meth:`pick`.
            NotFound: the version is not loaded.
        """
        served = self.pick(name)
        model, role = served.live.bound(version, user_id)
        counting = NOT_COUNTED if version is not None else served.live.count_request(user_id, role)
        return Binding(served, model, role, counting)

    def poll(self) -> None:
        """Load models that are new in the catalog, forget those that are gone without ever having served, and sync each
        with its registry.

        What is wrong with one of them, or with the catalog, is told once and stops nothing else.
        """
        with self._problems.of("the catalog"):
            models = self._catalog.models()
            for name in models:
                if name not in self._served and name not in self._unloaded:
                    with self._problems.of(name):
                        self._serve(name)
            for served in self.all():
                if served.live.name not in models and served.live.current is None:
                    self._drop(served.live.name)
        for served in self.all():
            with self._problems.of(served.live.name):
                served.live.sync()
                self._metrics.versions.keep(served.live.name, served.live.loaded_versions())
        self._tell_ignored()

    def load(self, name: str) -> ServedModel:
        """Serve the model; when this returns its live version serves, if it can.

        Raises:
            UnknownModel: the catalog does not have it.
        """
        if name not in self._served:
            if name not in self._catalog.models():
                raise UnknownModel(name[:80], list(self.known()))
            self._serve(name)
        served = self.pick(name)
        served.live.sync()
        return served

    def unload(self, name: str) -> None:
        """Take no more requests for the model, answer those under way, release its versions.

        Raises:
            UnknownModel: it is not served.
        """
        self._unloaded.add(self.pick(name).live.name)
        self._drop(name)
        logger.info("unloaded", model=name)

    def close(self) -> None:
        """Compute what waits and end the workers."""
        for served in self.all():
            served.batcher.close()

    def _drop(self, name: str) -> None:
        with self._lock:
            dropped = self._served.get(name)
            self._served = {other: model for other, model in self._served.items() if other != name}
        if dropped is not None:
            dropped.batcher.close()
            self._metrics.forget(name)

    def _tell_ignored(self) -> None:
        """Tell what in the registry is no model and no version: each once in the log, their number in the metrics."""
        now_s = self._clock()
        if now_s < self._ignored_due_s:
            return
        self._ignored_due_s = now_s + _IGNORED_INTERVAL_S
        with self._problems.of("the catalog"):
            ignored = self._catalog.ignored()
            self._metrics.ignored_entries.set(len(ignored))
            for entry in ignored:
                if entry not in self._told:
                    logger.warning("ignored_in_registry", entry=entry.name, problem=entry.problem)
            self._told = frozenset(ignored)

    def _serve(self, name: str) -> None:
        with self._lock:
            if name in self._served:
                return
            self._unloaded.discard(name)
            live = LiveModel(
                self._catalog.registry(name),
                self._runtime,
                self._metrics,
                max_batch=self._max_batch,
                tracing=self._tracing,
            )
            runs: list[Run[EvaluationRequest, Evaluation]] = [
                Evaluator(self._metrics, self.statistics, self._max_batch, np.random.default_rng(seed)).run
                for seed in self._seeds.spawn(self._workers)
            ]
            if self._tracing.enabled:
                runs = [traced(run, self._tracing) for run in runs]
            batcher = Batcher(runs, name=f"model-{name}", max_batch=lambda: live.best_batch)
            admission = Admission(f"the queue of model {name!r}", self._queue_limit)
            self._metrics.queue_requests.labels(name).set_function(batcher.waiting)
            batcher.start()
            self._served = {**self._served, name: ServedModel(live, batcher, admission)}
