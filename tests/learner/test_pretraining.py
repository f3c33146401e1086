"""From a labelled data folder to a version in a real registry, on a task small enough to learn in a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.learner.finetuning.pretraining import Published, golden_inputs, pretrain_and_publish
from plaudit_models.bundle import TOKENIZER, verify
from plaudit_models.data.config import DataConfig, TargetKind
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.labelled import LabelledData
from plaudit_models.spec import PRESENT, ModelSpec, TensorModality, TextModality
from plaudit_models.training.config import PretrainConfig
from plaudit_models.training.pretrain import PretrainProgress

SPEC = ModelSpec(name="pets", modalities={"text": TextModality(max_tokens=4)}, actions=("cat", "dog"), embedding_size=8)
SOUNDS = {"cat": ("meow", "purr"), "dog": ("woof", "growl")}


def _write(folder: Path, rows: dict[str, int]) -> Path:
    lines = ["split,action,text"]
    for split, count in rows.items():
        for i in range(count):
            action = SPEC.actions[i % 2]
            lines.append(f"{split},{action},it says {SOUNDS[action][i // 2 % 2]}")
    folder.mkdir()
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def _pretrain(folder: Path, registry: DirectoryRegistry, *, max_epochs: int = 20, **options: Any) -> Published:
    config = PretrainConfig(max_duration_s=60.0, max_epochs=max_epochs, batch=16)
    return pretrain_and_publish(folder, SPEC, registry, now_s=1.0, floor=0.02, config=config, threads=1, **options)


def test_the_first_version_goes_live_and_the_second_waits(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", SPEC.name)
    reports: list[PretrainProgress] = []
    data = _write(tmp_path / "sounds", {"train": 64, "val": 8, "test": 8})

    first = _pretrain(data, registry, on_progress=reports.append)
    assert first.live
    assert first.accuracy.overall == 1.0
    assert set(first.without) == {"text"}
    assert first.without["text"].overall == 0.5
    assert reports[-1].fraction > 0.0

    manifest = verify(registry.folder(1))
    assert (manifest.kind, manifest.floor, manifest.parent) == ("pretrained", 0.02, None)
    assert manifest.reason == "pre-trained on 64 labelled rows of sounds"
    assert manifest.data == {"folder": str(data), "rows": {"train": 64, "val": 8}}
    assert manifest.metrics["split"] == "test"
    assert TOKENIZER in manifest.files
    rollout = registry.rollout()
    assert (rollout.live, rollout.gated, rollout.actor) == (1, 1, "pretrain")

    without_test = _write(tmp_path / "fewer", {"train": 32, "val": 8})
    second = _pretrain(without_test, registry, max_epochs=1)
    assert second.manifest.metrics["split"] == "val"
    assert (second.manifest.version, second.live, registry.rollout().live) == (2, False, 1)


@pytest.mark.parametrize("kind", ["actions", "ranking"])
def test_targets_of_every_kind_are_learned(tmp_path: Path, kind: TargetKind) -> None:
    """Rows of weight 0 say the opposite, and are not heeded."""
    separator = "|" if kind == "actions" else ">"
    folder = tmp_path / "sounds"
    folder.mkdir()
    lines = ["split,action,text,weight"]
    for split, count in {"train": 64, "val": 8, "test": 8}.items():
        for i in range(count):
            right, other = SPEC.actions[i % 2], SPEC.actions[(i + 1) % 2]
            cell = right if kind == "actions" else f"{right}{separator}{other}"
            lines.append(f"{split},{cell},it says {SOUNDS[right][i // 2 % 2]},1")
    lines += [f"train,{SPEC.actions[i % 2]},it says {SOUNDS[SPEC.actions[(i + 1) % 2]][0]},0" for i in range(32)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    registry = DirectoryRegistry(tmp_path / "registry", SPEC.name)
    published = _pretrain(folder, registry, data=DataConfig(target_kind=kind))
    assert published.accuracy.overall == 1.0


def test_a_folder_without_validation_rows_is_refused_before_training(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", SPEC.name)
    with pytest.raises(InvalidData, match="no row has split 'val'"):
        _pretrain(_write(tmp_path / "sounds", {"train": 4}), registry)
    assert list(registry.versions()) == []


def test_steps_round_up() -> None:
    assert PretrainConfig(max_epochs=3, batch=4).steps(rows=10) == 9


def test_golden_inputs_keep_missing_modalities_missing() -> None:
    spec = ModelSpec(
        name="two",
        modalities={"a": TensorModality(shape=(1,)), "b": TensorModality(shape=(1,))},
        actions=("x", "y"),
    )
    data = LabelledData(
        spec=spec,
        pools={"a": np.array([[1.0], [2.0]], np.float32), "b": np.array([[3.0]], np.float32)},
        index=np.array([[1, -1], [0, 0]], np.int64),
        action=np.array([0, 1], np.int64),
        tower_labels={},
        tower_classes={},
        group=["", ""],
    )
    inputs = golden_inputs(data)
    np.testing.assert_array_equal(inputs["a"], [[2.0], [1.0]])
    np.testing.assert_array_equal(inputs["b"], [[0.0], [3.0]])
    np.testing.assert_array_equal(inputs[PRESENT], [[1.0, 0.0], [1.0, 1.0]])
