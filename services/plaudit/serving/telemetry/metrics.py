"""Every metric of the inference service, declared once. Labels are closed sets; versions are labels while they last."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from plaudit.serving.telemetry.buffered_histogram import BufferedHistogram
from plaudit.serving.telemetry.version_metrics import FAST_S, VersionMetrics

_SLOW_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class ServingMetrics:
    """Args:
    registry: what a scrape shows; every server has its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"plaudit_serving_{name}_total", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"plaudit_serving_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"plaudit_serving_{name}_seconds", text, labels, registry=registry, buckets=bounds)

        self.registry = registry
        self.requests = counter("requests", "Calls answered.", "method", "code")
        self.request_seconds = BufferedHistogram(
            "plaudit_serving_request_seconds",
            "From a call's arrival to its answer; of a stream, to its end.",
            ["method"],
            FAST_S,
            registry,
        )
        self.refused = counter(
            "refused_calls",
            "Calls that found no place or no memory, and those that were ended because their peer was silent.",
            "reason",
        )
        self.queue_requests = gauge("queue_requests", "Requests that wait for the model.", "model")
        self.versions = VersionMetrics(registry)
        self.dynamic_action_texts = counter(
            "dynamic_action_texts",
            "Texts of dynamic actions, by whether their vector was cached or had to be computed.",
            "vectors",
        )
        self.decisions_logged = counter("decisions_logged", "Decisions made durable in the event log.")
        self.decisions_dropped = counter(
            "decisions_dropped",
            "Decisions answered but never logged: the queue was full, the log away until shutdown, or it refused them.",
        )
        self.decisions_without_content = counter(
            "decisions_without_content", "Decisions logged without their content, which the log is too small for."
        )
        self.decision_append_seconds = seconds(
            "decision_append", "Making a group of decisions durable in the event log.", FAST_S
        )
        self.decision_queue = gauge("decision_queue_events", "Events that wait to be logged.")
        self.spool_events = gauge(
            "spool_events", "Decisions and feedback that wait on this machine because the event log is, or was, away."
        )
        self.spool_age = gauge("spool_age_seconds", "How long the oldest of them has waited; 0 if none.")
        self.feedback_ack_seconds = seconds(
            "feedback_ack", "From the arrival of feedback until it was durable.", FAST_S
        )
        self.swaps = counter("swaps", "Times another version went live here.", "model")
        self.failed_proofs = counter(
            "failed_proofs", "Times a version failed its proof and therefore does not serve.", "model"
        )
        self.proof_seconds = seconds(
            "proof", "Loading a version and proving it, whether it passed or not.", _SLOW_S, "model"
        )
        self.warming_seconds = seconds("warming", "Warming a version up for every size of batch.", _SLOW_S, "model")
        self.swap_seconds = seconds(
            "swap",
            "From seeing that another version should be live to serving it: load, proof, warming, flip.",
            _SLOW_S,
            "model",
        )
        self.freshness_seconds = seconds(
            "freshness", "From the latest feedback that a version learned until it served here.", _SLOW_S, "model"
        )
        self.live_version = gauge("live_version", "The version that serves; 0 is none.", "model")
        self.live_since = gauge(
            "live_since_timestamp_seconds",
            "When the version that serves went live here, UTC seconds since the epoch.",
            "model",
        )
        self.candidate_version = gauge(
            "candidate_version", "The version in an experiment beside it; 0 is none.", "model"
        )
        self.candidate_share = gauge(
            "candidate_share_ratio", "Share of the users that the version in an experiment serves.", "model"
        )
        self.ignored_entries = gauge(
            "registry_ignored_entries", "Entries of the registry that are no model and no version."
        )
        self.follow_failures = counter(
            "follow_failures", "Times that a model or the catalog could not be followed; the log says why, once."
        )
        self.gpu_memory_used = gauge("gpu_memory_used_bytes", "Memory of a GPU in use, by any process.", "gpu")
        self.gpu_memory = gauge("gpu_memory_bytes", "Memory of a GPU.", "gpu")
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
