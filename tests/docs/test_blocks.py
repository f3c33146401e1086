"""Blocks of the pages at work: Python runs against a server, commands are parsed, TOML is loaded."""

from __future__ import annotations

import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer.main

from plaudit.cli.app import app
from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Change, promote
from plaudit_models.spec import ModelSpec, spec_from_dict
from support import builders
from support.deployment import PLAUDIT, Service
from support.markdown import ROOT, Block, blocks, code_spans, pages

ALL = [block for page in pages() for block in blocks(page)]
DEFAULT_PAGE = ROOT / "docs/tutorials/your-own-model.md"
"""Has the model that pages without one of their own talk to."""
ADDRESS = '"127.0.0.1:8001"'


def _of(language: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", [block for block in ALL if block.language == language], ids=str)


# --- TOML ------------------------------------------------------------------------------------------------------------


@_of("toml")
def test_toml_is_loaded(block: Block, tmp_path: Path) -> None:
    config = tmp_path / "plaudit.toml"
    config.write_text(block.text)
    settings = load_settings(config)
    if settings.model:
        settings.spec()


# --- Python ----------------------------------------------------------------------------------------------------------


def _model_of(page: Path) -> ModelSpec | None:
    described = [tomllib.loads(block.text).get("model") for block in blocks(page) if block.language == "toml"]
    return next((spec_from_dict(model) for model in described if model), None)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Address of a server of the model that a page describes; started once for each model."""
    running: dict[str, tuple[Service, str]] = {}

    def serve(page: Path) -> str:
        spec = _model_of(page) or _model_of(DEFAULT_PAGE)
        assert spec is not None
        if spec.name not in running:
            folder = tmp_path_factory.mktemp(spec.name)
            config = folder / "plaudit.toml"
            config.write_text(f'data_dir = "{folder / "data"}"\n[serving]\nport = 0\nmetrics_port = 0\n')
            registry = model_registry(load_settings(config), spec.name)
            builders.tiny_bundle(folder / "made", spec=spec)
            registry.publish(folder / "made")
            registry.set_rollout(promote(registry.rollout(), 1, Change("ada", 1.0, "")))
            service = Service([*PLAUDIT, "serve", "--config", str(config), "--json"])
            running[spec.name] = service, service.event(event="ready")["address"]
        return running[spec.name][1]

    yield serve
    for service, _ in running.values():
        service.kill()


@_of("python")
def test_python_runs(
    block: Block, serving: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with the files that blocks read, with the server's address in place of the default one."""
    (tmp_path / "cat.png").write_bytes(builders.png())
    (tmp_path / "cat.wav").write_bytes(builders.wav())
    monkeypatch.chdir(tmp_path)
    program = block.text.replace(ADDRESS, f'"{serving(block.page)}"')
    with redirect_stdout(io.StringIO()):
        exec(compile(program, str(block), "exec"), {"__name__": "__main__"})


# --- commands --------------------------------------------------------------------------------------------------------


def _typed(block: Block) -> Iterator[str]:
    """Command lines of a block; what follows two blanks is a remark."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if re.match(r"(?:\$ )?plaudit [a-z]", line):
            yield re.split(r"\s{2,}(?![-\"'])", line.removeprefix("$ "))[0].removesuffix(" &")


COMMANDS = [
    pytest.param(line, id=f"{block}-{line}")
    for block in ALL
    if block.language in ("", "text", "bash")
    for line in _typed(block)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_parsed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real parser, which runs no command. Files named are there, and empty."""
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)[1:]
    for argument in arguments:
        if re.search(r"\.(onnx|txt|npz|toml|png|wav|jpg)$", argument):
            (tmp_path / argument).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / argument).touch()
        elif argument in ("data", "FOLDER"):
            (tmp_path / argument).mkdir(exist_ok=True)
    command: Any = typer.main.get_command(app)
    parent = command.make_context("plaudit", arguments)
    while hasattr(command, "commands"):
        rest = [*parent._protected_args, *parent.args]
        if not rest:
            assert command.invoke_without_command, f"{line}: a subcommand is missing"
            return
        name, command, rest = command.resolve_command(parent, rest)
        parent = command.make_context(name, list(rest), parent=parent)


PRESENT = [page for page in pages() if page.name != "CHANGELOG.md"]
SPANS = sorted({span for page in PRESENT for span in code_spans(page) if re.match(r"plaudit [a-z]+", span)})


@pytest.mark.parametrize("span", SPANS)
def test_commands_named_in_text_exist(span: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in shlex.split(span)[1:]:
        if not hasattr(command, "commands") or word.startswith("-") or not re.fullmatch("[a-z-]+", word):
            break
        assert word in command.commands, f"{span}: there are {sorted(command.commands)}"
        command = command.commands[word]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    typed = {word.partition("=")[0] for word in span.split() if word.startswith("--")}
    assert typed - options - {"--help", "--version"} == set()
