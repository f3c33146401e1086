"""The end of a service: what asks it to drain, and the deadline that ends it, whatever its libraries do then.

Asked to drain it is by SIGTERM, by SIGINT (ctrl-C), by SIGHUP (its terminal was closed), and by the end of whoever read
its output: a pager, ``head``, or the ``plaudit up`` that started it. The kernel closes that pipe however the reader
ends, so a child outlives neither a parent that was killed nor one that crashed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Final

_STDOUT: Final = 1
_STDERR: Final = 2


@contextlib.contextmanager
def stop_requests(within_s: float | None = None) -> Iterator[asyncio.Event]:
    """Event that the first request to stop sets; more of them change nothing, so ctrl-C may arrive twice.

    Args:
        within_s: time after the request at which the process ends in any case; None: it may take as long as it takes.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        if within_s is not None and not stopping.is_set():
            exit_within(within_s)
        stopping.set()

    # Who starts it by nohup has SIGHUP ignored on purpose.
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    for number in numbers:
        loop.add_signal_handler(number, stop)
    with _reader_gone(loop, stop):
        try:
            yield stopping
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def requests_as_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit within the block, as ctrl-C does KeyboardInterrupt, so that a command cleans
    up; for the main thread.
    """

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reader_gone(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Iterator[None]:
    """Have ``call`` called once nobody reads stdout any more, if it is a pipe."""
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(_STDOUT).st_mode)
    except OSError:  # it is closed
        is_pipe = False
    if not is_pipe:
        yield
        return

    def gone() -> None:  # the end that is written to is never readable, only broken
        loop.remove_reader(_STDOUT)
        call()

    loop.add_reader(_STDOUT, gone)
    try:
        yield
    finally:
        loop.remove_reader(_STDOUT)


def exit_within(seconds: float) -> None:
    """End this process after ``seconds`` with exit code 1, whatever it does then.

    The stacks of all threads are written to stderr first. The watch is a thread of the interpreter in C, so a library
    that keeps Python from running, or from ending, does not keep it.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
