"""JobLauncher as processes of this machine, each in a session of its own, so that they outlive the learner.

A job holds a lock on its run folder for as long as it lives: a later learner, which is not its parent, relies on the
lock, not on process ids, which are reused. Knows nothing about what a job does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from plaudit.core.job_run import LOG, status_of_ended
from plaudit.core.ports.jobs import JobState, JobStatus

JOB_COMMAND: Final = (sys.executable, "-m", "plaudit.learner.finetuning.job")

_LOCK: Final = "job.lock"
_PROCESS_ID: Final = "job.pid"
_GRACE_S: Final = 5.0
_CHECK_INTERVAL_S: Final = 0.02


class SubprocessJobs:
    """See :class:`plaudit.core.ports.jobs.JobLauncher`.

    Args:
        command: command of a job; the run folder is appended as an argument.
        secret: text on the standard input of each job, such as the URL of the store with its password.
    """

    def __init__(self, command: Sequence[str] = JOB_COMMAND, *, secret: str = "") -> None:
        self._command = tuple(command)
        self._secret = secret.encode()
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def launch(self, run_dir: Path) -> None:
        with (run_dir / LOG).open("ab") as log, (run_dir / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The child inherits the open lock file, and with it the lock; ours is closed when this block ends.
            child = subprocess.Popen(
                [*self._command, str(run_dir)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        (run_dir / _PROCESS_ID).write_text(str(child.pid), encoding="ascii")
        with contextlib.suppress(BrokenPipeError), child.stdin:  # type: ignore[union-attr]  # it is a pipe
            child.stdin.write(self._secret)  # type: ignore[union-attr]
        self._children[run_dir] = child

    def status(self, run_dir: Path) -> JobStatus:
        if not run_dir.is_dir():
            return status_of_ended(run_dir)
        with self._lock(run_dir) as ended:
            if not ended:
                return JobStatus(JobState.RUNNING)
        if child := self._children.pop(run_dir, None):
            child.wait()
        return status_of_ended(run_dir)

    def cancel(self, run_dir: Path) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            deadline_s = time.monotonic() + _GRACE_S
            while self.status(run_dir).state == JobState.RUNNING:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int((run_dir / _PROCESS_ID).read_text(encoding="ascii")), signal_number)
                if time.monotonic() > deadline_s:
                    break
                time.sleep(_CHECK_INTERVAL_S)

    @contextmanager
    def _lock(self, run_dir: Path) -> Iterator[bool]:
        """True: no process of the job is alive."""
        with (run_dir / _LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
