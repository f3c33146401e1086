"""Port of fine-tuning jobs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """``error`` says why a job failed."""

    state: JobState
    error: str = ""


class JobLauncher(Protocol):
    """Runs fine-tuning jobs somewhere. A job is its run folder: ``job.json`` in; ``result.json`` or ``error.json`` out.

    A job outlives the learner that launched it; another learner finds it by the folder.
    """

    def launch(self, run_dir: Path) -> None:
        """Start the job that ``run_dir/job.json`` describes. Returns at once, or when the job is done."""
        ...

    def status(self, run_dir: Path) -> JobStatus:
        """State of the job. One that ended without ``result.json`` has failed, whatever ended it."""
        ...

    def cancel(self, run_dir: Path) -> None:
        """End the job if it is running; returns when it has ended."""
        ...
