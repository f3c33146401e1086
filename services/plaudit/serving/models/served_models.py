"""The models that are served here, each with its queue and its workers; found, loaded and unloaded while it serves.

Knows nothing about transports.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import structlog

from plaudit.core.errors import InvalidInput, NoLiveModel, UnknownModel
from plaudit.core.events import Role
from plaudit.core.ports.registry import ModelCatalog
from plaudit.core.ports.runtime import ModelRuntime, ServableModel
from plaudit.core.tracing import Tracing
from plaudit.serving.engine.admission import Admission
from plaudit.serving.engine.batcher import Batcher, Run
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest, Evaluator, traced
from plaudit.serving.models.experiment_reporter import NOT_COUNTED
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import Statistics

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

    def names(self) -> Sequence[str]:
        """Names of the models that are served, sorted."""
        return sorted(self._served)

    def all(self) -> Sequence[ServedModel]:
        return list(self._served.values())

    def ready(self) -> bool:
        """True if there is a model and every model has a version that serves."""
        served = self._served.values()
        return bool(served) and all(model.live.current is not None for model in served)

    def known(self) -> Sequence[str]:
        """Names of all models, served or not, sorted."""
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
        if len(served) != 1:
            raise InvalidInput("model", f"is empty; name one of {sorted(served)}")
        return next(iter(served.values()))

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
        """Load models that are new in the catalog, and sync each with its registry."""
        for name in self._catalog.models():
            if name not in self._served and name not in self._unloaded:
                self._serve(name)
        for served in self.all():
            served.live.sync()
            self._metrics.versions.keep(served.live.name, served.live.loaded_versions())

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
        with self._lock:
            served = self.pick(name)
            self._unloaded.add(name)
            self._served = {other: model for other, model in self._served.items() if other != name}
        served.batcher.close()
        self._metrics.forget(name)
        logger.info("unloaded", model=name)

    def close(self) -> None:
        """Compute what waits and end the workers."""
        for served in self.all():
            served.batcher.close()

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
