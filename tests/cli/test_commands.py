"""The client half of the command, run in this process against a server that records what it gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import typer.main

from plaudit.cli.app import app
from plaudit.v1 import feedback_pb2
from support import builders
from support.recording_server import Recorder, recording_server
from support.shell import Shell, run_plaudit


@pytest.fixture
def server() -> Iterator[Recorder]:
    with recording_server() as recorder:
        recorder.manifest = {
            "spec": {"modalities": {"photo": {"kind": "image"}, "left": {"kind": "audio"}, "right": {"kind": "audio"}}}
        }
        yield recorder


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Recorder
) -> Shell:
    """``shell("versions", "--json")`` in an empty folder, with the recording server as target."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLAUDIT_SERVING__PORT", server.target.rpartition(":")[2])

    return partial(run_plaudit, monkeypatch, capsys)


def test_predict_by_name_sends_text_images_and_tensors(shell: Shell, server: Recorder, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(builders.png())
    np.save(tmp_path / "radar.npy", np.ones((2, 3)))
    done = shell(
        *("predict", "--content", "photo=@x.png", "--content", "radar=@radar.npy", "--content", "question=what=?"),
        *("--user", "ada", "--allow", "cat", "--allow", "dog", "--greedy", "--top-k", "2", "--explain"),
        *("--user-group", "premium"),
    )

    assert done.code == 0, done.err
    (request,) = server.received
    assert request.content["photo"].image == builders.png()
    assert list(request.content["radar"].tensor.shape) == [2, 3]
    assert request.content["question"].text == "what=?"
    assert (request.user_id, list(request.allowed_actions)) == ("ada", ["cat", "dog"])
    assert (request.greedy, request.top_k, request.explain, request.user_group) == (True, 2, True, "premium")
    assert "cat: picked with probability 0.250 by version 3 (candidate)" in done.out
    assert "prediction id: signed" in done.out


def test_predict_allows_all_actions_unless_told(shell: Shell, server: Recorder) -> None:
    assert shell("predict", "--content", "question=hi").code == 0
    assert list(server.received[0].allowed_actions) == []


def test_predict_sends_dynamic_actions(shell: Shell, server: Recorder) -> None:
    given = ("--dynamic-action", "block=block a card", "--dynamic-action", "pin=change = PIN")
    assert shell("predict", "--content", "question=hi", *given).code == 0
    sent = [(each.id, each.text) for each in server.received[0].dynamic_actions]
    assert sent == [("block", "block a card"), ("pin", "change = PIN")]


def test_predict_as_json_is_one_object_on_stdout(shell: Shell) -> None:
    done = shell("predict", "--content", "question=hi", "--json")
    assert json.loads(done.out)["scores"] == {"dog": 0.75, "cat": 0.25}
    assert done.err == ""


def test_predict_finds_the_modality_of_the_models_only_image(shell: Shell, server: Recorder, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(builders.png())
    assert shell("predict", "--image", "x.png").code == 0
    assert server.received[-1].content["photo"].image == builders.png()


def test_predict_sends_a_picture_that_only_the_server_can_name(shell: Shell, server: Recorder, tmp_path: Path) -> None:
    (tmp_path / "x.heif").write_bytes(b"some camera's own format")
    assert shell("predict", "--image", "x.heif").code == 0
    assert server.received[-1].content["photo"].image == b"some camera's own format"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--audio", "x.wav"], "2 modalities of kind audio"),
        (["--text", "hi"], "0 modalities of kind text"),
        (["--image", "gone.png"], "gone.png cannot be read"),
        (["--content", "photo"], "'photo' is not NAME=VALUE"),
        (["--content", "photo=@noise.bin"], "noise.bin is neither a known image"),
        (["--content", "x=@noise.npy"], "noise.npy is not a readable .npy file"),
        (["--content", "x=@empty.npy"], "empty.npy is not a readable .npy file"),
        (["--content", "x=1", "--content", "x=2"], "'x' is given twice"),
        (["--dynamic-action", "card"], "'card' is not ID=TEXT"),
        (["--dynamic-action", "a=x", "--dynamic-action", "a=y"], "the id 'a' is given twice"),
        (["--top-k", "-1"], "--top-k"),
        (["--speed", "9"], "--speed"),
    ],
)
def test_what_cannot_be_sent_is_named_and_exits_with_2(
    shell: Shell, server: Recorder, tmp_path: Path, arguments: list[str], said: str
) -> None:
    for name in ("noise.bin", "noise.npy", "x.wav"):
        (tmp_path / name).write_bytes(b"noise")
    (tmp_path / "empty.npy").touch()
    done = shell("predict", *arguments)
    assert done.code == 2
    assert said in _unwrapped(done.err)
    assert not any(request.DESCRIPTOR.name == "PredictRequest" for request in server.received)


