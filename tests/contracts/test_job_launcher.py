"""The contract of JobLauncher, for every adapter. An adapter joins by joining ``ADAPTERS``.

The job here is a program that does what its ``job.json`` says, without any training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from plaudit.adapters.jobs.subprocess import SubprocessJobs
from plaudit.core.job_run import ERROR, JOB, LOG, PROGRESS, RESULT, last_progress, read_json, write_json
from plaudit.core.ports.jobs import JobLauncher, JobState, JobStatus
from support.inline_jobs import InlineJobs

PROGRAM = textwrap.dedent("""
    import json, os, pathlib, signal, sys
    run_dir = pathlib.Path(sys.argv[1])
    print("here I am")
    sys.stdout.flush()
    match json.loads((run_dir / "job.json").read_text())["do"]:
        case "succeed":
            (run_dir / "result.json").write_text("{}")
        case "fail":
            (run_dir / "error.json").write_text('{"error": "out of luck"}')
            sys.exit(1)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            (run_dir / "hangs").touch()
            signal.pause()
    """)
COMMAND = (sys.executable, "-c", PROGRAM)


def run_inline(run_dir: Path) -> None:
    match read_json(run_dir / JOB)["do"]:
        case "succeed":
            write_json(run_dir / RESULT, {})
        case "fail":
            raise RuntimeError("out of luck")


ADAPTERS: dict[str, Callable[[], JobLauncher]] = {
    "subprocess": lambda: SubprocessJobs(COMMAND),
    "inline": lambda: InlineJobs(run_inline),
}


@pytest.fixture(params=sorted(ADAPTERS))
def launcher(request: pytest.FixtureRequest) -> JobLauncher:
    return ADAPTERS[request.param]()


@pytest.fixture
def processes() -> SubprocessJobs:
    return SubprocessJobs(COMMAND)


def a_run(tmp_path: Path, do: str) -> Path:
    run_dir = tmp_path / do
    run_dir.mkdir()
    write_json(run_dir / JOB, {"do": do})
    return run_dir


def ended(launcher: JobLauncher, run_dir: Path) -> JobStatus:
    """Waits for the end; pytest's own limit ends a wait in vain."""
    while (status := launcher.status(run_dir)).state == JobState.RUNNING:
        os.sched_yield()
    return status


def test_a_job_that_leaves_a_result_has_succeeded(launcher: JobLauncher, tmp_path: Path) -> None:
    run_dir = a_run(tmp_path, "succeed")
    launcher.launch(run_dir)
    assert ended(launcher, run_dir) == JobStatus(JobState.SUCCEEDED)


def test_a_job_that_fails_says_why(launcher: JobLauncher, tmp_path: Path) -> None:
    run_dir = a_run(tmp_path, "fail")
    launcher.launch(run_dir)
    status = ended(launcher, run_dir)
    assert status.state == JobState.FAILED
    assert "out of luck" in status.error


def test_a_job_that_was_never_launched_has_failed(launcher: JobLauncher, tmp_path: Path) -> None:
    assert launcher.status(a_run(tmp_path, "succeed")).state == JobState.FAILED
    assert launcher.status(tmp_path / "gone").state == JobState.FAILED


def test_cancelling_a_job_that_has_ended_changes_nothing(launcher: JobLauncher, tmp_path: Path) -> None:
    run_dir = a_run(tmp_path, "succeed")
    launcher.launch(run_dir)
    ended(launcher, run_dir)
    launcher.cancel(run_dir)
    assert launcher.status(run_dir).state == JobState.SUCCEEDED


def test_a_process_that_is_killed_has_failed_and_its_last_words_are_kept(
    processes: SubprocessJobs, tmp_path: Path
) -> None:
    run_dir = a_run(tmp_path, "die")
    processes.launch(run_dir)
    status = ended(processes, run_dir)
    assert status.state == JobState.FAILED
    assert "here I am" in status.error
    assert not (run_dir / ERROR).exists()
    assert (run_dir / LOG).read_text() == "here I am\n"


def test_cancel_ends_a_process(processes: SubprocessJobs, tmp_path: Path) -> None:
    run_dir = a_run(tmp_path, "hang")
    processes.launch(run_dir)
    while not (run_dir / "hangs").exists():
        assert processes.status(run_dir).state == JobState.RUNNING
    processes.cancel(run_dir)
    assert processes.status(run_dir).state == JobState.FAILED


def test_a_job_outlives_its_launcher_and_is_found_again(tmp_path: Path) -> None:
    """Another process launches and ends at once; its job runs on, and this process asks after it and ends it."""
    run_dir = a_run(tmp_path, "hang")
    launch = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from plaudit.adapters.jobs.subprocess import SubprocessJobs
        SubprocessJobs({COMMAND!r}).launch(Path({str(run_dir)!r}))
        os._exit(0)
        """)
    subprocess.run([sys.executable, "-c", launch], check=True)
    later = SubprocessJobs(COMMAND)
    while not (run_dir / "hangs").exists():
        assert later.status(run_dir).state == JobState.RUNNING
    assert later.status(run_dir).state == JobState.RUNNING
    later.cancel(run_dir)
    assert later.status(run_dir).state == JobState.FAILED


def test_the_last_whole_line_of_progress(tmp_path: Path) -> None:
    assert last_progress(tmp_path) == {}
    (tmp_path / PROGRESS).write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert last_progress(tmp_path) == {"step": 2}
