"""How the demo sets itself up."""

from __future__ import annotations

import io
import socket
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from plaudit.compose.settings import load_settings
from plaudit.core.errors import ConfigError
from plaudit.demo.folder import MARKER, demo_folder
from plaudit.demo.run import Options, _settings, run
from plaudit.demo.services import toml
from plaudit.demo.task import SPEC


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not an earlier demo's"), demo_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_an_earlier_demo_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with demo_folder(folder):
        (folder / "old").mkdir()
        (folder / "old" / "file").touch()
        (folder / "summary.json").touch()
    with demo_folder(folder):
        assert [p.name for p in folder.iterdir()] == [MARKER]


def test_a_demo_that_is_running_is_left_alone(tmp_path: Path) -> None:
    with demo_folder(tmp_path):
        (tmp_path / "registry").mkdir()
        with pytest.raises(ConfigError, match="another demo is running"), demo_folder(tmp_path):
            pass
        assert (tmp_path / "registry").exists()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    with demo_folder(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [MARKER]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"), demo_folder(tmp_path / "file"):
        pass


def test_what_goes_wrong_in_a_demo_is_not_blamed_on_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), demo_folder(tmp_path):
        raise FileNotFoundError("of something else")


def test_a_console_port_that_is_taken_is_told_before_anything_is_done(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"console.port: cannot listen on {port}.*--console-port"):
            run(Options(tmp_path / "demo", console_port=port), Console(file=io.StringIO()))
    assert not (tmp_path / "demo").exists()


def test_the_demos_settings_can_be_read_back(tmp_path: Path) -> None:
    """So that `plaudit up --config` can go on where the demo ended."""
    written = _settings(Options(tmp_path, pretrain_epochs=7, seed=3))
    text = toml(written)
    assert tomllib.loads(text) == written
    (tmp_path / "plaudit.toml").write_text(text)
    settings = load_settings(tmp_path / "plaudit.toml")
    assert settings.spec() == SPEC
    assert (settings.pretrain.max_epochs, settings.pretrain.seed, settings.serving.port) == (7, 3, 0)
    assert settings.data_dir == tmp_path.resolve()
