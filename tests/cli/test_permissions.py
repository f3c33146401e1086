"""What commands write is for their user alone, unless the settings share it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.cli.options import CommonOptions
from plaudit.compose.paths import data_dir


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("line", "folder_mode", "file_mode"), [("", 0o700, 0o600), ('umask = "027"\n', 0o750, 0o640)])
def test_the_data_directory_is_private(tmp_path: Path, line: str, folder_mode: int, file_mode: int) -> None:
    """Content and ids of users were readable by every local user."""
    config = tmp_path / "plaudit.toml"
    config.write_text(f"{line}data_dir = '{tmp_path / 'data'}'\n")
    directory = data_dir(CommonOptions(config=config).settings())
    with closing(SqliteLog(directory / "log.sqlite")):
        assert mode(directory) == folder_mode
        assert {mode(path) for path in directory.iterdir()} == {file_mode}
