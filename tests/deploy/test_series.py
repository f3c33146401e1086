"""Series that alerts, rules, dashboards and tests name, compared with those that the services export.

A selector with a label value that nothing exports never matches, and the alert on it never fires: its own test, which
invents the same value, does not see that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import grpc
import pytest
import yaml
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry

from plaudit.inference import open_inference_pb2
from plaudit.learner.metrics import LearnerMetrics
from plaudit.serving.grpc.interceptors import metric_label
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.version_metrics import FAST_S
from plaudit.v1 import feedback_pb2, model_pb2, prediction_pb2
from plaudit_models.evaluation.gate import Verdict

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
_SELECTOR: Final = re.compile(r"(?<![\w:])(up|(?:\w+:)?plaudit_\w+(?::\w+)?)(?:\{([^}]*)\})?")
_MATCHER: Final = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_OF_SCRAPES: Final = {"instance": {r".*"}, "job": {"plaudit-serve", "plaudit-learn"}, "model": {r".*"}}


def _methods() -> set[str]:
    files = (prediction_pb2, feedback_pb2, model_pb2, open_inference_pb2, reflection_pb2)
    names = {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    return {label for name in names if (label := metric_label(name)) is not None}


def _exported() -> Mapping[str, set[str]]:
    """Names of samples, each with the names of its labels."""
    names: dict[str, set[str]] = {"up": set()}
    registry = CollectorRegistry()
    metrics = [*vars(ServingMetrics(registry)).values(), *vars(LearnerMetrics(registry)).values()]
    metrics += [each for group in metrics if isinstance(group, tuple) for each in group]
    labels = {each._name: set(_labels(each)) for each in metrics if hasattr(each, "_name")}
    for family in registry.collect():
        own = labels.get(family.name, set())
        if family.type == "histogram":
            names |= {f"{family.name}_bucket": own | {"le"}, f"{family.name}_count": own, f"{family.name}_sum": own}
        else:
            names[family.name + ("_total" if family.type == "counter" else "")] = own
    return names


def _labels(metric: Any) -> Sequence[str]:
    """Names of labels, which neither prometheus_client nor ours tells before there are samples."""
    names: Sequence[str] = getattr(metric, "_labelnames", ())
    return names or getattr(metric, "_labels", ())


EXPORTED: Final = _exported()
VALUES: Final[Mapping[str, set[str]]] = {
    **_OF_SCRAPES,
    "method": _methods(),
    "code": {code.name for code in grpc.StatusCode},
    "le": {f"{bound:g}" if bound % 1 else f"{bound:.1f}" for bound in (*FAST_S, 5.0)} | {"+Inf"},
    "outcome": {"started", "resumed", "succeeded", "failed"},
    "verdict": set(get_args(Verdict)),
    "gpu": {r".*"},
}


def _selectors(text: str) -> Iterator[tuple[str, str]]:
    for found in _SELECTOR.finditer(text):
        yield found[1], found[2] or ""


def _named() -> list[Any]:
    """Every selector in the deployment's files, with the place that it stands in."""
    found = []
    for name in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"]:
            for rule in group["rules"]:
                place = rule.get("alert", rule.get("record"))
                found += [pytest.param(*each, id=f"{place}: {each[0]}") for each in _selectors(rule["expr"])]
    for test in yaml.safe_load((DEPLOY / "prometheus/alerts_test.yml").read_text())["tests"]:
        for series in test["input_series"]:
            found += [pytest.param(*each, id=f"{test['name']}: {each[0]}") for each in _selectors(series["series"])]
    for dashboard in sorted((DEPLOY / "grafana").glob("*.json")):
        for panel in json.loads(dashboard.read_text())["panels"]:
            for target in panel.get("targets", []):
                found += [pytest.param(*each, id=f"{panel['title']}: {each[0]}") for each in _selectors(target["expr"])]
    return found


def _recorded() -> set[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


@pytest.mark.parametrize(("metric", "matchers"), _named())
def test_what_is_selected_is_exported(metric: str, matchers: str) -> None:
    assert metric in EXPORTED or metric in _recorded()
    for label, operator, value in _MATCHER.findall(matchers):
        if metric in EXPORTED:
            assert label in EXPORTED[metric] | {"instance", "job", "model"}
        known = VALUES[label]
        if operator == "=~":
            assert any(re.fullmatch(value, each) for each in known), f"no {label} matches {value}"
        else:
            assert value in known or r".*" in known, f"no {label} is {value}"
