"""Every metric of the inference service, declared once. Labels are closed sets; versions are labels while they last."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from plaudit.serving.telemetry.buffered_histogram import BufferedHistogram
from plaudit.serving.telemetry.version_metrics import VersionMetrics

_FAST_S: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 10.0)
_SLOW_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class ServingMetrics:
    """Args:
    registry: what a scrape shows; every server has its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "plaudit_serving_requests_total", "Calls answered.", ["method", "code"], registry=registry
        )
        self.request_seconds = BufferedHistogram(
            "plaudit_serving_request_seconds",
            "From a call's arrival to its answer; of a stream, to its end.",
            ["method"],
            _FAST_S,
            registry,
        )
        self.queue_requests = Gauge(
            "plaudit_serving_queue_requests", "Requests that wait for the model.", ["model"], registry=registry
        )
        self.versions = VersionMetrics(registry)
        self.dynamic_action_texts = Counter(
            "plaudit_serving_dynamic_action_texts_total",
            "Texts of dynamic actions, by whether their vector was cached or had to be computed.",
            ["vectors"],
            registry=registry,
        )
        self.decisions_logged = Counter(
            "plaudit_serving_decisions_logged_total", "Decisions made durable in the event log.", registry=registry
        )
        self.decisions_dropped = Counter(
            "plaudit_serving_decisions_dropped_total",
            "Decisions answered but never logged: the queue was full, or the log away until shutdown.",
            registry=registry,
        )
        self.decision_append_seconds = Histogram(
            "plaudit_serving_decision_append_seconds",
            "Making a group of decisions durable in the event log.",
            buckets=_FAST_S,
            registry=registry,
        )
        self.decision_queue = Gauge(
            "plaudit_serving_decision_queue_events", "Events that wait to be logged.", registry=registry
        )
        self.spool_events = Gauge(
            "plaudit_serving_spool_events",
            "Decisions and feedback that wait on this machine because the event log is, or was, away.",
            registry=registry,
        )
        self.spool_age = Gauge(
            "plaudit_serving_spool_age_seconds", "How long the oldest of them has waited; 0 if none.", registry=registry
        )
        self.feedback_ack_seconds = Histogram(
            "plaudit_serving_feedback_ack_seconds",
            "From the arrival of feedback until it was durable.",
            buckets=_FAST_S,
            registry=registry,
        )
        self.swaps = Counter(
            "plaudit_serving_swaps_total", "Times another version went live here.", ["model"], registry=registry
        )
        self.failed_proofs = Counter(
            "plaudit_serving_failed_proofs_total",
            "Times a version failed its proof and therefore does not serve.",
            ["model"],
            registry=registry,
        )
        self.proof_seconds = Histogram(
            "plaudit_serving_proof_seconds",
            "Loading a version and proving it, whether it passed or not.",
            ["model"],
            buckets=_SLOW_S,
            registry=registry,
        )
        self.warming_seconds = Histogram(
            "plaudit_serving_warming_seconds",
            "Warming a version up for every size of batch.",
            ["model"],
            buckets=_SLOW_S,
            registry=registry,
        )
        self.swap_seconds = Histogram(
            "plaudit_serving_swap_seconds",
            "From seeing that another version should be live to serving it: load, proof, warming, flip.",
            ["model"],
            buckets=_SLOW_S,
            registry=registry,
        )
        self.freshness_seconds = Histogram(
            "plaudit_serving_freshness_seconds",
            "From the latest feedback that a version learned until it served here.",
            ["model"],
            buckets=_SLOW_S,
            registry=registry,
        )
        self.live_version = Gauge(
            "plaudit_serving_live_version", "The version that serves; 0 is none.", ["model"], registry=registry
        )
        self.live_since = Gauge(
            "plaudit_serving_live_since_timestamp_seconds",
            "When the version that serves went live here, UTC seconds since the epoch.",
            ["model"],
            registry=registry,
        )
        self.candidate_version = Gauge(
            "plaudit_serving_candidate_version",
            "The version in an experiment beside it; 0 is none.",
            ["model"],
            registry=registry,
        )
        self.candidate_share = Gauge(
            "plaudit_serving_candidate_share_ratio",
            "Share of the users that the version in an experiment serves.",
            ["model"],
            registry=registry,
        )
        self.gpu_memory_used = Gauge(
            "plaudit_serving_gpu_memory_used_bytes",
            "Memory of a GPU in use, by any process.",
            ["gpu"],
            registry=registry,
        )
        self.gpu_memory = Gauge("plaudit_serving_gpu_memory_bytes", "Memory of a GPU.", ["gpu"], registry=registry)
        self._of_models = (
            self.queue_requests,
            self.live_version,
            self.live_since,
            self.candidate_version,
            self.candidate_share,
        )

    def forget(self, model: str) -> None:
        """Remove the gauges of a model that is no longer served here; its counters stay."""
        self.versions.keep(model, ())
        for metric in self._of_models:
            metric.remove(model)
