"""JobLauncher that runs the job in this process, before :meth:`InlineJobs.launch` returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plaudit.core.job_run import ERROR, status_of_ended, write_json
from plaudit.core.ports.jobs import JobStatus


class InlineJobs:
    """See :class:`plaudit.core.ports.jobs.JobLauncher`.

    Args:
        run: runs the job in the run folder and writes ``result.json`` there, or raises.
    """

    def __init__(self, run: Callable[[Path], None]) -> None:
        self._run = run

    def launch(self, run_dir: Path) -> None:
        try:
            self._run(run_dir)
        except Exception as error:
            write_json(run_dir / ERROR, {"error": f"{type(error).__name__}: {error}"})

    def status(self, run_dir: Path) -> JobStatus:
        return status_of_ended(run_dir)

    def cancel(self, run_dir: Path) -> None:
        """Does nothing: every launched job has ended."""