@pytest.mark.parametrize(
    ("arguments", "signal"),
    [
        (["--up"], "thumb"),
        (["--down"], "thumb"),
        (["--rating", "0"], "rating"),
        (["--correct", "dog"], "correction"),
        (["--prefer", "dog", "cat"], "preference"),
        (["--implicit", "interrupted"], "implicit"),
        (["--retract", "f0"], "retract"),
        (["--retract-all"], "retract"),
    ],
)
def test_each_kind_of_feedback(shell: Shell, server: Recorder, arguments: list[str], signal: str) -> None:
    done = shell("feedback", "signed", *arguments, "--user", "ada", "--feedback-id", "f1", "--json")
    assert done.code == 0, done.err
    (request,) = server.received
    assert request.WhichOneof("signal") == signal
    assert (request.prediction_id, request.user_id, request.feedback_id) == ("signed", "ada", "f1")
    assert json.loads(done.out) == {"feedback_id": "f1", "duplicate": False, "error": ""}


def test_thumbs_are_not_mixed_up(shell: Shell, server: Recorder) -> None:
    shell("feedback", "signed", "--down")
    assert server.received[0].thumb == feedback_pb2.THUMB_DOWN


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--up", "--down"], "2 signals given"),
        ([], "0 signals given"),
        (["--implicit", "yawned"], "'yawned' is not one of"),
        (["--rating", "1.5"], "--rating"),
    ],
)
def test_feedback_that_says_too_much_too_little_or_nonsense_exits_with_2(
    shell: Shell, server: Recorder, arguments: list[str], said: str
) -> None:
    done = shell("feedback", "signed", *arguments)
    assert done.code == 2
    assert said in _unwrapped(done.err)
    assert server.received == []


def test_versions_as_a_table_and_as_json(shell: Shell) -> None:
    table = shell("versions").out
    assert "because" in table
    assert "model pets: version 3 is live, pinned, set by ada" in table
    listed = json.loads(shell("versions", "--json").out)
    assert (listed["versions"][0]["version"], listed["rollout"]["live"]) == (1, 3)


def test_one_version_shows_all_that_is_known(shell: Shell) -> None:
    shown = shell("versions", "show", "2").out
    assert shown.startswith("version 2\n")
    assert "photo" in shown
    one = json.loads(shell("versions", "show", "2", "--json").out)
    assert (one["version"], "modalities" in one["manifest"]["spec"]) == (2, True)


def test_two_versions_show_what_differs_and_which_comes_from_which(shell: Shell, server: Recorder) -> None:
    server.manifests = {1: {"floor": 0.02, "parent": None}, 3: {"floor": 0.05, "parent": 1}}
    shown = shell("versions", "diff", "1", "3").out
    assert "version 3 is not made from version 1" in shown  # as the list of versions does not say so
    assert "exploration floor  0.02       0.05" in shown
    told = json.loads(shell("versions", "diff", "1", "3", "--json").out)
    assert told["differences"][-1] == {"field": "exploration floor", "before": "0.02", "after": "0.05"}
    assert (told["before"], told["after"], told["ancestry"]) == (1, 3, [3])
    assert "version 1 is itself" in shell("versions", "diff", "1", "1").out


