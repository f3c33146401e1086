"""Quotas: how many calls, and messages on streams, each caller may make in a minute."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from plaudit.core.access import Principal
from plaudit.core.errors import QuotaSpent
from plaudit.core.limits import MAX_REMEMBERED_TOKENS

_MINUTE_S: Final = 60.0


class Quotas:
    """A bucket of tokens for each caller with a quota: a minute's calls may come at once, and refill evenly.

    Safe to use from several threads. Callers beyond the latest few thousand begin anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, principal: Principal) -> None:
        """Count one call. Raises QuotaSpent."""
        limit = principal.calls_per_minute
        if not limit:
            return
        now_s = self._clock()
        with self._lock:
            left, since_s = self._left.pop(principal.key_id, (float(limit), now_s))
            left = min(float(limit), left + (now_s - since_s) * limit / _MINUTE_S)
            spent = left < 1.0
            self._left[principal.key_id] = (left if spent else left - 1.0), now_s
            if len(self._left) > MAX_REMEMBERED_TOKENS:
                self._left.popitem(last=False)
        if spent:
            raise QuotaSpent(limit)
