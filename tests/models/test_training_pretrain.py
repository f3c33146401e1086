"""Pre-training on a task that is learned in seconds: the text names the sensor whose sign is asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from plaudit_models.data.labelled import LabelledData
from plaudit_models.spec import ModelSpec, TensorModality, TextModality
from plaudit_models.training.config import PretrainConfig
from plaudit_models.training.networks.fusion import FusionConfig
from plaudit_models.training.pretrain import (
    Pretrained,
    PretrainProgress,
    evaluate,
    pretrain,
    without_each,
)

SPEC = ModelSpec(
    "signs",
    {"left": TensorModality((2,)), "right": TensorModality((2,)), "which": TextModality(3)},
    ("minus", "plus"),
    embedding_size=12,
)
CONFIG = FusionConfig(vocabulary_size=10, width=16, layers=1, attention_heads=2, tokens_per_modality=1)
STEPS = PretrainConfig(max_steps=250, batch=64, validations=5, learning_rate=1e-2)


def signs(n: int, seed: int) -> LabelledData:
    """Half the rows ask for the sign of left (tokens 1 2), half for that of right (3 4)."""
    rng = np.random.default_rng(seed)
    left, right = (rng.choice((-1.0, 1.0), (20, 1)) * rng.uniform(0.5, 1.5, (20, 2)) for _ in range(2))
    index = np.stack([rng.integers(20, size=n), rng.integers(20, size=n), rng.integers(2, size=n)], axis=1)
    asked = np.where(index[:, 2] == 0, left[index[:, 0], 0], right[index[:, 1], 0])
    return LabelledData(
        spec=SPEC,
        pools={
            "left": left.astype(np.float32),
            "right": right.astype(np.float32),
            "which": np.array([[1, 2, 0], [3, 4, 0]]),
        },
        index=index,
        action=(asked > 0).astype(np.int64),
        tower_labels={"left": (left[index[:, 0], 0] > 0).astype(np.int64)},
        tower_classes={"left": ("0", "1")},
        group=["left" if i == 0 else "right" for i in index[:, 2]],
    )


@pytest.fixture(scope="module")
def trained() -> tuple[Pretrained, list[PretrainProgress]]:
    reports: list[PretrainProgress] = []
    result = pretrain(signs(640, 0), signs(128, 1), fusion=CONFIG, config=STEPS, on_progress=reports.append)
    return result, reports


def test_it_learns_and_says_how_it_went(trained: tuple[Pretrained, list[PretrainProgress]]) -> None:
    result, reports = trained
    assert result.validation.overall > 0.95
    assert result.steps == 250
    assert not result.stopped_early
    assert not result.cut_short
    assert not result.model.training
    assert [r.step for r in reports if r.validation_accuracy is not None] == [50, 100, 150, 200, 250]
    assert reports[-1].fraction == 1.0
    assert reports[-1].loss < reports[0].loss / 2
    assert max(r.validation_accuracy or 0.0 for r in reports) == result.validation.overall


def test_accuracy_is_told_by_group_and_with_each_modality_withheld(
    trained: tuple[Pretrained, list[PretrainProgress]],
) -> None:
    model, data = trained[0].model, signs(512, 2)
    found = evaluate(model, data)
    assert min(found.by_group.values()) > 0.95
    share = data.group.count("left") / len(data)
    assert found.overall == pytest.approx(share * found.by_group["left"] + (1 - share) * found.by_group["right"])
    without = without_each(model, data)
    assert set(without) == {"left", "right", "which"}
    assert without["left"].by_group["left"] < 0.8
    assert without["left"].by_group["right"] > 0.9
    assert evaluate(model, data, without="left") == without["left"]
    with pytest.raises(ValueError, match=r"'top'.*left.*right.*which"):
        evaluate(model, data, without="top")


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        config = PretrainConfig(max_steps=5, batch=32, seed=seed)
        return pretrain(signs(200, 0), signs(50, 1), fusion=CONFIG, config=config).model.state_dict()

    first, same, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["summary"], other["summary"])


def test_it_stops_when_validation_no_longer_improves_and_keeps_the_best_weights() -> None:
    """With no learning rate nothing improves after the first of 20 validations, so a patience of 3 ends at the 4th."""
    config = PretrainConfig(max_steps=40, batch=32, validations=20, patience=3, learning_rate=0.0)
    result = pretrain(signs(64, 0), signs(50, 1), fusion=CONFIG, config=config)
    assert result.stopped_early
    assert not result.cut_short
    assert result.steps <= 10
    assert evaluate(result.model, signs(50, 1)) == result.validation


def test_the_time_limit_ends_it_and_is_reported() -> None:
    config = PretrainConfig(max_steps=100, max_duration_s=1e-9, batch=32)
    result = pretrain(signs(64, 0), signs(50, 1), fusion=CONFIG, config=config)
    assert result.steps <= 1
    assert result.cut_short
    assert not result.stopped_early


def test_a_time_limit_that_is_not_reached_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of any length give the same weights, as long as all are done within the limit."""

    def weights(step_s: float) -> dict[str, torch.Tensor]:
        passed = itertools.count(0.0, step_s)
        monkeypatch.setattr("plaudit_models.training.pretrain.time.monotonic", lambda: next(passed))
        config = PretrainConfig(max_steps=5, max_duration_s=60.0, batch=32)
        result = pretrain(signs(200, 0), signs(50, 1), fusion=CONFIG, config=config)
        assert result.steps == 5
        return result.model.state_dict()

    quick, slow = weights(0.001), weights(2.0)
    assert all(torch.equal(quick[name], slow[name]) for name in quick)


def test_a_diverging_run_says_so() -> None:
    data = signs(64, 0)
    broken = {**data.pools, "left": np.full((20, 2), np.nan, np.float32)}
    data = LabelledData(SPEC, broken, data.index, data.action, {}, {}, data.group)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        pretrain(data, signs(10, 1), fusion=CONFIG, config=STEPS)
