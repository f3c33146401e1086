"""Fuzzing of every parser that sees foreign bytes, with oracles on errors, round trips, time and memory.

    python -m fuzz --seconds 600
    python -m fuzz --only png event
    python -m fuzz --list

Each parser has its turns in a child process. What was reached is kept in build/fuzz and gone on from by the next run.
Executions of all runs are added up in executions.json beside this file. A finding is kept as a file, told at the end,
and makes the exit status 1; its input, put into found/, is a test from then on.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fuzz.child import counted, make_counter
from fuzz.parsers import all_parsers

PARSERS: Final = all_parsers()
EXECUTIONS: Final = Path(__file__).with_name("executions.json")
_TURN_S: Final = 120.0
_SILENCE_S: Final = 120.0
"""Time after which a child that executes nothing hangs: libraries are imported in it first."""
_POLL_S: Final = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--turn", type=float, default=_TURN_S, help="seconds of a parser's turn")
    parser.add_argument("--only", nargs="+", choices=sorted(PARSERS), default=list(PARSERS))
    parser.add_argument("--out", type=Path, default=Path("build") / "fuzz")
    parser.add_argument("--list", action="store_true", help="list parsers and their executions over all runs")
    options = parser.parse_args()
    if options.list:
        _list()
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was executed is counted
    findings: dict[str, str] = {}
    until_s = time.monotonic() + options.seconds
    while time.monotonic() < until_s and (left := [name for name in options.only if name not in findings]):
        for name in left:
            turn_s = min(options.turn, until_s - time.monotonic())
            if turn_s > 0 and (problem := _turn(name, options.out / name, turn_s)):
                findings[name] = problem
                print(f"{name}: {problem}", file=sys.stderr, flush=True)
    _list()
    return 1 if findings else 0


def _turn(name: str, folder: Path, seconds: float) -> str:
    """One turn of a parser. Returns what was found, "" for nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    make_counter(folder / "counter")
    (folder / "finding.txt").unlink(missing_ok=True)
    began_s = heard_s = time.monotonic()
    command = [sys.executable, "-m", "fuzz.child", name, str(folder), str(random.randrange(2**31))]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        before = 0
        try:
            while child.poll() is None and time.monotonic() < began_s + seconds:
                time.sleep(_POLL_S)
                now, _ = counted(folder / "counter")
                heard_s = time.monotonic() if now != before else heard_s
                before = now
                if time.monotonic() - heard_s > _SILENCE_S:
                    return f"nothing was executed for {_SILENCE_S:.0f} s; see {folder}"
            ended = child.poll()
        finally:
            child.kill()
            child.wait()
            _add(name, folder, time.monotonic() - began_s)
    if ended is None:
        return ""
    told = folder / "finding.txt"
    return told.read_text(encoding="utf-8") if told.exists() else f"ended with {ended}; see {folder / 'log'}"


def _add(name: str, folder: Path, seconds: float) -> None:
    """Add a turn to the counts of all runs."""
    executions, taken = counted(folder / "counter")
    every = executions_of_all_runs()
    was = every.get(name, {"executions": 0, "taken": 0, "seconds": 0.0})
    every[name] = {
        "executions": was["executions"] + executions,
        "taken": was["taken"] + taken,
        "seconds": round(was["seconds"] + seconds, 1),
    }
    fresh = EXECUTIONS.with_suffix(".fresh")
    fresh.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n", encoding="utf-8")
    fresh.replace(EXECUTIONS)


def executions_of_all_runs() -> dict[str, Any]:
    """Executions, those of them that were taken, and seconds, by parser."""
    read: dict[str, Any] = json.loads(EXECUTIONS.read_text(encoding="utf-8")) if EXECUTIONS.exists() else {}
    return read


def _list() -> None:
    every = executions_of_all_runs()
    names: Sequence[str] = sorted({*PARSERS, *every})
    for name in names:
        of = every.get(name, {"executions": 0, "taken": 0, "seconds": 0.0})
        print(f"{name:16} {of['executions']:>12,} executions, {of['taken']:>12,} taken, {of['seconds']:>8,.0f} s")
    print(f"{'all':16} {sum(of['executions'] for of in every.values()):>12,} executions")


if __name__ == "__main__":
    sys.exit(main())
