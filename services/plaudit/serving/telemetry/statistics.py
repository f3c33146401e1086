"""Number of rows that each version has answered and where their time went, in the terms of Triton's statistics.

Knows nothing about transports. Prometheus metrics are in metrics.py; this is for clients that measure from outside.
"""

from __future__ import annotations

import threading
import time
from copy import deepcopy
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from plaudit.core.ports.runtime import ServableModel


@dataclass(slots=True)
class Spent:
    """``count`` things that took ``ns`` nanoseconds together."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


@dataclass(slots=True)
class BatchSize:
    """Times of all batches of one size."""

    input: Spent = field(default_factory=Spent)
    infer: Spent = field(default_factory=Spent)
    output: Spent = field(default_factory=Spent)


@dataclass(slots=True)
class Totals:
    """Totals of one version since it was loaded; durations are counted once for each row, as its client saw them.

    Attributes:
        last_ms: when a row was last answered, UTC milliseconds since the epoch; 0 is never.
        rows: number of rows that were computed.
        batches: number of batches that they were computed in.
        success: from the submission to the outcome, of the rows that were computed.
        fail: the same, of the rows that failed.
        sizes: batches by their number of rows, ascending, each counted once.
    """

    last_ms: int = 0
    rows: int = 0
    batches: int = 0
    success: Spent = field(default_factory=Spent)
    fail: Spent = field(default_factory=Spent)
    queue: Spent = field(default_factory=Spent)
    input: Spent = field(default_factory=Spent)
    infer: Spent = field(default_factory=Spent)
    output: Spent = field(default_factory=Spent)
    sizes: dict[int, BatchSize] = field(default_factory=dict)


class VersionStatistics:
    """Statistics of one version; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def answered(self, rows: int, *, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one batch.

        Args:
            queue_ns: sum of the times its rows waited.
            input_ns: filling the arrays.
            infer_ns: trunk and head.
            output_ns: policy and sampling.
        """
        totals = self._totals
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            totals.last_ms = now_ms
            totals.rows += rows
            totals.batches += 1
            totals.success.add(rows, queue_ns + rows * (input_ns + infer_ns + output_ns))
            totals.queue.add(rows, queue_ns)
            totals.input.add(rows, rows * input_ns)
            totals.infer.add(rows, rows * infer_ns)
            totals.output.add(rows, rows * output_ns)
            size = totals.sizes.get(rows)
            if size is None:
                size = totals.sizes[rows] = BatchSize()
            size.input.add(1, input_ns)
            size.infer.add(1, infer_ns)
            size.output.add(1, output_ns)

    def failed(self, rows: int, ns: int) -> None:
        """``ns``: sum of the times from submission to failure."""
        with self._lock:
            self._totals.fail.add(rows, ns)

    def totals(self) -> Totals:
        """A copy."""
        with self._lock:
            totals = deepcopy(self._totals)
        totals.sizes = dict(sorted(totals.sizes.items()))
        return totals


class Statistics:
    """Statistics of every version that is loaded; those of a version that is unloaded are dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: WeakKeyDictionary[ServableModel, VersionStatistics] = WeakKeyDictionary()

    def of(self, model: ServableModel) -> VersionStatistics:
        statistics = self._versions.get(model)
        if statistics is None:
            with self._lock:
                statistics = self._versions.setdefault(model, VersionStatistics())
        return statistics
