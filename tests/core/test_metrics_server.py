"""The metrics page is shown whoever else is connected, and costs one thread."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from plaudit.core.host import metrics_server
from plaudit.core.host.addresses import join, listening_socket
from plaudit.core.host.metrics_server import MetricsServer, page_of
from plaudit.core.limits import MAX_METRICS_ANSWERS

TIMEOUT_S = 30.0


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("waiting", "Those that wait.", registry=registry).set(7)
    Gauge("working", "Those that work.", registry=registry).set(3)
    return registry


@pytest.fixture
def server(registry: CollectorRegistry) -> Iterator[MetricsServer]:
    with closing(MetricsServer("127.0.0.1", 0, page_of(registry), nothing)) as server:
        yield server


def nothing() -> str | None:
    """A process that can do its work."""
    return None


def get(server: MetricsServer, path: str = "/metrics", **headers: str) -> tuple[str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return answer.headers["content-type"], answer.read()


def send_for_ever(connected: socket.socket, piece: bytes) -> None:
    """Until the connection is closed."""
    while True:
        connected.sendall(piece)
        time.sleep(0.01)


def values(page: str) -> dict[str, float]:
    return {s.name: s.value for family in text_string_to_metric_families(page) for s in family.samples}


def test_the_page_is_prometheus_text(server: MetricsServer) -> None:
    content_type, page = get(server)
    assert content_type.startswith("text/plain; version=")
    assert values(page.decode()) == {"waiting": 7, "working": 3}


def test_a_scraper_may_ask_for_other_formats_and_for_a_part(server: MetricsServer) -> None:
    content_type, page = get(server, accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")
    assert values(get(server, "/metrics?name[]=working")[1].decode()) == {"working": 3}


def test_a_large_page_is_compressed_for_those_who_can_read_it() -> None:
    def page(_accept: str, _names: Sequence[str]) -> tuple[str, bytes]:
        return "text/plain", b"x" * 100_000

    with closing(MetricsServer("127.0.0.1", 0, page, nothing)) as server:
        assert get(server)[1] == b"x" * 100_000
        assert gzip.decompress(get(server, **{"accept-encoding": "gzip"})[1]) == b"x" * 100_000


def test_a_process_that_lives_is_healthy_and_ready_once_it_can_work(registry: CollectorRegistry) -> None:
    problems: list[str | None] = ["there is no model", None]
    with closing(MetricsServer("127.0.0.1", 0, page_of(registry), lambda: problems.pop(0))) as server:
        assert get(server, "/healthz")[1] == b"alive\n"
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            get(server, "/readyz")
        assert refused.value.read() == b"there is no model\n"
        assert get(server, "/readyz")[1] == b"ready\n"


def test_other_paths_are_not_found(server: MetricsServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        get(server, "/ready")
    assert refused.value.read() == b"there are /metrics, /healthz and /readyz\n"


def test_only_reading_is_allowed(server: MetricsServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", data=b"x", timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /metrics HTTP/1.1\r\n", b"\x00\xff" * 50], ids=["nothing", "half", "noise"]
)
def test_hundreds_of_half_requests_neither_keep_others_out_nor_take_threads(server: MetricsServer, sent: bytes) -> None:
    """A thread each, for ever, in prometheus_client, as in https://github.com/prometheus/client_java/issues/2284."""
    threads = threading.active_count() + MAX_METRICS_ANSWERS
    with ExitStack() as stack:
        for _ in range(300):
            half = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S))
            half.sendall(sent)
        for _ in range(3):
            assert values(get(server)[1].decode())["waiting"] == 7
        assert threading.active_count() <= threads


def test_whoever_sends_byte_by_byte_is_cut_off(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "METRICS_TIMEOUT_S", 0.2)
    with (
        closing(MetricsServer("127.0.0.1", 0, page_of(registry), nothing)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as slow,
        pytest.raises(ConnectionError),
    ):
        send_for_ever(slow, b"x")


def test_a_request_beyond_any_size_is_cut_off(server: MetricsServer) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as endless,
        pytest.raises(ConnectionError),
    ):
        send_for_ever(endless, b"x" * 65_536)
    assert values(get(server)[1].decode())["waiting"] == 7


def test_a_page_that_cannot_be_made_costs_its_own_request_alone() -> None:
    failing = [True]

    def page(_accept: str, _names: Sequence[str]) -> tuple[str, bytes]:
        if failing.pop():
            raise ValueError("a collector failed")
        return "text/plain", b"page"

    with closing(MetricsServer("127.0.0.1", 0, page, nothing)) as server:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            get(server)
        failing[:] = [False]
        assert get(server)[1] == b"page"


def test_closing_frees_the_port_though_somebody_is_connected(registry: CollectorRegistry) -> None:
    server = MetricsServer("127.0.0.1", 0, page_of(registry), nothing)
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connected:
        server.close()
        with suppress(ConnectionResetError):  # it was not accepted yet
            assert connected.recv(1) == b""
    with closing(MetricsServer("127.0.0.1", server.port, page_of(registry), nothing)) as again:
        assert values(get(again)[1].decode())["waiting"] == 7


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_literal_is_listened_on(registry: CollectorRegistry, host: str) -> None:
    with closing(MetricsServer(host, 0, page_of(registry), nothing)) as server:
        url = f"http://{join(host, server.port)}/metrics"
        assert values(urllib.request.urlopen(url, timeout=TIMEOUT_S).read().decode())["waiting"] == 7


def test_all_addresses_are_both_families() -> None:
    with listening_socket("::", 0) as listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=TIMEOUT_S).close()


@pytest.mark.parametrize(
    ("host", "joined"),
    [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("[::1]", "[::1]:80"), ("example.org", "example.org:80")],
)
def test_addresses_are_joined_as_urls_have_them(host: str, joined: str) -> None:
    assert join(host, 80) == joined
