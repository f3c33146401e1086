"""How the demo sets itself up."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from plaudit.core.errors import ConfigError
from plaudit.core.settings import load_settings
from plaudit.demo.run import Options, _prepare, _settings
from plaudit.demo.services import toml
from plaudit.demo.task import SPEC


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not an earlier demo's"):
        _prepare(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_an_earlier_demo_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    _prepare(folder)
    (folder / "old").mkdir()
    _prepare(folder)
    assert [p.name for p in folder.iterdir()] == [".plaudit-demo"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    _prepare(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".plaudit-demo"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        _prepare(tmp_path / "file")


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