def test_options_before_a_subcommand_are_not_lost_in_silence(shell: Shell) -> None:
    done = shell("versions", "--json", "show", "2")
    assert (done.code, "put options behind 'show'" in _unwrapped(done.err)) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "request_name"),
    [
        (["promote", "4"], "PromoteRequest"),
        (["rollback"], "RollbackRequest"),
        (["pin", "4"], "PinRequest"),
        (["unpin"], "PinRequest"),
    ],
)
def test_changes_carry_reason_and_admin_token(
    shell: Shell, server: Recorder, monkeypatch: pytest.MonkeyPatch, arguments: list[str], request_name: str
) -> None:
    monkeypatch.setenv("PLAUDIT_SERVING__ADMIN_TOKEN", "sesame-sesame-sesame")
    done = shell(*arguments, "--reason", "it is better", "--json")
    (request,) = server.received
    assert (request.DESCRIPTOR.name, request.reason) == (request_name, "it is better")
    assert server.metadata["authorization"] == "Bearer sesame-sesame-sesame"
    assert json.loads(done.out)["generation"] == 7


def test_a_receipt(shell: Shell) -> None:
    assert json.loads(shell("receipt", "f1", "--json").out)["used_in_version"] == 4
    assert "used" in shell("receipt", "f1").out


def test_a_refusal_of_the_server_is_one_sentence_and_exits_with_1(shell: Shell, server: Recorder) -> None:
    server.failures.append((grpc.StatusCode.NOT_FOUND, "version: 9 does not exist; there are 1 to 3"))
    done = shell("promote", "9")
    assert (done.code, done.err) == (1, "plaudit: version: 9 does not exist; there are 1 to 3\n")


def test_no_server_is_said_with_its_address(shell: Shell) -> None:
    done = shell("versions", "--target", "127.0.0.1:1")
    assert done.code == 1
    assert "no server answers at 127.0.0.1:1" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["versions", "--config", "gone.toml"], "gone.toml: "),
        (["versions", "--config", "typo.toml"], "serving.prot: unknown setting"),
        (["promote", "0"], "greater than or equal to 1"),
        (["promote"], "N"),
        (["juggle"], "juggle"),
    ],
)
def test_usage_and_settings_exit_with_2(shell: Shell, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "typo.toml").write_text("[serving]\nprot = 1\n")
    done = shell(*arguments)
    assert done.code == 2
    assert said in _unwrapped(done.err)


def test_the_settings_file_in_this_folder_is_read(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "plaudit.toml").write_text("[serving]\nprot = 1\n")
    done = shell("versions")
    assert (done.code, done.err) == (2, "plaudit: plaudit.toml: serving.prot: unknown setting\n")


def test_help_teaches_every_command_with_an_example(shell: Shell) -> None:
    commands = list(_commands(typer.main.get_command(app)))
    assert ("promote",) in commands
    assert ("canary",) in commands
    assert ("deadletter", "replay") in commands
    without_example = [
        command
        for command in commands
        if "Example: plaudit " + " ".join(command) not in _unwrapped(shell(*command, "--help").out)
    ]
    assert without_example == []


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that does something: those of groups, and groups that work without one."""
    for name, command in group.commands.items():
        if not hasattr(command, "commands"):
            yield (*path, name)
            continue
        if command.invoke_without_command:
            yield (*path, name)
        yield from _commands(command, (*path, name))


@pytest.mark.parametrize("command", [("versions",), ("versions", "diff"), ("canary", "start"), ("raters", "list")])
def test_shared_options_are_options_of_each_command(shell: Shell, command: tuple[str, ...]) -> None:
    shown = shell(*command, "--help").out
    assert [option for option in ("--config", "--data-dir", "--json", "--model") if option not in shown] == []


def _unwrapped(text: str) -> str:
    """Without the box that typer draws around usage errors and help."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [
        ({}, "1000 0 False"),
        ({"OMP_WAIT_POLICY": "active"}, "None None False"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None False"),
    ],
)
def test_waiting_threads_sleep_by_the_time_torch_is_loaded(set_by_user: dict[str, str], expected: str) -> None:
    """OpenMP reads the environment once, when torch is loaded."""
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    script = (
        "import os, sys, plaudit.cli as cli; cli.waiting_threads_sleep(); "
        "print(*map(os.environ.get, ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME')), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=unset | set_by_user, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
