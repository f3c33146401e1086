"""What keeps a release from being made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import release


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clean repository that is ready to release 0.2.0."""
    (tmp_path / "services/plaudit").mkdir(parents=True)
    (tmp_path / "services/plaudit/__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 0.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message", "all")
    return tmp_path


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_nothing_keeps_a_release_that_is_ready(repository: Path) -> None:
    assert release.problems(repository, "0.2.0") == []


def test_every_place_that_has_another_version_is_named(repository: Path) -> None:
    told = "\n".join(release.problems(repository, "0.3.0"))
    assert all(name in told for name in ("__init__.py", "CITATION.cff", "CHANGELOG.md"))
    assert "'0.2.0'; set it to '0.3.0'" in told


def test_a_version_is_three_numbers(repository: Path) -> None:
    assert release.problems(repository, "v1") == ["VERSION: 'v1' is no version; give three numbers, such as 0.2.0"]


def test_changes_and_an_old_tag_keep_a_release(repository: Path) -> None:
    _git(repository, "tag", "v0.2.0")
    (repository / "CITATION.cff").write_text("version: 0.2.0\n")
    told = release.problems(repository, "0.2.0")
    assert [problem.partition(";")[0].partition("\n")[0] for problem in told] == [
        "git: the tree has changes",
        "git: the tag v0.2.0 exists",
    ]
