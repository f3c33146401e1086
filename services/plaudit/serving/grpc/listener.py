"""A listener: one gRPC port with its places, its access control and, where it has a certificate, TLS.

Knows no service; whoever makes it registers them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from plaudit.core.errors import ConfigError, PlauditError
from plaudit.core.host.addresses import join
from plaudit.core.limits import (
    CONNECTION_AGE_GRACE_S,
    HANDSHAKE_TIMEOUT_S,
    KEEPALIVE_S,
    KEEPALIVE_TIMEOUT_S,
    MAX_CALLS_PER_CONNECTION,
    MAX_CONNECTION_AGE_S,
    MAX_CONNECTION_IDLE_S,
    MIN_CLIENT_KEEPALIVE_S,
)
from plaudit.core.ports.access import CertificateChain, CertificateSource
from plaudit.core.settings import ServingSettings
from plaudit.serving.engine.admission import ByteBudget
from plaudit.serving.engine.shutdown import ShutdownSignal
from plaudit.serving.grpc.auth import AccessControl
from plaudit.serving.grpc.interceptors import CallInterceptor, abort, metric_label, status_of
from plaudit.serving.grpc.open_calls import OpenCalls
from plaudit.serving.grpc.places import Places
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.request_log import log_refusal

Register = Callable[[grpc.Server, OpenCalls], None]
"""Adds the services to a server."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a listener listens, and whom it lets in.

    Attributes:
        setting: name of the setting, for errors.
        port: 0: a free one.
        certificates: of TLS; None: plain text.
    """

    setting: str
    host: str
    port: int
    access: AccessControl
    max_calls: int
    max_streams: int
    certificates: CertificateSource | None = None


class Listener:
    """``start()`` takes calls, ``stop()`` finishes them, ``close()`` ends the threads.

    Args:
        settings: sizes and times that all listeners share.
        between: interceptors between the places and the counting of calls.
        share_port: other processes listen on the port too.

    Raises:
        ConfigError: the port is taken, or the host is not an address of this machine.
    """

    def __init__(
        self,
        door: Door,
        register: Register,
        settings: ServingSettings,
        shutdown: ShutdownSignal,
        metrics: ServingMetrics,
        between: Sequence[grpc.ServerInterceptor],
        *,
        share_port: bool,
    ) -> None:
        self._door = door
        self._settings = settings
        self._metrics = metrics
        self._open_calls = OpenCalls(
            shutdown,
            self._count_refused,
            max_streams=door.max_streams,
            idle_s=settings.stream_idle_s,
            budget=self._byte_budget("the memory for streams"),
            max_bytes=2 * settings.max_message_bytes,
        )
        self._places = Places(
            self._open_calls,
            self._count_refused_call,
            self._let_in,
            max_calls=door.max_calls,
            max_streams=door.max_streams,
        )
        calls = CallInterceptor(
            metrics,
            self._open_calls,
            self._byte_budget("the memory for calls"),
            door.access.count_message,
            log_refusals=settings.log_requests,
        )
        self._server = grpc.server(
            self._places.default_threads,
            interceptors=[self._places, *between, calls],
            options=_options(settings.max_message_bytes, share_port),
        )
        register(self._server, self._open_calls)
        self.port = self._open_port()

    def start(self) -> None:
        self._open_calls.start()
        self._server.start()

    def stop(self, grace_s: float) -> Any:
        """Take no new calls and cancel what has not ended after ``grace_s``; an event that is set once all have."""
        return self._server.stop(grace_s)

    def close(self) -> None:
        self._open_calls.close()
        self._places.close()

    def _open_port(self) -> int:
        door = self._door
        address = join(door.host, door.port)
        try:
            opened: int = (
                self._server.add_insecure_port(address)
                if door.certificates is None
                else self._server.add_secure_port(address, _credentials(door.certificates))
            )
        except RuntimeError as error:
            self.discard()
            raise ConfigError(
                f"{door.setting}: {door.port} cannot be opened on {door.host}; it is taken, or the address is another "
                "machine's; set another one (0 picks one)"
            ) from error
        return opened

    def discard(self) -> None:
        """Give up a listener that was not started."""
        self._server.stop(None)
        self._places.close()

    def _let_in(self, method: str, context: Any) -> None:
        try:
            self._door.access.check(method, context)
        except PlauditError as error:
            code, text = status_of(error, method)
            self._count_refused("access")
            label = metric_label(method)
            if label is not None:
                self._metrics.requests.labels(label, code.name).inc()
            if self._settings.log_requests:
                log_refusal(method, code.name, error, None)
            abort(error, code, text, context)

    def _byte_budget(self, what: str) -> ByteBudget:
        return ByteBudget(what, self._settings.max_bytes_in_flight, lambda: self._count_refused("memory"))

    def _count_refused(self, reason: str) -> None:
        self._metrics.refused.labels(reason).inc()

    def _count_refused_call(self, method: str, reason: str) -> None:
        self._count_refused(reason)
        label = metric_label(method)
        if label is not None:
            self._metrics.requests.labels(label, grpc.StatusCode.RESOURCE_EXHAUSTED.name).inc()


def _options(max_message_bytes: int, share_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Unasked, a second server on the same port would start and take half of the calls.
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", round(1e3 * HANDSHAKE_TIMEOUT_S)),
        # Connections whose peer is gone or stopped are closed with their calls.
        ("grpc.keepalive_time_ms", round(1e3 * KEEPALIVE_S)),
        ("grpc.keepalive_timeout_ms", round(1e3 * KEEPALIVE_TIMEOUT_S)),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients may ask whether an idle stream is alive.
        ("grpc.http2.min_ping_interval_without_data_ms", round(1e3 * MIN_CLIENT_KEEPALIVE_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        # No connection outlives its certificate for long, nor holds a descriptor without a call.
        ("grpc.max_connection_idle_ms", round(1e3 * MAX_CONNECTION_IDLE_S)),
        ("grpc.max_connection_age_ms", round(1e3 * MAX_CONNECTION_AGE_S)),
        ("grpc.max_connection_age_grace_ms", round(1e3 * CONNECTION_AGE_GRACE_S)),
    ]


def _credentials(certificates: CertificateSource) -> grpc.ServerCredentials:
    """TLS with the certificate that is present at each handshake."""
    first = certificates.current()

    def fetch() -> grpc.ServerCertificateConfiguration:
        return _configuration(certificates.current())

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), fetch, require_client_authentication=first.client_ca is not None
    )


def _configuration(certificate: CertificateChain) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key, certificate.chain)], root_certificates=certificate.client_ca
    )
