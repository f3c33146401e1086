"""Number of rows that each version has answered and where their time went, in the terms of Triton's statistics.

Knows nothing about transports. Prometheus metrics are in metrics.py; this is for clients that measure from outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
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

    def copy(self) -> Spent:
        return Spent(self.count, self.ns)


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """One batch, nanoseconds.

    Attributes:
        rows: number of rows.
        queue_ns: sum of the times its rows waited.
        input_ns: filling the arrays.
        infer_ns: trunk and head.
        output_ns: policy and sampling.
    """

    rows: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Times of all batches of one size."""

    input: Spent
    infer: Spent
    output: Spent


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of one version since it was loaded; durations are counted once for each row, as its client saw them.

    Attributes:
        last_ms: when a row was last answered, UTC milliseconds since the epoch; 0 is never.
        rows: number of rows that were computed.
        batches: number of batches that they were computed in.
        success: from the submission to the outcome, of the rows that were computed.
        fail: the same, of the rows that failed.
        sizes: batches by their number of rows, each counted once.
    """

    last_ms: int
    rows: int
    batches: int
    success: Spent
    fail: Spent
    queue: Spent
    input: Spent
    infer: Spent
    output: Spent
    sizes: Mapping[int, BatchSize]


class VersionStatistics:
    """Statistics of one version; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms = 0
        self._rows = 0
        self._batches = 0
        self._success = Spent()
        self._fail = Spent()
        self._queue = Spent()
        self._input = Spent()
        self._infer = Spent()
        self._output = Spent()
        self._sizes: dict[int, BatchSize] = {}

    def answered(self, batch: BatchTimes) -> None:
        rows = batch.rows
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            self._last_ms = now_ms
            self._rows += rows
            self._batches += 1
            self._success.add(rows, batch.queue_ns + rows * (batch.input_ns + batch.infer_ns + batch.output_ns))
            self._queue.add(rows, batch.queue_ns)
            self._input.add(rows, rows * batch.input_ns)
            self._infer.add(rows, rows * batch.infer_ns)
            self._output.add(rows, rows * batch.output_ns)
            size = self._sizes.get(rows)
            if size is None:
                size = self._sizes[rows] = BatchSize(Spent(), Spent(), Spent())
            size.input.add(1, batch.input_ns)
            size.infer.add(1, batch.infer_ns)
            size.output.add(1, batch.output_ns)

    def failed(self, rows: int, ns: int) -> None:
        """``ns``: sum of the times from submission to failure."""
        with self._lock:
            self._fail.add(rows, ns)

    def totals(self) -> Totals:
        with self._lock:
            return Totals(
                last_ms=self._last_ms,
                rows=self._rows,
                batches=self._batches,
                success=self._success.copy(),
                fail=self._fail.copy(),
                queue=self._queue.copy(),
                input=self._input.copy(),
                infer=self._infer.copy(),
                output=self._output.copy(),
                sizes={
                    rows: BatchSize(size.input.copy(), size.infer.copy(), size.output.copy())
                    for rows, size in sorted(self._sizes.items())
                },
            )


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
