"""The models that are served here, each with its queue and its workers; found, taken up and let go while it serves.

Knows nothing about transports.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import structlog

from plaudit.core.errors import InvalidInput, NoLiveModel, UnknownModel
from plaudit.core.ports.registry import ModelCatalog
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.tracing import Tracing
from plaudit.serving.engine.admission import Admission
from plaudit.serving.engine.batcher import Batcher, Run
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest, Evaluator
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import Statistics

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One model: what serves, who evaluates, and how many requests may be in the house."""

    live: LiveModel
    batcher: Batcher[EvaluationRequest, Evaluation]
    admission: Admission


class ServedModels:
    """Args:
    max_batch: the most requests that share one evaluation, of whatever model.
    workers: evaluations of one model that may run at once.
    queue_limit: requests of one model that may be decoded, wait or be computed.
    seed: of the sampling of actions; None is fresh entropy.
    tracing: of batches and swaps; None: they are not traced.
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
        seed: int | None = None,
        tracing: Tracing | None = None,
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
        self._let_go: set[str] = set()
        self.statistics = Statistics()
        self._lock = threading.Lock()

    def names(self) -> Sequence[str]:
        return sorted(self._served)

    def all(self) -> Sequence[ServedModel]:
        return list(self._served.values())

    def ready(self) -> bool:
        """Whether every model has a version that serves, and there is one."""
        served = self._served.values()
        return bool(served) and all(model.live.current is not None for model in served)

    def known(self) -> Sequence[str]:
        """Every model there is, served or not."""
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

    def look(self) -> None:
        """One look at the catalog for new models, and at the registry of each for what its rollout asks for."""
        for name in self._catalog.models():
            if name not in self._served and name not in self._let_go:
                self._take_up(name)
        for served in self.all():
            served.live.step()
            self._metrics.versions.keep(served.live.name, served.live.loaded_versions())

    def load(self, name: str) -> ServedModel:
        """Serve the model; when this returns its live version serves, if it can.

        Raises:
            UnknownModel: the catalog does not have it.
        """
        if name not in self._served:
            if name not in self._catalog.models():
                raise UnknownModel(name[:80], list(self.known()))
            self._take_up(name)
        served = self.pick(name)
        served.live.step()
        return served

    def unload(self, name: str) -> None:
        """Take no more requests for the model, answer those under way, let its versions go.

        Raises:
            UnknownModel: it is not served.
        """
        with self._lock:
            served = self.pick(name)
            self._let_go.add(name)
            self._served = {other: kept for other, kept in self._served.items() if other != name}
        served.batcher.close()
        self._metrics.forget(name)
        logger.info("unloaded", model=name)

    def close(self) -> None:
        """Compute what waits and end the workers."""
        for served in self.all():
            served.batcher.close()

    def _take_up(self, name: str) -> None:
        with self._lock:
            if name in self._served:
                return
            self._let_go.discard(name)
            live = LiveModel(
                self._catalog.registry(name),
                self._runtime,
                self._metrics,
                max_batch=self._max_batch,
                tracing=self._tracing,
            )
            evaluators = [
                Evaluator(self._metrics, self.statistics, self._max_batch, np.random.default_rng(seed))
                for seed in self._seeds.spawn(self._workers)
            ]
            batcher = self._batcher([evaluator.run for evaluator in evaluators], live)
            admission = Admission(f"the queue of model {name!r}", self._queue_limit)
            self._metrics.queue_requests.labels(name).set_function(batcher.waiting)
            batcher.start()
            self._served = {**self._served, name: ServedModel(live, batcher, admission)}

    def _batcher(
        self, runs: Sequence[Run[EvaluationRequest, Evaluation]], live: LiveModel
    ) -> Batcher[EvaluationRequest, Evaluation]:
        name = f"model-{live.name}"
        if self._tracing is None:
            return Batcher(runs, name=name, max_batch=lambda: live.batch_cap)
        from plaudit.serving.traced import TracedBatcher

        traced = TracedBatcher(runs, name=name, max_batch=lambda: live.batch_cap, tracing=self._tracing)
        return cast("Batcher[EvaluationRequest, Evaluation]", traced)
