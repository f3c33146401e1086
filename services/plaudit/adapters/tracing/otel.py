"""Tracing with OpenTelemetry: spans go to any collector that speaks OTLP, over gRPC or HTTP.

The status of a failed span names the class of the exception, not its message: messages quote what users sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, TypeVar, Unpack

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import plaudit
from plaudit.core.tracing import MOST_LINKS, TRACEPARENT, Attributes, Kind, SpanOptions

Answer = TypeVar("Answer")

PROTOCOLS: Final = ("grpc", "http/protobuf")

_W3C: Final = TraceContextTextMapPropagator()
_HTTP_PATH: Final = "/v1/traces"


class OtelTracing:
    """Tracing through an OpenTelemetry provider, which :meth:`close` shuts down."""

    enabled: Final = True

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("plaudit", plaudit.__version__)

    @property
    def provider(self) -> TracerProvider:
        """For a client of the gRPC services, whose calls are then below the present span."""
        return self._provider

    def span(self, name: str, **options: Unpack[SpanOptions]) -> AbstractContextManager[object]:
        return self._around(self._begin(name, **options))

    def stream(
        self, name: str, answers: Callable[[], Iterator[Answer]], **options: Unpack[SpanOptions]
    ) -> Iterator[Answer]:
        """The span is the present one only while an answer is made: it may be consumed on another thread."""
        span = self._begin(name, **options)
        try:
            with self._around(span, ends=False):
                made = answers()
            while True:
                with self._around(span, ends=False):
                    try:
                        answer = next(made)
                    except StopIteration:
                        return
                yield answer
        finally:
            span.end()

    def record(self, name: str, began_ns: int, **options: Unpack[SpanOptions]) -> None:
        self._begin(name, began_ns, **options).end()

    def present(self) -> str:
        if not trace.get_current_span().get_span_context().trace_flags.sampled:
            return ""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get(TRACEPARENT, "")

    def note(self, attributes: Attributes) -> None:
        trace.get_current_span().set_attributes(dict(attributes))

    def close(self) -> None:
        self._provider.shutdown()

    def _begin(
        self,
        name: str,
        began_ns: int | None = None,
        *,
        kind: Kind = "internal",
        parent: str = "",
        links: Iterable[str] = (),
        attributes: Attributes | None = None,
    ) -> trace.Span:
        return self._tracer.start_span(
            name,
            context=_W3C.extract({TRACEPARENT: parent}) if parent else None,
            kind=trace.SpanKind[kind.upper()],
            links=list(_links(links)),
            attributes=dict(attributes or {}),
            start_time=began_ns,
            record_exception=False,
            set_status_on_exception=False,
        )

    @contextmanager
    def _around(self, span: trace.Span, *, ends: bool = True) -> Iterator[object]:
        with trace.use_span(span, end_on_exit=ends, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except Exception as error:
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise


def _links(traceparents: Iterable[str]) -> Iterator[trace.Link]:
    seen = dict.fromkeys(each for each in traceparents if each)
    for traceparent in list(seen)[:MOST_LINKS]:
        context = trace.get_current_span(_W3C.extract({TRACEPARENT: traceparent})).get_span_context()
        if context.is_valid:
            yield trace.Link(context)


def otlp_tracing(service: str, *, endpoint: str | None, protocol: str, sample_ratio: float | None) -> OtelTracing:
    """Tracing whose spans go to a collector.

    Spans that cannot be exported are dropped and logged by OpenTelemetry; no caller waits for them.

    Args:
        service: the spans' service.name, unless OTEL_SERVICE_NAME is set.
        endpoint: ``http://host:port`` or ``https://host:port``; None: as OTEL_EXPORTER_OTLP_ENDPOINT says.
        sample_ratio: share of the traces that begin here and are kept; None: as OTEL_TRACES_SAMPLER says, or all.

    Raises:
        ValueError: the protocol is none of :data:`PROTOCOLS`.
    """
    resource = Resource.create({"service.version": plaudit.__version__})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": service}))
    sampler = None if sample_ratio is None else ParentBased(TraceIdRatioBased(sample_ratio))
    provider = TracerProvider(sampler=sampler, resource=resource)
    provider.add_span_processor(BatchSpanProcessor(_exporter(endpoint, protocol)))
    return OtelTracing(provider)


def _exporter(endpoint: str | None, protocol: str) -> SpanExporter:
    if protocol not in PROTOCOLS:
        raise ValueError(f"{protocol!r} is not one of {', '.join(PROTOCOLS)}")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    if endpoint is not None and not endpoint.endswith(_HTTP_PATH):
        endpoint = endpoint.rstrip("/") + _HTTP_PATH
    return OverHttp(endpoint=endpoint)
