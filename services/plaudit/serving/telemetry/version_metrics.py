"""Metrics of each version, whose series come and go with the version.

A version that was unloaded is shown a little longer, so that Prometheus scrapes its last values; then its series are
removed. So a scrape does not grow with the number of versions there have been. Knows nothing about what is measured
when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter

from plaudit.core.ports.runtime import ServableModel
from plaudit.serving.telemetry.buffered_histogram import BufferedHistogram, BufferedSeries

SHOWN_AFTER_S: Final = 60.0
"""How long a version that was unloaded is still shown: several scrapes."""
SHOWN_AT_MOST: Final = 20
"""Unloaded versions of one model that are still shown at most; of more, the oldest are removed sooner."""
EARLIER: Final = "earlier"
"""Label of all versions that are not shown, in the metrics of feedback."""

FAST_S: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 10.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_LABELS: Final = ("model", "version")


@dataclass(frozen=True, slots=True, eq=False)
class VersionSeries:
    """Metrics of one version: no label is looked up where they are used."""

    explored: Counter
    failures: Counter
    prediction_seconds: BufferedSeries
    decode_seconds: BufferedSeries
    queue_seconds: BufferedSeries
    batch_requests: BufferedSeries
    inference_seconds: BufferedSeries

    def answered(self, took_s: float, explored: bool) -> None:
        """Count one prediction."""
        if explored:
            self.explored.inc()
        self.prediction_seconds.observe(took_s)


class VersionMetrics:
    """Safe to use from several threads.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"plaudit_serving_{name}_total", text, (*_LABELS, *more), registry=registry)

        def histogram(
            name: str, text: str, bounds: tuple[float, ...], counted: tuple[str, str] | None = None
        ) -> BufferedHistogram:
            return BufferedHistogram(f"plaudit_serving_{name}", text, _LABELS, bounds, registry, counter=counted)

        self._clock = clock
        # In the order of the fields of VersionSeries.
        self._by_version: tuple[Counter | BufferedHistogram, ...] = (
            counter("explored", "Of these, answers drawn although another one was more probable."),
            counter("prediction_failures", "Requests that a version failed on."),
            histogram(
                "prediction_seconds",
                "From a request for a prediction until it was decided.",
                FAST_S,
                ("plaudit_serving_predictions", "Answers decided, each row of a request counted."),
            ),
            histogram("decode_seconds", "Decoding of one request's content.", FAST_S),
            histogram("queue_seconds", "From a decoded request until its batch began.", FAST_S),
            histogram("batch_requests", "Requests of a version that shared one batch.", _BATCH),
            histogram("inference_seconds", "Trunk, head and policy of one batch.", FAST_S),
        )
        self._feedback_total = counter(
            "feedback",
            "Feedback by kind of signal and what became of it: accepted, duplicate or refused.",
            "kind",
            "status",
        )
        self._lock = threading.Lock()
        self._counted: WeakKeyDictionary[ServableModel, VersionSeries] = WeakKeyDictionary()
        self._shown: dict[tuple[str, str], float | None] = {}
        """Time at which each was unloaded; None: it is loaded."""
        self._feedback_series: dict[tuple[str, str, str, str], Counter] = {}

    def of(self, model: ServableModel) -> VersionSeries:
        """Metrics of this version."""
        return self._counted.get(model) or self._make(model)

    def feedback(self, model: str, version: int | None, kind: str, status: str) -> Counter:
        """Counter of feedback.

        Args:
            model: "" if the prediction id is not valid.
            version: the one that the feedback is about; None if the prediction id is not valid.
        """
        label = "" if version is None else str(version)
        if version is not None and (model, label) not in self._shown:
            label = EARLIER
        key = (model, label, kind, status)
        child = self._feedback_series.get(key)
        if child is None:
            with self._lock:
                child = self._feedback_series[key] = self._feedback_total.labels(*key)
        return child

    def keep(self, model: str, loaded: Collection[int]) -> None:
        """Show the versions that are loaded, and for a while those that no longer are."""
        names = {str(version) for version in loaded}
        now_s = self._clock()
        with self._lock:
            for version in names:
                self._shown[model, version] = None
            gone: list[tuple[float, tuple[str, str]]] = []
            for key, since_s in self._shown.items():
                if key[0] == model and key[1] not in names:
                    gone.append((now_s if since_s is None else since_s, key))
            gone.sort(key=lambda each: (each[0], int(each[1][1])))
            for place, (since_s, key) in enumerate(reversed(gone)):
                if place < SHOWN_AT_MOST and now_s - since_s < SHOWN_AFTER_S:
                    self._shown[key] = since_s
                else:
                    self._drop(*key)

    def _make(self, model: ServableModel) -> VersionSeries:
        manifest = model.manifest
        key = (manifest.spec.name, str(manifest.version))
        with self._lock:
            counted = self._counted.get(model)
            if counted is None:
                self._shown.setdefault(key, None)
                counted = self._counted[model] = VersionSeries(*(metric.labels(*key) for metric in self._by_version))  # type: ignore[arg-type]
        return counted

    def _drop(self, model: str, version: str) -> None:
        """Remove the series; a :class:`VersionSeries` that is still in use counts on, unseen."""
        del self._shown[model, version]
        for metric in self._by_version:
            metric.remove(model, version)
        for key in [key for key in self._feedback_series if key[:2] == (model, version)]:
            del self._feedback_series[key]
            self._feedback_total.remove(*key)
