"""Every metric of the inference service, declared once. Labels are closed sets; versions are values, never labels."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FAST_S: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 10.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class ServingMetrics:
    """Args:
    registry: what a scrape shows; every server has its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "plaudit_serving_requests_total", "Calls answered.", ["method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "plaudit_serving_request_seconds",
            "From a call's arrival to its answer; of a stream, to its end.",
            ["method"],
            buckets=_FAST_S,
            registry=registry,
        )
        self.queue_requests = Gauge(
            "plaudit_serving_queue_requests", "Requests that wait for the model.", ["model"], registry=registry
        )
        self.batch_requests = Histogram(
            "plaudit_serving_batch_requests", "Requests that shared one batch.", buckets=_BATCH, registry=registry
        )
        self.decode_seconds = Histogram(
            "plaudit_serving_decode_seconds",
            "Decoding of one request's content.",
            buckets=_FAST_S,
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "plaudit_serving_inference_seconds",
            "Trunk, head and policy of one batch.",
            buckets=_FAST_S,
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
        self.feedback = Counter(
            "plaudit_serving_feedback_total",
            "Feedback by kind of signal and what became of it: accepted, duplicate or refused.",
            ["kind", "status"],
            registry=registry,
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
        self.swap_seconds = Histogram(
            "plaudit_serving_swap_seconds",
            "From seeing that another version should be live to serving it: load, proof, warming, flip.",
            ["model"],
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
