"""The command, run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from plaudit.cli import main


class Done(NamedTuple):
    """Exit code and output of a command that has ended."""

    code: int
    out: str
    err: str


Shell = Callable[..., Done]


def run_plaudit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    monkeypatch.setattr(sys, "argv", ["plaudit", *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return Done(code, *capsys.readouterr())
