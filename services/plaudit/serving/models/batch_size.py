"""Best number of rows for one model evaluation: measured, because more is not always faster.

On one core a small model gains from batches of 8 and a large one loses beyond 4: its activations leave the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

_GAIN: Final = 0.01
"""A larger batch must be this much faster per request to be worth the longer wait."""
_OVERHEAD_S: Final = 200e-6
"""Cost of a batch beside the model: waking its worker, the policy, the counting, and caches that are cold again."""
_PATIENCE: Final = 2
"""Sizes in a row without a gain after which larger ones are not tried."""
_ROUNDS: Final = 3


def batch_sizes(max_batch: int) -> Sequence[int]:
    """1, 2, 4, … and ``max_batch``."""
    sizes = [1]
    while 2 * sizes[-1] < max_batch:
        sizes.append(2 * sizes[-1])
    return sizes if max_batch == 1 else [*sizes, max_batch]


def measure_best_batch(
    run: Callable[[int], object],
    max_batch: int,
    *,
    overhead_s: float = _OVERHEAD_S,
    clock_s: Callable[[], float] = time.perf_counter,
) -> int:
    """The smallest batch size that is within 1 % of the best time per request.

    Args:
        run: evaluates a batch of that many rows.
        overhead_s: cost of a batch beside that.
        clock_s: what time is measured with.
    """
    per_row_s: dict[int, float] = {}
    without_gain = 0
    for size in batch_sizes(max_batch):
        best_s = min(per_row_s.values(), default=float("inf"))
        run(size)  # the first evaluation of a size allocates
        took_s = min(_timed_s(run, size, clock_s) for _ in range(_ROUNDS))
        per_row_s[size] = (took_s + overhead_s) / size
        without_gain = 0 if per_row_s[size] * (1 + _GAIN) < best_s else without_gain + 1
        if without_gain == _PATIENCE:
            break
    limit_s = min(per_row_s.values()) * (1 + _GAIN)
    return next(size for size, each_s in per_row_s.items() if each_s <= limit_s)


def _timed_s(run: Callable[[int], object], size: int, clock_s: Callable[[], float]) -> float:
    started_s = clock_s()
    run(size)
    return clock_s() - started_s
