"""Generated pages are what the code says today, and the whole site builds without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.markdown import ROOT
from tools import generate_docs


def test_every_generated_page_is_current() -> None:
    assert generate_docs.stale() == [], "run `make reference` and commit the result"


def test_the_reference_names_every_setting_command_and_metric() -> None:
    made = {path.name: text for path, text in generate_docs.pages().items()}
    assert all(f"`{name}`" in made["settings.md"] for name in generate_docs.setting_names())
    assert all(f"## {path}\n" in made["cli.md"] for path, _ in generate_docs.commands())
    for module in generate_docs.METRIC_MODULES.values():
        assert all(f"`{name}`" in made["metrics.md"] for name, *_ in generate_docs.metric_families(module))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "index.html").is_file()
