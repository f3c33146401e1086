"""Metrics with labels added, and pages of several processes as one."""

from __future__ import annotations

import socket
import threading
import urllib.request
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from plaudit.cli.processes.exposition import LabelledRegistry, MetricsPages, merge
from plaudit.core.host.metrics_server import MetricsServer


def filled(registry: CollectorRegistry, n: int) -> CollectorRegistry:
    Counter("calls", 'Calls, "all" of them.', ["path"], registry=registry).labels('a "b" {c} d\\e').inc(n)
    Gauge("waiting", "Without labels.", registry=registry).set(n)
    Histogram("took_seconds", "How long.", ["model"], buckets=(0.1, 1.0), registry=registry).labels("pets").observe(n)
    return registry


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def page_of(n: int) -> str:
    return generate_latest(filled(CollectorRegistry(), n)).decode()


def test_pages_become_one_that_loses_nothing() -> None:
    one, two = page_of(3), page_of(5)
    merged = samples(merge({"0": one, "1": two}))
    expected = {
        (name, labels | {("process", process)}): value
        for process, page in (("0", one), ("1", two))
        for (name, labels), value in samples(page).items()
    }
    assert merged == expected


def test_every_family_is_described_once_and_stands_together() -> None:
    page = merge({"0": page_of(3), "1": page_of(5)})
    described = [line for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    families = [family.name for family in text_string_to_metric_families(page)]
    assert len(families) == len(set(families))


def test_a_process_that_has_gone_or_does_not_answer_is_left_out() -> None:
    pages = MetricsPages()
    assert pages.merged() == ""
    server, thread = start_http_server(0, "127.0.0.1", filled(CollectorRegistry(), 7))
    pages.add("0", f"127.0.0.1:{server.server_port}")
    pages.add("1", "127.0.0.1:1")
    try:
        with closing(MetricsServer("127.0.0.1", 0, pages.page, pages.problem)) as shown:
            page = urllib.request.urlopen(f"http://127.0.0.1:{shown.port}/metrics", timeout=30).read()
            found = samples(page.decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found[("waiting", frozenset({("process", "0")}))] == 7
    assert {dict(labels)["process"] for _, labels in found} == {"0"}
    pages.remove("0")
    pages.remove("1")
    assert pages.merged() == ""


def test_processes_are_ready_once_all_are() -> None:
    pages = MetricsPages()
    assert pages.problem() == "no process answers yet"
    page = lambda _accept, _names: ("text/plain", b"")  # noqa: E731
    with (
        closing(MetricsServer("127.0.0.1", 0, page, lambda: None)) as ready,
        closing(MetricsServer("127.0.0.1", 0, page, lambda: "there is no model")) as waiting,
    ):
        pages.add("0", f"127.0.0.1:{ready.port}")
        assert pages.problem() is None
        pages.add("1", f"127.0.0.1:{waiting.port}")
        assert pages.problem() == "process 1: there is no model"
    assert pages.problem() == "process 0: does not answer"


@pytest.mark.parametrize("says_how_long", [True, False])
def test_of_a_process_that_is_killed_while_it_answers_nothing_is_shown_and_all_of_the_others(
    says_how_long: bool,
) -> None:
    """The half of a page would be series that look alive, and a last line that breaks the whole page."""
    whole = page_of(7)
    length = f"content-length: {len(whole.encode())}\r\n" if says_how_long else ""
    half = f"HTTP/1.0 200 OK\r\n{length}\r\n{whole[: len(whole) // 2]}".encode()
    pages = MetricsPages()
    server, thread = start_http_server(0, "127.0.0.1", filled(CollectorRegistry(), 3))
    with socket.create_server(("127.0.0.1", 0)) as killed:

        def answer_in_part() -> None:
            connection, _ = killed.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(half)

        dying = threading.Thread(target=answer_in_part)
        dying.start()
        pages.add("0", f"127.0.0.1:{server.server_port}")
        pages.add("1", f"127.0.0.1:{killed.getsockname()[1]}")
        try:
            found = samples(pages.merged())
        finally:
            dying.join()
            server.shutdown()
            server.server_close()
            thread.join()
    assert found == samples(merge({"0": page_of(3)}))


@pytest.mark.parametrize("label", ["model", "region"])
def test_labels_are_added_and_those_that_are_there_stay(label: str) -> None:
    page = samples(generate_latest(filled(LabelledRegistry({label: "cars"}), 3)).decode())
    assert page[("waiting", frozenset({(label, "cars")}))] == 3
    counts = [labels for name, labels in page if name == "took_seconds_count"]
    assert counts == [frozenset({("model", "pets")} | ({("region", "cars")} if label == "region" else set()))]
