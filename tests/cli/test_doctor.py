"""What the doctor finds in real data directories, on real ports."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from plaudit.cli.doctor.checks import examine
from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings
from support import builders
from support.postgres_server import PASSWORD, PostgresServer
from support.recording_server import recording_server

FREE = {"serving": {"port": 0, "metrics_port": 0}, "learner": {"metrics_port": 0}}


def _settings(tmp_path: Path, **flags: Any) -> Settings:
    flags = FREE | flags
    return load_settings(None, {"data_dir": tmp_path / "data", "model": builders.tiny_spec().to_dict(), **flags})


def _findings(settings: Settings) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(settings)}


def _publish(settings: Settings, tmp_path: Path) -> None:
    registry = model_registry(settings)
    builders.tiny_bundle(tmp_path / "made")
    registry.publish(tmp_path / "made")
    registry.set_rollout(promote(registry.rollout(), 1, Change("ada", 1.0, "")))


def test_a_healthy_deployment_has_nothing_to_fix(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    _publish(settings, tmp_path)
    findings = _findings(settings)
    assert [finding for finding in findings.values() if finding.state is State.ERROR] == []
    assert "version 1 is live, every byte as sealed" in findings["registry"].message
    assert "tiny: image (image), audio (audio)" in findings["model"].message


def test_a_live_version_with_one_byte_changed_is_found(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    _publish(settings, tmp_path)
    head = model_registry(settings).folder(1) / "head.onnx"
    head.chmod(0o644)
    raw = bytearray(head.read_bytes())
    raw[len(raw) // 2] ^= 1
    head.write_bytes(bytes(raw))

    finding = _findings(settings)["registry"]
    assert finding.state is State.ERROR
    assert "head.onnx" in finding.message
    assert "rollback" in finding.fix


def test_what_is_no_model_and_no_version_is_noted(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    _publish(settings, tmp_path)
    assert "registry entries" not in _findings(settings)
    (tmp_path / "data" / "registry" / "lost+found").mkdir()
    (tmp_path / "data" / "registry" / "tiny" / "versions" / "000007").mkdir()
    findings = _findings(settings)
    assert findings["registry"].state is State.OK
    noted = findings["registry entries"]
    assert noted.state is State.NOTE
    assert "lost+found: " in noted.message
    assert "tiny/versions/000007: manifest.json" in noted.message


def test_an_empty_registry_says_how_to_fill_it(tmp_path: Path) -> None:
    finding = _findings(_settings(tmp_path))["registry"]
    assert (finding.state, "plaudit pretrain" in finding.fix) == (State.NOTE, True)


def test_a_store_with_experiences_is_good_and_a_wrong_password_is_named(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create_database()
    finding = _findings(_settings(tmp_path, store={"url": url}))["experience store"]
    assert (finding.state, finding.message) == (State.OK, "0 experiences from 0 signals")
    finding = _findings(_settings(tmp_path, store={"url": url.replace(PASSWORD, "secret")}))["experience store"]
    assert finding.state is State.ERROR
    assert "password authentication failed" in finding.message
    assert "secret" not in finding.message + finding.fix


def test_a_data_dir_that_is_a_file_is_bad_and_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    findings = _findings(_settings(tmp_path))
    assert findings["data_dir"].state is State.ERROR
    assert str(tmp_path / "data") in findings["data_dir"].message
    assert "registry" not in findings


def test_a_log_that_is_no_database_is_bad(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/log.sqlite").write_bytes(b"not a database at all" * 100)
    finding = _findings(_settings(tmp_path))["event log"]
    assert finding.state is State.ERROR
    assert "log.sqlite" in finding.message


def test_a_missing_model_table_is_bad(tmp_path: Path) -> None:
    assert _findings(_settings(tmp_path, model={}))["model"].state is State.ERROR


def test_a_port_in_use_is_bad(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        findings = _findings(_settings(tmp_path, serving={"port": 0, "metrics_port": port}))
    assert findings["serving.port"].state is State.OK
    assert findings["serving.metrics_port"].state is State.ERROR
    assert f"127.0.0.1:{port}" in findings["serving.metrics_port"].message


def test_the_consoles_port_is_looked_at_where_there_is_one(tmp_path: Path) -> None:
    assert "console.port" not in _findings(_settings(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        findings = _findings(_settings(tmp_path, console={"port": port}))
    assert findings["console.port"].state is State.ERROR


def test_a_port_plaudit_already_serves_on_is_good(tmp_path: Path) -> None:
    with recording_server() as server:
        port = int(server.target.rpartition(":")[2])
        finding = _findings(_settings(tmp_path, serving={"port": port, "metrics_port": 0}))["serving.port"]
    assert (finding.state, finding.message) == (State.OK, f"{port}: Plaudit is running there")


def test_open_admin_calls_on_a_public_port_are_noted(tmp_path: Path) -> None:
    serving = {"host": "0.0.0.0", "admin_address": "0.0.0.0:0", "port": 0, "metrics_port": 0}
    assert _findings(_settings(tmp_path, serving=serving))["admin token"].state is State.NOTE
    serving["admin_token"] = "sesame-sesame-sesame"
    assert _findings(_settings(tmp_path, serving=serving))["admin token"].state is State.OK


def test_a_missing_extra_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    finding = _findings(_settings(tmp_path))["extra learn"]
    assert (finding.state, "plaudit[learn]" in finding.fix) == (State.NOTE, True)


def test_cuda_that_is_not_there_is_bad(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("asking for CUDA is no error on a machine that has it")
    finding = _findings(_settings(tmp_path, serving=FREE["serving"] | {"device": "cuda"}))["device"]
    assert finding.state is State.ERROR
    assert "serving.device" in finding.message
