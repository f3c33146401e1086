"""Histograms that are appended to show what prometheus_client's own would."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from plaudit.serving.telemetry.buffered_histogram import _BATCH, BufferedHistogram

BOUNDS = (0.001, 0.01, 0.1, 1.0)


@pytest.fixture
def page() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def ours(page: CollectorRegistry) -> BufferedHistogram:
    return BufferedHistogram("took_seconds", "How long.", ["version"], BOUNDS, page, counter=("done", "How many."))


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.parametrize("n", [0, 1, _BATCH - 1, _BATCH, 3 * _BATCH + 7])
def test_it_shows_what_an_ordinary_one_shows(ours: BufferedHistogram, page: CollectorRegistry, n: int) -> None:
    """Values on a bound belong below it, values beyond the last one to +Inf."""
    values = [*BOUNDS, 0.0, 5.0, *np.random.default_rng(n).lognormal(-4, 3, n).tolist()]
    theirs = CollectorRegistry()
    histogram = Histogram("took_seconds", "How long.", ["version"], buckets=BOUNDS, registry=theirs).labels("1")
    counter = Counter("done_total", "How many.", ["version"], registry=theirs).labels("1")
    observed = ours.labels("1")
    for value in values:
        observed.observe(value)
        histogram.observe(value)
        counter.inc()
    found, wanted = samples(page), samples(theirs)
    assert found.keys() == wanted.keys()
    assert list(found.values()) == pytest.approx([wanted[key] for key in found])


def test_it_is_typed_and_described_as_an_ordinary_one(ours: BufferedHistogram, page: CollectorRegistry) -> None:
    ours.labels("1")
    families = {family.name: (family.type, family.documentation) for family in page.collect()}
    assert families == {"took_seconds": ("histogram", "How long."), "done": ("counter", "How many.")}


def test_threads_that_append_while_it_is_scraped_lose_nothing(ours: BufferedHistogram, page: CollectorRegistry) -> None:
    observed, each, threads = ours.labels("1"), 5_000, 4
    scraping = threading.Event()

    def append() -> None:
        scraping.wait()
        for _ in range(each):
            observed.observe(0.5)

    working = [threading.Thread(target=append) for _ in range(threads)]
    for thread in working:
        thread.start()
    scraping.set()
    while any(thread.is_alive() for thread in working):
        found = samples(page)
        count, total = (found[f"took_seconds_{what}", (("version", "1"),)] for what in ("count", "sum"))
        assert total == count * 0.5
    assert page.get_sample_value("done_total", {"version": "1"}) == each * threads
    assert page.get_sample_value("took_seconds_sum", {"version": "1"}) == each * threads * 0.5


def test_what_waits_is_bounded_without_a_scrape(ours: BufferedHistogram) -> None:
    observed = ours.labels("1")
    for _ in range(10 * _BATCH):
        observed.observe(0.5)
    assert len(observed._waiting) < _BATCH


def test_a_removed_series_stays_away_though_it_is_still_counted_in(
    ours: BufferedHistogram, page: CollectorRegistry
) -> None:
    held = ours.labels("1")
    held.observe(0.5)
    ours.remove("1")
    ours.remove("never there")
    held.observe(0.5)
    assert samples(page) == {}
    ours.labels("1").observe(0.5)
    assert page.get_sample_value("done_total", {"version": "1"}) == 1


def test_labels_must_be_as_many_as_their_names(ours: BufferedHistogram) -> None:
    with pytest.raises(ValueError, match=r"took_seconds has the labels \('version',\); \('1', '2'\) are not as many"):
        ours.labels("1", "2")


def test_a_name_is_taken_once(ours: BufferedHistogram, page: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="took_seconds"):
        BufferedHistogram("took_seconds", "Again.", [], BOUNDS, page)
