"""What people are told about versions, from manifests as JSON gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit_models.evaluation.gate import GateRules, new_comparison
from plaudit_models.version_card import Difference, ancestry, card, differences, sections, size_words
from support.builders import NOW_S, tiny_bundle


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    data = {"experiences": 64, "feedback": 65, "last_feedback_time_s": NOW_S, "rows": {"train": 100, "val": 10}}
    raw: dict[str, Any] = json.loads(tiny_bundle(tmp_path / "a", data=data, parent=1).to_json())
    accuracy = {"overall": 0.5, "by_group": {"see": 0.25, "hear": 0.75}}
    raw["metrics"] = {
        "accuracy": accuracy,
        "without": {"image": {"overall": 0.1, "by_group": {"hear": 0.2}}},
        "steps": 7,
        "kl_to_parent_nats": 0.0625,
    }
    raw["gate"] = new_comparison(GateRules()).report().to_dict()
    raw["gate"] |= {"slices": [{"name": "image: cat", "n": 9, "gain": 0.5, "e_value_harm": 1.0, "threshold": 40.0}]}
    return raw


def _facts(manifest: dict[str, Any]) -> dict[str, str]:
    return {name: value for section in sections(manifest) for name, value in section.facts}


def test_all_that_is_known_is_said(manifest: dict[str, Any]) -> None:
    facts = _facts(manifest)
    assert facts["kind"] == "pretrained (trained on labelled data)"
    assert facts["parent"] == "version 1"
    assert facts["made"] == "2023-11-14 22:13:20 UTC"
    assert facts["digest"] == manifest["digest"]
    assert facts["golden digest of the trunk"] == manifest["files"]["trunk_golden.safetensors"]["sha256"]
    assert facts["image"] == "image (height 8, width 8, channels 1)"
    assert facts["sensor"] == "tensor (shape 4)"
    assert facts["actions"] == "4: cat, dog, bird, fish"
    assert (facts["experiences"], facts["signals taken in"]) == ("64", "65")
    assert facts["up to feedback of"] == "2023-11-14 22:13:20 UTC"
    assert facts["labelled rows (train)"] == "100"
    assert facts["mean KL from its parent, in nats"] == "0.0625"
    assert (facts["steps"], facts["verdict"], facts["raters"]) == ("7", "insufficient", "0")


def test_metrics_are_shown_slice_by_slice(manifest: dict[str, Any]) -> None:
    (measured,) = [section for section in sections(manifest) if section.title == "What was measured"]
    (table,) = measured.tables
    assert table.header == ["slice", "right", "without image"]
    assert table.rows == [["all", "50.0%", "10.0%"], ["see", "25.0%", "–"], ["hear", "75.0%", "20.0%"]]


def test_the_card_has_the_sections_as_markdown(manifest: dict[str, Any]) -> None:
    lines = card(manifest).splitlines()
    assert lines[:3] == ["# tiny", "", "Trained on labelled data. made by a test"]
    assert "## At the gate" in lines
    assert "| image: cat | 9 | +0.500 | 1 | 40 |" in lines
    assert "- 0 decisions counted, 100 are needed before any verdict" in lines
    headings = [number for number, line in enumerate(lines) if line.startswith("#")]
    assert all(lines[number + 1] == "" for number in headings)


def test_a_manifest_that_says_little_is_shown_as_it_is() -> None:
    assert card({"floor": 0.02}).splitlines()[0] == "# a model"
    assert _facts({"floor": 0.02}) == {"parent": "none", "exploration floor": "0.02"}


def test_a_reward_model_is_shown_with_its_reliability() -> None:
    """What it does not know, here its losses, is left out."""
    report = {"trained_on": 80, "held_out": 10, "slope": 0.8, "predicted": [0.25, 0.75], "observed": [0.2, 0.8]}
    unsure = {"sigma_mean": 0.2, "sigma": [0.1, 0.3], "error": [0.2, 0.4], "error_expected": [0.18, 0.3]}
    report |= {**unsure, "sigma_count": [5, 5]}
    metrics = {"steps": 7, "reward_model": {**report, "count": [4, 6], "calibration_error": 0.05}}
    shown = card({"metrics": metrics}).splitlines()
    start = shown.index("## The reward model it was trained with")
    assert shown[start + 2 :] == [
        "- experiences trained on: 80",
        "- calibrated by a slope of: 0.8",
        "- measured on: 10",
        "- expected calibration error: 0.05",
        "- uncertainty, mean standard deviation: 0.2",
        "",
        "| predicted reward | observed | n |",
        "| --- | --- | --- |",
        "| 0.25 | 0.20 | 4 |",
        "| 0.75 | 0.80 | 6 |",
        "",
        "| uncertainty | mean error | if predictions were exact | n |",
        "| --- | --- | --- | --- |",
        "| 0.100 | 0.200 | 0.180 | 5 |",
        "| 0.300 | 0.400 | 0.300 | 5 |",
    ]


def test_versions_differ_where_they_do(manifest: dict[str, Any]) -> None:
    other = json.loads(json.dumps(manifest))
    other |= {"parent": 2, "kind": "head"}
    other["metrics"]["accuracy"]["by_group"]["see"] = 0.5
    other["files"]["extra.json"] = {"sha256": "ab" * 32, "size_bytes": 1234}
    del other["data"]["rows"]
    found = differences(manifest, other)
    assert [each.field for each in found] == [
        "kind",
        "parent",
        "size",
        "labelled rows (train)",
        "labelled rows (val)",
        "see",
        "extra.json",
    ]
    assert found[1] == Difference("parent", "version 1", "version 2")
    assert found[3] == Difference("labelled rows (train)", "100", None)
    assert found[5] == Difference("see", "right 25.0%, without image –", "right 50.0%, without image –")
    assert found[6] == Difference("extra.json", None, "abababababababab (1.2 kB)")
    assert differences(manifest, manifest) == []


def test_ancestry_goes_back_as_far_as_is_known() -> None:
    assert ancestry(5, {5: 3, 3: 1, 1: None, 2: 1}) == [5, 3, 1]
    assert ancestry(5, {5: 3}) == [5, 3]


@pytest.mark.parametrize(("size_bytes", "words"), [(149, "0.1 kB"), (35_605, "35.6 kB"), (3_650_046, "3.7 MB")])
def test_sizes_are_in_words(size_bytes: int, words: str) -> None:
    assert size_words(size_bytes) == words
