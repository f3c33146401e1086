"""Escapes that clients have sent do not reach the terminal of an operator."""

from __future__ import annotations

import io
import sys

import pytest
import structlog
from rich.console import Console

from plaudit.cli import failures, output
from plaudit.cli.processes.services import log_to_stderr
from plaudit.client import RolloutSnapshot

FORGED = "ada\x1b[1A\x1b[2Kmallory  trusted"
"""Erases the row above and writes another one."""


def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(output.out, "file", text)
    return text


def test_a_user_id_can_forge_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in https://github.com/rust-secure-code/cargo-supply-chain/issues/52."""
    text = shown(monkeypatch)
    row = {"user": FORGED + "\nx", "group": "", "trust_level": "heard", "floods": False, "suspected": False}
    row |= {"n": 1, "refused": 0, "reliability": 0.5}
    output.print_raters([row])
    assert "\x1b" not in text.getvalue()
    assert "ada\\x1b[1A\\x1b[2Kmallory  trusted\\nx" in text.getvalue()
    assert len(text.getvalue().splitlines()) == 2


def test_a_reason_acts_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch)
    fields = {"model": "m", "generation": 1, "live": 1, "reason": FORGED, "actor": "\x9b2J", "changed_at_s": 1.0}
    unset = {name: None for name in RolloutSnapshot.__dataclass_fields__ if name not in fields}
    output.print_rollout(RolloutSnapshot(**{**unset, **fields}))  # type: ignore[arg-type]
    assert "\x1b" not in text.getvalue()
    assert "\x9b" not in text.getvalue()


def test_our_own_colours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system="standard", highlight=False)
    console.push_render_hook(output._Harmless())
    console.print("red", style="red")
    assert "\x1b[31m" in text.getvalue()


def test_an_error_acts_on_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), failures.exit_codes():
        raise failures.CommandFailed(FORGED)
    assert "\x1b" not in capsys.readouterr().err


def test_a_line_of_the_log_acts_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before, terminal = structlog.get_config(), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    try:
        log_to_stderr()
        logger = structlog.get_logger("test")
        try:
            raise ValueError(FORGED)
        except ValueError:
            logger.exception("refused", request_id=FORGED)
    finally:
        structlog.configure(**before)
    assert "[1A\x1b" not in terminal.getvalue()
    assert "\x1b[2K" not in terminal.getvalue()
    assert "mallory" in terminal.getvalue()
