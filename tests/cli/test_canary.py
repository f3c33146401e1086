"""`plaudit canary` and compare-and-set from the shell, against a real service and a real learner."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import builders
from deployment import PLAUDIT, Service, deployed
from plaudit import compose
from plaudit.client import Client
from plaudit.core.rollout import on_trial
from plaudit.core.settings import load_settings


@dataclass
class Shop:
    """Versions 1 (live) and 2, a service and a learner that run."""

    config: Path
    target: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*PLAUDIT, *arguments, "--config", str(self.config), "--target", self.target]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    config = deployed(tmp_path)
    with config.open("a") as file:
        file.write("[canary]\nshare = 0.3\n[canary.models.tiny]\nshare = 0.25\n")
    registry = compose.model_registry(load_settings(config))
    builders.tiny_bundle(tmp_path / "two", seed=2, prefer="fish")
    registry.publish(tmp_path / "two")
    up = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
    try:
        target = up.event(event="ready", service="serve")["address"]
        up.event(event="ready", service="learn")
        yield Shop(config, target)
    finally:
        up.kill()


def test_a_trial_from_the_shell(shop: Shop) -> None:
    assert "no version is on trial" in shop.run("canary").stdout
    nothing = shop.run("canary", "stop")
    assert (nothing.returncode, "no version is on trial" in nothing.stderr) == (1, True)
    nothing = shop.run("canary", "promote")
    assert (nothing.returncode, "no version is on trial" in nothing.stderr) == (1, True)

    began = shop.json("canary", "start", "2", "--reason", "let us see")
    assert (began["candidate"], began["candidate_share"], began["reason"]) == (2, 0.25, "let us see")
    again = shop.run("canary", "start", "2")
    assert "version: 2 is on trial already; stop that trial first (plaudit canary stop)" in again.stderr

    registry = compose.model_registry(load_settings(shop.config))
    rollout = registry.rollout()
    with Client(shop.target) as client:
        content = {"question": "which animal is it"}
        for user in [f"user {number}" for number in range(20)]:
            answer = client.predict(content, user_id=user)
            assert (answer.version == 2) == on_trial(rollout, user)
            client.thumbs_up(answer)
    trial: dict[str, Any] | None = None
    while trial is None or trial["n"] < 10 or trial["answers"]["live"]["answered"] == 0:
        trial = shop.json("canary")["trial"]
    shown = shop.run("canary").stdout
    assert "version 2 is on trial with 25% of the users" in shown
    assert "trial of version 2 with 25% of the users: under way" in shown
    assert "for more failures" in shown
    assert "trial of version 2" in shop.run("versions", "show", "2").stdout

    promoted = shop.json("canary", "promote")
    assert (promoted["live"], promoted["candidate"]) == (2, None)
    shown = ""
    while "ended the trial" not in shown:
        shown = shop.run("versions", "show", "2").stdout
    assert "trial of version 2 with 25% of the users: promote" in shown


def test_compare_and_set_from_the_shell(shop: Shop) -> None:
    shadow = shop.json("canary", "start", "2", "--shadow", "--share", "1", "--expect", "1")
    assert (shadow["shadow"], shadow["candidate_share"]) == (True, 1.0)
    assert "requests, in the shadow" in shop.run("versions").stdout
    for command in (["canary", "stop"], ["canary", "promote"], ["promote", "2"], ["pin", "2"], ["unpin"], ["rollback"]):
        late = shop.run(*command, "--expect", "1")
        assert late.returncode == 1
        assert f"the rollout is at generation {shadow['generation']}, not 1; look again" in late.stderr
    assert shop.json("canary", "stop", "--expect", str(shadow["generation"]))["candidate"] is None
