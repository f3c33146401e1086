"""OTLP collector that keeps the spans it receives."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc


@dataclass(frozen=True)
class Received:
    """One span. Ids are hexadecimal; ``links`` are ids of spans."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    links: frozenset[str]
    attributes: Mapping[str, Any]
    raw: bytes


class Receiver:
    """Spans received so far; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Received] = []
        self.endpoint = ""

    def take(self, request: pb.ExportTraceServiceRequest) -> None:
        found = []
        for resource in request.resource_spans:
            service = _attributes(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found.append(
                        Received(
                            service=str(service),
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            links=frozenset(link.span_id.hex() for link in span.links),
                            attributes=_attributes(span.attributes),
                            raw=span.SerializeToString(),
                        )
                    )
        with self._lock:
            self._spans += found

    def spans(self, name: str = "", **attributes: Any) -> list[Received]:
        """Spans of this name with these attributes of ``plaudit.``."""
        wanted = {f"plaudit.{key}": value for key, value in attributes.items()}
        with self._lock:
            return [s for s in self._spans if name in ("", s.name) and wanted.items() <= s.attributes.items()]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def over_grpc() -> Iterator[Receiver]:
    receiver = Receiver()

    class Service(pb_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            receiver.take(request)
            return pb.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_TraceServiceServicer_to_server(Service(), server)
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()


@contextmanager
def over_http() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receiver.take(pb.ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
