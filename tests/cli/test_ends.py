"""How processes end: with their parent, with their terminal, with the reader of their output, and within their time.

The programs here are small, and real in what matters: the supervisor, its children and the way in which a service waits
to be stopped. Every wait is for an event of the kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATH = ":".join(str(Path(__file__).parents[2] / part) for part in ("services", "models"))
WAIT_S = 60.0

CHILD = """
import asyncio, os
from plaudit.cli.processes.stopping import stop_requests

async def main():
    with stop_requests(30.0) as stopping:
        print('{"event": "ready", "pid": %d}' % os.getpid(), flush=True)
        await stopping.wait()

asyncio.run(main())
"""
PARENT = f"""
import asyncio, sys
from plaudit.cli import output
from plaudit.cli.processes.supervisor import Service, run

CHILD = {CHILD!r}
services = [Service(name, [sys.executable, "-c", CHILD], restart=False) for name in ("serve", "learn")]
sys.exit(asyncio.run(run(services, output.print_json)))
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(program, **options of Popen)``: a process in a group of its own that is killed after the test."""
    running: list[subprocess.Popen[str]] = []

    def start_one(program: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "process_group": 0} | options
        command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
        environment = os.environ | {"PYTHONPATH": PATH}
        running.append(subprocess.Popen(command, env=environment, text=True, **options))  # type: ignore[call-overload]
        return running[-1]

    yield start_one
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


class Children:
    """Processes that are not ours, and the wait for their end."""

    def __init__(self, pids: list[int]) -> None:
        self._descriptors = [os.pidfd_open(pid) for pid in pids]

    def end(self) -> bool:
        """Wait for the end of all of them; False: one is still there."""
        ended = True
        for descriptor in self._descriptors:
            ended &= bool(select.select([descriptor], [], [], WAIT_S)[0])
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
        return ended


def _pid(line: str) -> int:
    return int(line.partition('"pid": ')[2].partition(",")[0])


def test_children_end_with_a_parent_that_was_killed(start: Start) -> None:
    """kill -9, as by the kernel when memory runs out: what is left would hold the ports and the lead.

    https://github.com/Supervisor/supervisor/pull/199, https://github.com/acassen/keepalived/pull/475. Not by a signal
    on the death of the parent, which is sent when the *thread* ends that started the child:
    https://github.com/Tencent-Hunyuan/UniRL/pull/276, https://github.com/seveas/python-prctl/issues/14.
    """
    parent = start(PARENT)
    assert parent.stdout is not None
    children = Children([_pid(parent.stdout.readline()) for _ in range(2)])
    parent.kill()
    assert children.end()


def test_children_end_with_a_parent_that_dies_as_they_start(start: Start) -> None:
    """Before they have set anything up: the broken pipe is still there when they look.

    https://github.com/containers/bubblewrap/pull/730, https://github.com/aristanetworks/bst/pull/74
    """
    reader, writer = os.pipe()
    child = start(CHILD, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    assert child.wait(WAIT_S) in (0, 1)
    assert child.stderr is not None
    assert "Timeout" not in child.stderr.read()  # of its own accord


def test_all_end_with_the_reader_of_the_output(start: Start) -> None:
    """``plaudit up | head -1``, without waiting for a next line; https://github.com/nickstenning/honcho/issues/255."""
    parent = start(PARENT, stderr=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stderr is not None
    children = Children([_pid(parent.stdout.readline()) for _ in range(2)])
    parent.stdout.close()
    assert children.end()
    assert parent.wait(WAIT_S) == 0
    assert parent.stderr.read() == ""


def test_all_end_with_their_terminal(start: Start) -> None:
    """SIGHUP, and output that nobody takes; https://github.com/open-cli-tools/concurrently/issues/193."""
    ours, theirs = pty.openpty()
    parent = start(
        PARENT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        process_group=None,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown = ""
    while shown.count("pid") < 2 or not shown.endswith("\n"):
        shown += os.read(ours, 1000).decode()
    children = Children([_pid(line) for line in shown.splitlines()])
    os.close(ours)
    assert children.end()
    assert parent.wait(WAIT_S) == 0


def test_what_was_started_by_nohup_stays(start: Start) -> None:
    child = start("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + CHILD)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGWINCH)  # is handled after it, and ignored
    assert child.poll() is None
    child.terminate()
    assert child.wait(WAIT_S) == 0


HANGS = """
import asyncio, ctypes, sys, threading
from plaudit.cli.processes.stopping import stop_requests

def hang():
    {how}

async def main():
    with stop_requests(0.2) as stopping:
        print("ready", flush=True)
        await stopping.wait()
        {where}

asyncio.run(main())
{after}
"""


@pytest.mark.parametrize(
    ("how", "where", "after"),
    [
        ("threading.Event().wait()", "await asyncio.to_thread(hang)", ""),
        ("ctypes.PyDLL(None).sleep(1000)", "await asyncio.to_thread(hang)", ""),
        ("threading.Event().wait()", "threading.Thread(target=hang).start()", ""),
        ("threading.Event().wait()", "pass", "import atexit; atexit.register(hang)"),
        ("while True: pass", "hang()", ""),
    ],
    ids=[
        "a thread waits",
        "a library holds Python's lock",
        "a thread keeps Python from ending",
        "at exit",
        "spins",
    ],
)
def test_a_service_ends_at_its_deadline_whatever_a_library_does(start: Start, how: str, where: str, after: str) -> None:
    """With the stacks of all threads, so that somebody can say what hung. Otherwise `docker stop` waits, and kills:
    https://github.com/socotecio/django-socio-grpc/issues/359, https://github.com/owncloud-docker/server/issues/482
    """
    program = HANGS.format(how=how, where=where, after=after)
    service = start(program, stderr=subprocess.PIPE)
    assert service.stdout is not None
    assert service.stderr is not None
    service.stdout.readline()
    service.terminate()
    assert service.wait(WAIT_S) == 1
    told = service.stderr.read()
    assert "Timeout" in told
    assert "in hang" in told


def test_a_log_that_nobody_reads_does_no_harm(start: Start) -> None:
    program = """
    import sys
    import structlog
    from plaudit.cli.processes.services import log_to_stderr
    log_to_stderr()
    sys.stdin.read()
    structlog.get_logger("x").error("lost")
    print("went on", flush=True)
    """
    service = start(program, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert service.stderr is not None
    service.stderr.close()
    out, _ = service.communicate()
    assert out == "went on\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_command_that_is_ended_cleans_up_first(start: Start, number: signal.Signals) -> None:
    """`plaudit finetune` left its job running."""
    running = start("""
        import signal
        from plaudit.cli.processes.stopping import requests_as_exit

        with requests_as_exit():
            try:
                print("begun", flush=True)
                signal.pause()
            finally:
                print("cleaned up", flush=True)
        """)
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    running.send_signal(number)
    assert running.stdout.read() == "cleaned up\n"
    assert running.wait(WAIT_S) == 128 + number
