"""The whole demo, small: real training, real services, real gRPC."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from plaudit.demo.run import PICTURE, SUMMARY, Options, run
from plaudit.demo.task import LABELLED_KINDS


@pytest.mark.slow
@pytest.mark.parametrize("log", ["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_the_demo_learns_serves_and_reports(
    tmp_path: Path, log: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAUDIT_LOG__KIND", log)
    if log == "kafka":
        monkeypatch.setenv("PLAUDIT_KAFKA__BOOTSTRAP_SERVERS", request.getfixturevalue("kafka").bootstrap)
    # A demo stays in its folder, whatever is set for the services of this machine.
    monkeypatch.setenv("PLAUDIT_DATA_DIR", str(tmp_path / "production"))
    shown = io.StringIO()
    options = Options(
        tmp_path / "demo", events=400, minutes=0.1, seed=5, pretrain_epochs=3, train_blocks=32, per_kind=20
    )
    summary = run(options, Console(file=shown, width=120))
    assert json.loads((options.data_dir / SUMMARY).read_text()) == summary
    assert (options.data_dir / "log.sqlite").exists() == (log == "sqlite")
    assert not (tmp_path / "production").exists()
    assert not (options.data_dir / "served").exists()
    with Image.open(options.data_dir / PICTURE) as picture:
        assert picture.width > 1000
    assert set(summary["pretrain"]["accuracy"]) == set(LABELLED_KINDS)
    assert set(summary["pretrain"]["without"]) == {"image", "audio", "question"}
    assert summary["requests"] == {"total": 800, "failed": 0, "problems": []}
    assert summary["answers_of_unknown_version"] == 0
    # 400 thumbs are 6 batches of 64, so at least one head was refreshed, went live and answered.
    assert summary["swaps"] >= 1
    assert summary["versions_served"]["head"] >= 1
    assert summary["freshness_s"]["versions"] >= 1
    assert "version 2 serves" in shown.getvalue()
    assert "users satisfied" in shown.getvalue()
