"""Run folder of a fine-tuning job, the contract of launcher, job and learner. Knows nothing about training.

job.json         specification of the job; written before the launch
progress.jsonl   one line per report
job.log          output of the process
candidate/       the sealed version folder that the job made
result.json      written last on success; ``{}`` or facts about the run
error.json       written last on failure: ``{"error": "…"}``

It holds no secrets: the job reads the URL of the experience store, perhaps with a password, on its standard input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from plaudit.core.ports.jobs import JobState, JobStatus

JOB: Final = "job.json"
PROGRESS: Final = "progress.jsonl"
LOG: Final = "job.log"
CANDIDATE: Final = "candidate"
RESULT: Final = "result.json"
ERROR: Final = "error.json"

_LOG_TAIL_BYTES: Final = 2_000


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write atomically: readers see the old file or the new one, never part of it."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return raw


def status_of_ended(run_dir: Path) -> JobStatus:
    """Status of a job that no longer runs, from the files that it left."""
    if (run_dir / RESULT).exists():
        return JobStatus(JobState.SUCCEEDED)
    if (run_dir / ERROR).exists():
        return JobStatus(JobState.FAILED, str(read_json(run_dir / ERROR)["error"]))
    return JobStatus(JobState.FAILED, f"the job ended without a result: it was killed or never started{_tail(run_dir)}")


def was_killed(run_dir: Path) -> bool:
    """Whether a job that no longer runs left neither result nor error."""
    return run_dir.is_dir() and not (run_dir / RESULT).exists() and not (run_dir / ERROR).exists()


def last_progress(run_dir: Path) -> dict[str, Any]:
    """Last complete line of the progress file; empty if there is none."""
    try:
        lines = (run_dir / PROGRESS).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return {}
    return dict(json.loads(lines[-2])) if len(lines) > 1 else {}


def _tail(run_dir: Path) -> str:
    try:
        tail = (run_dir / LOG).read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
    return f"; the end of its log: {tail}" if tail else ""
