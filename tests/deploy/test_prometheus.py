"""Rules, alerts, dashboards and metrics under a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from plaudit.client import Client, ClientError, audio, image, tensor
from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Change, promote
from support import builders
from support.deployment import PLAUDIT, Service, deployed
from support.programs import promtool
from support.scraping import Prometheus, get, scraping, until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/prometheus"
DASHBOARDS = ROOT / "deploy/grafana"


def _promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    program = promtool()
    return subprocess.run(
        [program.path, *arguments],
        input=stdin,
        env=dict(program.environment),
        capture_output=True,
        text=True,
        check=False,
    )


def _alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _panels() -> list[tuple[str, str]]:
    """Title and query of every panel of every dashboard that always has data; tests/deploy/test_series.py has all."""
    return [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        if "noValue" not in panel.get("fieldConfig", {}).get("defaults", {})
        for target in panel.get("targets", [])
    ]


# --- what needs no service -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
)
def test_promtool_has_no_complaint(check: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEPLOY)
    done = _promtool(*check)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire_and_to_keep_quiet() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    tested = {(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]}
    assert tested == {(alert["alert"], fires) for alert in _alerts() for fires in (True, False)}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), flags=re.MULTILINE)
    assert [section.lower() for section in sections] == [
        alert["annotations"]["runbook"].removeprefix("docs/runbooks.md#") for alert in _alerts()
    ]


def test_the_dashboards_are_what_their_source_says(tmp_path: Path) -> None:
    shutil.copy(DASHBOARDS / "dashboards.py", tmp_path)
    subprocess.run([PLAUDIT[0], tmp_path / "dashboards.py"], check=True)
    made = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert made == {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")}


# --- what needs one --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deployment:
    config: Path
    up: Service
    target: str
    metrics: dict[str, str]
    prometheus: Prometheus


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """`plaudit up`, scraped five times a second, whose alerts wait for nothing."""
    folder = tmp_path_factory.mktemp("deployment")
    config = deployed(folder)
    up = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
    try:
        ready = up.ready("serve", "learn")
        metrics = {name: event["metrics"] for name, event in ready.items()}
        with scraping(folder, {f"plaudit-{name}": [page] for name, page in metrics.items()}) as asked:
            yield Deployment(config, up, ready["serve"]["address"], metrics, asked)
    finally:
        up.kill()


def _traffic(target: str) -> None:
    """Some of everything: kinds of content, kinds of feedback, and what is refused."""
    with Client(target) as client:
        for seed in range(12):
            content: dict[str, Any] = {
                "image": image(builders.png(seed)),
                "audio": audio(builders.wav(seed)),
                "question": "which?",
            }
            answer = client.predict(content, user_id=f"user {seed}")
            client.thumbs_up(answer) if seed % 2 else client.thumbs_down(answer)
            client.correct(answer, "cat")
        with pytest.raises(ClientError):
            client.predict({"sensor": tensor([1.0])})
        until(lambda: client.versions().rollout.live != 1)


@pytest.mark.parametrize("service", ["serve", "learn"])
def test_promtool_has_no_complaint_about_the_metrics(deployment: Deployment, service: str) -> None:
    _traffic(deployment.target)
    done = _promtool("check", "metrics", stdin=get(f"http://{deployment.metrics[service]}/metrics"))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_series_of_a_learner_names_its_model(deployment: Deployment) -> None:
    _traffic(deployment.target)
    families = text_string_to_metric_families(get(f"http://{deployment.metrics['learn']}/metrics"))
    assert {sample.labels.get("model") for family in families for sample in family.samples} == {"tiny"}


def test_every_query_of_every_panel_has_data(deployment: Deployment) -> None:
    _traffic(deployment.target)
    assert len(_panels()) > 40

    def without_data() -> list[str]:
        _traffic(deployment.target)
        return [
            f"{title}: {query}"
            for title, query in _panels()
            if not _numbers(deployment.prometheus, query.replace("$__rate_interval", "1m"))
        ]

    missing = without_data()
    for _ in range(10):
        if not missing:
            return
        missing = without_data()
    pytest.fail("\n".join(missing))


def _numbers(asked: Prometheus, query: str) -> list[float]:
    values = [float(series["value"][1]) for series in asked.query(query)]
    return [value for value in values if value == value]  # not NaN, which is nothing divided by nothing


def test_a_version_that_fails_its_proof_and_a_service_that_is_gone_raise_alarms(
    deployment: Deployment, tmp_path: Path
) -> None:
    asked = deployment.prometheus
    _traffic(deployment.target)
    assert asked.firing() & {"PlauditServingDown", "PlauditVersionFailsProof"} == set()

    registry = model_registry(load_settings(deployment.config))
    builders.tiny_bundle(tmp_path / "made", seed=5)
    damaged = registry.publish(tmp_path / "made").version
    graph = registry.folder(damaged) / "trunk.onnx"
    whole = graph.read_bytes()
    graph.unlink()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    registry.set_rollout(promote(registry.rollout(), damaged, Change("a test", 1.0, "a fault")))
    until(lambda: "PlauditVersionFailsProof" in asked.firing())

    deployment.up.kill()
    until(lambda: "PlauditServingDown" in asked.firing())
    until(lambda: "PlauditLearnerDown" in asked.firing())
