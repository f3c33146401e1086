"""Watchdog of runs: ends those that last longer than they may, such as a loop whose length a request chose.

A run is ended between two of the graph's nodes. One thread for the process, which starts with the first run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from plaudit.core.errors import RunStopped
from plaudit.core.limits import MAX_RUN_S
from plaudit.core.ports.runtime import RunFailed
from plaudit.core.text.reasons import told_reason

_INTERVAL_S: Final = 0.25
"""A run lasts at most this much longer than it may, and the rest of the node that it is in."""

Made = TypeVar("Made")


class Watchdog:
    """Safe to use from several threads.

    Args:
        interval_s: how often runs are looked at.
    """

    def __init__(self, interval_s: float = _INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._running: dict[int, tuple[float, Any]] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def run(self, call: Callable[[Any], Made], options: Any, deadline_s: float) -> Made:
        """``call(options)``, with a run that ends at the deadline, or :data:`MAX_RUN_S` from now.

        Args:
            options: onnxruntime's, of this run alone.
            deadline_s: on the clock of ``time.monotonic``.

        Raises:
            RunStopped: it was ended.
            RunFailed: it failed.
        """
        if self._thread is None:
            self._start()
        key = id(options)
        began_s = time.monotonic()
        self._running[key] = min(deadline_s, began_s + MAX_RUN_S), options
        try:
            return call(options)
        except Exception as error:
            if options.terminate:
                raise RunStopped(time.monotonic() - began_s) from error
            raise RunFailed(told_reason(error)) from error
        finally:
            del self._running[key]

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while True:
            time.sleep(self._interval_s)
            now_s = time.monotonic()
            for deadline_s, options in list(self._running.values()):
                if now_s >= deadline_s:
                    options.terminate = True


WATCHDOG: Final = Watchdog()
"""Of this process."""
