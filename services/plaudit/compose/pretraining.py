"""Pre-training with what the settings say, into the registry of the model that they describe."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from plaudit.compose.learner import data_config, pretrain_config
from plaudit.compose.registry import model_registry
from plaudit.core.settings import Settings
from plaudit.learner.finetuning.pretraining import Published, pretrain_and_publish
from plaudit_models.training.pretrain import PretrainProgress


def pretrain(settings: Settings, folder: Path, on_progress: Callable[[PretrainProgress], None]) -> Published:
    """Version trained on the labelled data in ``folder``.

    Raises:
        ConfigError: the [model] table is missing or wrong.
        InvalidData, UnusableEncoder, ExportMismatch, FloatingPointError: as :func:`pretrain_and_publish`.
    """
    return pretrain_and_publish(
        folder,
        settings.spec(),
        model_registry(settings),
        now_s=time.time(),
        floor=settings.policy.floor,
        config=pretrain_config(settings),
        threads=settings.pretrain.threads,
        encoders=settings.encoders(),
        data=data_config(settings),
        on_progress=on_progress,
    )
